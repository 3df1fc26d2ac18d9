"""The tokenizer out of a model file, against ik_llama.cpp's (llama.cpp's code) on the same file."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import real_files
import tokenizer_peer
import vocabulary_files
from gguf import TokenType
from odd_strings import odd_strings
from small_models import SMALL, small
from vocabulary_files import bytes_alone

import quant
from quant.models.synthetic import metadata as model_metadata
from quant.models.tokenizer import Tokenizer
from quant.models.tokenizer.byte_letters import BYTE_LETTERS
from quant.models.tokenizer.encoder import cutter
from quant.models.tokenizer.pre_tokenizers import PRE_TOKENIZERS

# One name a row of the table; the others of a row are its other names.
ROWS = {row.names[0]: row for row in PRE_TOKENIZERS.values()}
_ANY_CASE = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])?"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SIGNS = r" ?[^\s\p{L}\p{N}]+"
_BEFORE = r"[^\r\n\p{L}\p{N}]?"
_NOT_SMALL, _NOT_CAPITAL = r"(?:(?=\p{L})[^a-z])", r"(?:(?=\p{L})[^A-Z])"
_HAN = "\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ebef\U0002f800-\U0002fa1f"


def _ascii_case(suffixes, digits):
    """o200k's words where only ASCII has a case, and marks are no part of a word."""
    return (
        rf"{_BEFORE}{_NOT_SMALL}*{_NOT_CAPITAL}+{suffixes}|{_BEFORE}{_NOT_SMALL}+{_NOT_CAPITAL}*{suffixes}|"
        rf"{digits}|{_SIGNS}[\r\n/]*|{_SPACES}"
    )


# How llama.cpp cuts where it does not do as the model's own regexes say.
LLAMA_CPP_FORMS = {
    "gpt-4o": (_ascii_case(_ANY_CASE, r"\p{N}{1,3}"),),
    "tekken": (_ascii_case("", r"\p{N}"),),
    # one class of letters, whatever their case; Han by ranges
    "kimi-k2": (
        rf"[{_HAN}]+|{_BEFORE}[\p{{L}}&&[^{_HAN}]]+{_ANY_CASE}|\p{{N}}{{1,3}}|{_SIGNS}[\r\n]*|{_SPACES}",
    ),
    # blanks outside ASCII are no more in a class of signs or letters; digits stay together (no token has two)
    "deepseek-llm": (
        *ROWS["deepseek-llm"].splits[:2],
        *(rf"(?:{part})+" for part in (r"\s?(?:(?!\s)[!-/:-~！-／：-～‘-‟、。])+",)),
        r"\s+$",
        r"(?:(?!\s)[一-龥ࠀ-一가-퟿])+",
        r"\p{N}+",
    ),
}


def _both_ways(special, n):
    return [
        (text, *how) for text in odd_strings(n, special) for how in ((True, False), (False, True))
    ]


def _differ(tokenizer, texts, peer):
    return [
        text for text, ids in zip(texts, peer.ids, strict=True) if tokenizer.encode(*text) != ids
    ]


def _check(path, special, n=1000):
    """Everything that the peer says of a file, on `n` strings."""
    tokenizer = Tokenizer.from_metadata(quant.open(path).metadata)
    texts = _both_ways(special, n)
    plain = [tokenizer.encode(text, add_special=False) for text, *_ in texts[::2]]
    peer = tokenizer_peer.ask(path, texts, plain)
    assert tokenizer.n_vocab == peer.n_vocab
    assert tokenizer.eos_ids == peer.eos_ids
    assert [tokenizer.piece(token) for token in range(peer.n_vocab)] == peer.pieces
    assert [tokenizer.piece(token, True) for token in range(peer.n_vocab)] == peer.special_pieces
    assert _differ(tokenizer, texts, peer) == []
    return tokenizer, plain, peer


# ---------------------------------------------------------------- real files

REAL = {
    real_files.SMOLLM2_135M: ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<reponame>"),
    real_files.GEMMA3_270M: (
        "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>", "<unused5>", "<table>", "</s>", "<pad>",
    ),
}  # fmt: skip


@pytest.mark.real_model
@pytest.mark.filterwarnings("ignore:text. the vocabulary has no tokens:UserWarning")
@pytest.mark.parametrize("file", REAL, ids=lambda file: file.name)
def test_real_files(file):
    _, plain, peer = (found := _check(real_files.real_file(file), REAL[file]))
    decoded = [found[0].decode(ids) for ids in plain]
    assert decoded == [text.decode(errors="replace") for text in peer.texts]


@pytest.mark.real_model
def test_a_quarter_of_a_million_tokens_are_quick_and_small():
    """Measured on a machine with others: 2 s and 350 MiB, most of it the libraries'."""
    program = (
        "import pathlib, sys, time, quant\n"
        "from quant.models.tokenizer import Tokenizer\n"
        "metadata = quant.open(sys.argv[1]).metadata\n"
        "begun = time.process_time()\n"
        "ids = Tokenizer.from_metadata(metadata).encode('a text')\n"
        "status = pathlib.Path('/proc/self/status').read_text()\n"
        "peak = next(line.split()[1] for line in status.splitlines() if line.startswith('VmHWM'))\n"
        "print(time.process_time() - begun, peak)\n"
    )
    path = real_files.real_file(real_files.GEMMA3_270M)
    done = subprocess.run([sys.executable, "-c", program, path], capture_output=True, check=True)
    seconds, kibibytes = map(float, done.stdout.split())
    assert seconds < 8
    assert kibibytes < 700 * 1024


# ---------------------------------------------------------------- made vocabularies


@pytest.mark.parametrize("name", ROWS)
def test_words_are_cut_as_llama_cpp_cuts_them(name, tmp_path, monkeypatch):
    """Every text, by its own regexes or, where these are no model's, by the forms above."""
    path = vocabulary_files.write(tmp_path / "v.gguf", vocabulary_files.byte_level(ROWS[name]))
    if name in LLAMA_CPP_FORMS:
        monkeypatch.setitem(PRE_TOKENIZERS, name, ROWS[name]._replace(splits=LLAMA_CPP_FORMS[name]))
    _check(path, vocabulary_files.BYTE_LEVEL_SPECIAL)


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("gpt-4o", "camelCase ÉCOLE, नमस्ते's 12345 x\u0301y!?\n\n z",
         ["camel", "Case", " ÉCOLE", ",", " नमस्ते's", " ", "123", "45", " x\u0301y", "!?\n\n", " z"]),
        ("tekken", "NAÏVE camelCase's x24/\n", ["NAÏVE", " camel", "Case", "'s", " x", "2", "4", "/\n"]),
        ("kimi-k2", "々〇東京Tower camelCase 你好World नमस्ते",
         ["々〇東京", "Tower", " camel", "Case", " ", "你好", "World", " नमस्ते"]),
        ("deepseek-llm", "\u3000\u3000//é12\r\n ok  ",
         ["\u3000\u3000", "//", "é", "1", "2", "\r", "\n", " ok", "  "]),
        ("deepseek-v3", "1234 ひらカタ漢字 _name(x) नमस्ते \n\n a",
         ["123", "4", " ", "ひらカタ漢字", " _", "name", "(x", ")", " नमस्ते", " \n\n", " a"]),
        ("qwen2", "It'S 42", ["It", "'S", " ", "4", "2"]),
        ("llama-bpe", "(hello 2024)\n\n x", ["(hello", " ", "202", "4", ")\n\n", " x"]),
    ],
)  # fmt: skip
def test_words_are_cut_as_the_models_do(name, text, words):
    """By hand from the models' regexes."""
    cut = cutter(ROWS[name]).pre_tokenize_str(text)
    assert [text[begin:end] for _, (begin, end) in cut] == words


def test_what_llama_cpp_cuts_otherwise(tmp_path):
    """Only texts with letters or marks for which it has no classes, or with other blanks."""
    for name in LLAMA_CPP_FORMS:
        path = vocabulary_files.write(tmp_path / name, vocabulary_files.byte_level(ROWS[name]))
        tokenizer = Tokenizer.from_metadata(quant.open(path).metadata)
        texts = [(text, False, False) for text in odd_strings(400) if text.isascii()]
        assert len(texts) > 50
        assert _differ(tokenizer, texts, tokenizer_peer.ask(path, texts)) == []


@pytest.mark.parametrize(
    "more",
    [{}, {"tokenizer.ggml.add_space_prefix": False, "tokenizer.ggml.add_eos_token": True}],
    ids=["prefix", "no prefix"],
)
def test_sentence_piece(more, tmp_path):
    path = vocabulary_files.write(
        tmp_path / "v.gguf", vocabulary_files.sentence_piece() | {"general.name": "x"} | more
    )
    tokenizer, plain, peer = _check(path, vocabulary_files.SENTENCE_PIECE_SPECIAL)
    decoded = [tokenizer.decode(ids) for ids in plain]
    assert decoded == [text.decode(errors="replace") for text in peer.texts]
    # there and back; but behind a user-defined token there is another prefix, and "<s>" is made out of its letters
    for text in (text for text in odd_strings(300) if "  \n" not in text and "<s>" not in text):
        ids = tokenizer.encode(text)
        assert ids[0] == 1
        assert tokenizer.decode(ids) == text.replace("▁", " ")


@pytest.mark.parametrize("name", SMALL)
def test_files_of_make_gguf(name, tmp_path):
    metadata = {key: value for key, _, value in model_metadata.tokenizer(small(name))}
    path = vocabulary_files.write(tmp_path / "v.gguf", metadata)
    _check(path, tuple(metadata["tokenizer.ggml.tokens"][:3]), n=200)


def test_phi_3_takes_no_blanks_behind_special_tokens(tmp_path):
    metadata = vocabulary_files.sentence_piece() | {"general.name": "Phi-3 mini"}
    name = "<|endoftext|>"
    for key, value in (("tokens", name), ("token_type", TokenType.CONTROL), ("scores", -1000.0)):
        metadata[f"tokenizer.ggml.{key}"].append(value)
    path = vocabulary_files.write(tmp_path / "v.gguf", metadata)
    _check(path, (*vocabulary_files.SENTENCE_PIECE_SPECIAL, name))


NAMES = {
    "gpt-oss": [
        "<|start|>", "<|end|>", "<|message|>", "<|channel|>", "<|constrain|>", "<|return|>", "<|call|>", "<|endoftext|>",
    ],
    "solar": ["<|flush|>", "<|calls|>", "<|end|>"],
    "phi": ["<|end|>", "<|endoftext|>", "<|return|>"],
    "llama 3": ["<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>", "<|start_header_id|>"],
    "qwen": ["<|im_start|>", "<|im_end|>", "<|fim_prefix|>", "<|fim_pad|>", "<|repo_name|>", "<|file_sep|>"],
    "deepseek": ["<｜end▁of▁sentence｜>", "<｜fim▁hole｜>", "<｜fim▁begin｜>", "<｜fim▁end｜>", "<｜User｜>"],
    "kimi": ["[EOS]", "[EOT]", "[PAD]", "<|im_end|>"],
    "overlapping": ["<|a|>", "|><|", "<|a|><", "aa", "aaa", "aaaa"],
}  # fmt: skip


@pytest.mark.parametrize("kind", [TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.NORMAL])
@pytest.mark.parametrize("model", NAMES)
def test_roles_of_special_tokens(model, kind, tmp_path):
    """Whatever type a file says they have."""
    names = NAMES[model]
    metadata = bytes_alone(names, kind)
    path = vocabulary_files.write(tmp_path / "v.gguf", metadata)
    tokenizer = Tokenizer.from_metadata(quant.open(path).metadata)
    joined = ["".join(names), " x ".join(names), "\n".join(names * 2), "<|a|><|a|><aaaaaaa|><|b"]
    texts = [(text, False, parse) for text in joined for parse in (False, True)]
    peer = tokenizer_peer.ask(path, texts)
    assert tokenizer.eos_ids == peer.eos_ids
    for token, piece in enumerate(peer.pieces):  # it has no literal letters in byte-level tokens
        expected = names[token - 259].encode() if b"[UNK_BYTE" in piece else piece
        assert tokenizer.piece(token) == expected
    assert _differ(tokenizer, texts, peer) == []


# ---------------------------------------------------------------- bytes, streams


def test_bytes_without_a_token_are_left_out_and_said():
    metadata = bytes_alone()
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    place = tokens.index(BYTE_LETTERS[4])
    changed = {"tokenizer.ggml.tokens": tokens[:place] + tokens[place + 1 :], "tokenizer.ggml.token_type": types[1:]}  # fmt: skip
    tokenizer = Tokenizer.from_metadata(metadata | changed)
    with pytest.warns(UserWarning, match="no tokens for the bytes 0x04; they are left out"):
        ids = tokenizer.encode("t\x04h")
    assert tokenizer.decode(ids) == "th"
    assert len(ids) == 2  # not merged: there was something between them


def test_tokens_without_text(tmp_path):
    """They have no place in a text, and the others keep theirs."""
    metadata = bytes_alone(["", "x y", ""])
    metadata["tokenizer.ggml.tokens"].remove(BYTE_LETTERS[0])
    metadata["tokenizer.ggml.token_type"].pop(5)
    tokenizer = Tokenizer.from_metadata(metadata)
    assert tokenizer.n_vocab == 261
    ids = tokenizer.encode("thx y", parse_special=True)
    assert [tokenizer.decode([token], special=True) for token in ids] == ["th", "x y"]
    assert tokenizer.decode([258, 260], special=True) == ""
    with pytest.warns(UserWarning, match="bytes 0x00"):
        assert tokenizer.encode("\0") == []


def test_a_stream_holds_back_half_letters():
    tokenizer = Tokenizer.from_metadata(bytes_alone(["<|im_end|>"]))
    text = "a é 漢 😀 ☃"
    stream = tokenizer.stream()
    shown = [stream.push(token) for token in tokenizer.encode(text)]
    assert "".join(shown) == text
    assert [part for part in shown if part] == list(text)
    assert stream.push(2 + 0xE2) == stream.push(2 + 0x98) == ""
    assert stream.finish() == "\ufffd"
    assert stream.push(2 + ord("x")) == "x"  # begins anew
    assert stream.push(2 + 0xFF) == "\ufffd"
    assert stream.push(259) == ""
    assert tokenizer.stream(special=True).push(259) == "<|im_end|>"


def test_decode_takes_any_ids():
    tokenizer = Tokenizer.from_metadata(bytes_alone(["<|im_end|>"]))
    ids = np.array([2 + ord("h"), 259, 2 + ord("i")])
    assert tokenizer.decode(ids) == tokenizer.decode(iter(ids.tolist())) == "hi"
    assert tokenizer.decode(ids, special=True) == "h<|im_end|>i"
    assert tokenizer.decode([]) == ""


def test_the_repr_is_short():
    assert repr(Tokenizer.from_metadata(bytes_alone())) == "<Tokenizer: gpt2, gpt-2, 259 tokens>"
