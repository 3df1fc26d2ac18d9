"""Chat templates out of a model file."""

from __future__ import annotations

import pytest
import real_files
from vocabulary_files import bytes_alone

import quant
from quant.models.tokenizer import Tokenizer

CHATML = (
    "{% for message in messages %}\n    {% if loop.index > 9 %}\n        {% break %}\n    {% endif %}\n"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{% generation %}<|im_start|>assistant\n{% endgeneration %}{% endif %}"
)
HELLO = [{"role": "user", "content": " Hi <b> "}]


def _with_template(template, **more):
    names = ["<|im_start|>", "<|im_end|>"]
    return Tokenizer.from_metadata(
        bytes_alone(names) | {"tokenizer.chat_template": template} | more
    )


def test_a_chat():
    tokenizer = _with_template(CHATML)
    turn = "<|im_start|>user\nHi <b><|im_end|>\n"
    assert tokenizer.apply_chat_template(HELLO, add_generation_prompt=False) == turn
    assert tokenizer.apply_chat_template(HELLO) == turn + "<|im_start|>assistant\n"
    ids = tokenizer.encode_chat(HELLO)
    assert (ids[0], ids.count(259), ids.count(260)) == (259, 2, 1)
    assert tokenizer.decode(ids, special=True) == turn + "<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ messages | tojson }}", '[{"role": "user", "content": " Hi <b> "}]'),
        ("{{ {'é': 1} | tojson(indent=1) }}", '{\n "é": 1\n}'),
        ("{{ bos_token }}{{ eos_token }}{{ nothing }}", "<s></s>"),
        ("{{ strftime_now('%Y') | length }}", "4"),
        ("{% if tools is none %}no{% endif %}\n", "no"),
        ("{%- set ns = namespace(n=0) -%}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}", "1"),
        ("{{ thinking }}", "on"),
    ],
)  # fmt: skip
def test_what_templates_use(template, text):
    assert _with_template(template).apply_chat_template(HELLO, thinking="on") == text


def test_one_begin_of_text_whoever_writes_it():
    adds = {"tokenizer.ggml.add_bos_token": True}
    for template in ("x", "{{ bos_token }}x"):
        tokenizer = _with_template(template, **adds)
        assert tokenizer.encode_chat(HELLO) == [0, 2 + ord("x")]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must alternate') }}", "refuses these messages: roles must alternate"),
        ("{% if %}", "refuses these messages: "),
        ("{{ messages.append(1) }}", "refuses these messages: "),  # in the sandbox they stay as they are
        ("{{ ''.__class__.__mro__ }}", "refuses these messages: "),
        ("{% for i in range(10**9) %}{% endfor %}", "fails on these messages: "),
        ("{{ messages[0].content + 1 }}", "fails on these messages: "),
        ("{{ 1 // 0 }}", "fails on these messages: "),
    ],
)  # fmt: skip
def test_templates_that_refuse(template, words):
    with pytest.raises(ValueError, match=words):
        _with_template(template).apply_chat_template(HELLO)


def test_a_file_without_a_template():
    tokenizer = Tokenizer.from_metadata(bytes_alone())
    with pytest.raises(ValueError, match=r"tokenizer\.chat_template is missing"):
        tokenizer.apply_chat_template(HELLO)
    with pytest.raises(ValueError, match=r"tokenizer\.chat_template: expected a text, got int"):
        _with_template(7)


@pytest.mark.real_model
def test_smollm2_chat():
    path = real_files.real_file(real_files.SMOLLM2_135M)
    tokenizer = Tokenizer.from_metadata(quant.open(path).metadata)
    ids = tokenizer.encode_chat([{"role": "user", "content": "Hi"}])
    assert tokenizer.decode(ids, special=True) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(1) == 3
    assert ids.count(2) == 2
