"""What a tokenizer refuses: files with damaged or hostile metadata, kinds that are not known, text that is none."""

from __future__ import annotations

import contextlib
import sys

import numpy as np
import pytest
import vocabulary_files
from hypothesis import given, settings
from hypothesis import strategies as st
from vocabulary_files import bytes_alone

import quant
from quant.models.tokenizer import Tokenizer


@pytest.mark.parametrize(
    ("pre", "words"), [("qwen99", "is 'qwen99', which is not known"), ("", "is missing")]
)
def test_an_unknown_cut_is_refused_for_text_alone(pre, words):
    tokenizer = Tokenizer.from_metadata(bytes_alone(pre=pre))
    assert tokenizer.decode([2 + ord("h"), 2 + ord("i")]) == "hi"
    with pytest.raises(ValueError, match=words) as error:
        tokenizer.encode("hi")
    assert "kimi-k2" in str(error.value)


def test_an_unknown_model_is_refused_for_text_alone():
    tokenizer = Tokenizer.from_metadata(bytes_alone() | {"tokenizer.ggml.model": "bert"})
    assert tokenizer.n_vocab == 259
    for call in (lambda: tokenizer.encode("hi"), lambda: tokenizer.decode([3])):
        with pytest.raises(ValueError, match=r"tokenizer\.ggml\.model is 'bert'; only 'gpt2' and"):
            call()


def _without(metadata, key):
    return {name: value for name, value in metadata.items() if name != key}


_TOKENS = bytes_alone()["tokenizer.ggml.tokens"]
HOSTILE = [
    ("tokens", None, "is missing"),
    ("tokens", [], "1 to 1048576 tokens"),
    ("tokens", ["a"] * (2**20 + 1), "1 to 1048576 tokens"),
    ("tokens", [*_TOKENS[:-1], 7], "an array of texts"),
    ("tokens", [*_TOKENS[:-1], b"\xff"], "an array of texts"),
    ("tokens", [*_TOKENS[:-1], "a" * 2000], "at most 1024 letters, got 2000"),
    ("tokens", [*_TOKENS[:-1], "a"], "'a' is there twice, as 99 and 258"),
    ("token_type", [1] * 258, "each of the 259 tokens"),
    ("token_type", [1] * 260, "each of the 259 tokens"),
    ("token_type", [1.5] * 259, "an array of numbers"),
    ("token_type", 3, "an array of numbers"),
    ("token_type", [6] * 259, "token 0 is said to be a byte"),
    ("model", 7, "a text"),
    ("pre", 7, "a text"),
    ("merges", None, "is missing"),
    ("merges", ["t h"] * 10**6, "at most 265"),
    ("merges", ["t h", "t h"], "a pair is there twice"),
    ("merges", ["t q"], "merge 0, 't q', does not make a token"),
    ("merges", ["th"], "merge 0, 'th', does not make a token"),
    ("merges", [""], "merge 0, '', does not make a token"),
    ("bos_token_id", 259, "one of the 259 tokens, got 259"),
    ("eos_token_id", -1, "one of the 259 tokens"),
    ("eot_token_id", 2**32 - 1, "one of the 259 tokens"),
    ("fim_pad_token_id", 2**63, "one of the 259 tokens"),
    ("bos_token_id", "0", "a whole number"),
    ("bos_token_id", True, "a whole number"),
    ("add_bos_token", 1, "true or false"),
    ("add_space_prefix", "no", "true or false"),
]


@pytest.mark.parametrize(("key", "value", "words"), HOSTILE)
def test_hostile_metadata(key, value, words):
    key = f"tokenizer.ggml.{key}"
    changed = _without(bytes_alone(), key) | ({} if value is None else {key: value})
    with pytest.raises(ValueError, match=words) as error:
        Tokenizer.from_metadata(changed)
    assert key in str(error.value)
    assert len(str(error.value)) < 400


_ODD_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 300), st.just(2**64), st.floats(), st.text(max_size=3),
    st.sampled_from(["gpt2", "llama", "bert", "gpt-2", "qwen2"]),
    st.lists(st.text(max_size=3), max_size=300), st.lists(st.integers(-(2**40), 2**70), max_size=300),
    st.integers(0, 9).map(lambda kind: np.full(259, kind, np.int32)),
    st.sampled_from([np.zeros((259, 1)), np.array(3), np.zeros(259, "f2"), np.full(259, -np.inf), ((),), [[]]]),
)  # fmt: skip
_KEYS = [*bytes_alone(), *(f"tokenizer.ggml.{key}" for key in ("scores", "add_bos_token", "fim_sep_token_id")),
         "tokenizer.chat_template", "general.name"]  # fmt: skip


@pytest.mark.filterwarnings("ignore:text. the vocabulary has no tokens:UserWarning")
@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(_KEYS), _ODD_VALUES, min_size=1, max_size=4))
def test_any_metadata_is_refused_or_works(changes):
    """With a ValueError, from the constructor or from what is asked of the tokenizer."""
    metadata = bytes_alone() | changes
    for key in [key for key, value in metadata.items() if value is None]:
        del metadata[key]
    try:
        tokenizer = Tokenizer.from_metadata(metadata)
    except ValueError:
        return
    for call in (
        lambda: tokenizer.encode("the <s> é\n", parse_special=True),
        lambda: tokenizer.decode(range(tokenizer.n_vocab)),
        lambda: tokenizer.encode_chat([{"role": "user"}]),
    ):
        with contextlib.suppress(ValueError):
            call()


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "is missing"),
        ([0.0] * 258, "each of the 259 tokens"),
        ([0.0] * 258 + [np.nan], "finite numbers, got nan"),
        (["0"] * 259, "an array of numbers"),
    ],
)
def test_hostile_scores(value, words):
    key = "tokenizer.ggml.scores"
    metadata = bytes_alone() | {"tokenizer.ggml.model": "llama"}
    with pytest.raises(ValueError, match=words) as error:
        Tokenizer.from_metadata(metadata | ({} if value is None else {key: value}))
    assert key in str(error.value)


def test_a_begin_of_text_that_there_is_not():
    metadata = _without(bytes_alone(), "tokenizer.ggml.bos_token_id")
    assert Tokenizer.from_metadata(metadata).bos_id is None
    with pytest.raises(ValueError, match=r"add_bos_token is true, but .*bos_token_id is missing"):
        Tokenizer.from_metadata(metadata | {"tokenizer.ggml.add_bos_token": True})


def test_tokens_that_are_no_utf_8(tmp_path):
    path = vocabulary_files.write(tmp_path / "v.gguf", bytes_alone(["x\u00e9!"]))
    path.write_bytes(path.read_bytes().replace("x\u00e9!".encode(), b"x\xff\xfe!"))
    with pytest.raises(ValueError, match=r"tokenizer\.ggml\.tokens.* is not valid UTF-8"):
        Tokenizer.from_metadata(quant.open(path).metadata)


def test_text_that_is_none():
    tokenizer = Tokenizer.from_metadata(bytes_alone())
    with pytest.raises(TypeError, match="text: expected a str, got bytes"):
        tokenizer.encode(b"x")
    with pytest.raises(ValueError, match=r"text: letter 1 is '\\udc80', half of a surrogate pair"):
        tokenizer.encode("x\udc80")
    for token in (-1, 259):
        with pytest.raises(ValueError, match=f"ids: {token} is none of the 259 tokens"):
            tokenizer.decode([token])


@pytest.mark.parametrize(
    ("library", "call"),
    [
        ("tokenizers", lambda tokenizer: tokenizer.encode("x")),
        ("jinja2", lambda tokenizer: tokenizer.apply_chat_template([])),
    ],
)
def test_a_library_that_is_not_installed(library, call, monkeypatch):
    monkeypatch.setitem(sys.modules, library, None)
    tokenizer = Tokenizer.from_metadata(bytes_alone() | {"tokenizer.chat_template": "x"})
    assert tokenizer.decode([2 + ord("h")]) == "h"
    with pytest.raises(ImportError, match=f"pip install .*{library}|pip install '.\\[text\\]'"):
        call(tokenizer)
