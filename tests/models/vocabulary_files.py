"""Small GGUF files that hold a vocabulary alone, trained on a few texts by the library `tokenizers`."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Any

import odd_strings
from gguf import GGUFEndian, GGUFValueType, GGUFWriter, TokenType

from quant.models.tokenizer.byte_letters import BYTE_LETTERS
from quant.models.tokenizer.encoder import cutter
from quant.models.tokenizer.pre_tokenizers import PreTokenizer
from quant.models.tokenizer.vocabulary import SPACE, byte_token_texts

__all__ = [
    "BYTE_LEVEL_SPECIAL",
    "SENTENCE_PIECE_SPECIAL",
    "byte_level",
    "bytes_alone",
    "sentence_piece",
    "write",
]

TEXT = pathlib.Path(__file__).with_name("text.txt").read_text(encoding="utf-8")
# Every script several times, and whole paragraphs, so that merges go across all places where text may be cut.
CORPUS = [
    *odd_strings.SCRIPTS * 3,
    *odd_strings.CODE * 3,
    *odd_strings.EMOJI.split(" "),
    *(blank * times for blank in odd_strings.BLANKS for times in (2, 4, 8)),
    *odd_strings.DIGITS * 2,
    *TEXT.split("\n\n"),
]
BYTE_LEVEL_SPECIAL = ("<|begin|>", "<|end_of_text|>", "<|im_start|>", "<|im_end|>", "<tool>")
SENTENCE_PIECE_SPECIAL = ("<unk>", "<s>", "</s>", "<|user|>")
_CONTROL, _USER, _NORMAL = TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.NORMAL


def byte_level(row: PreTokenizer, n_vocab: int = 2500) -> dict[str, Any]:
    """Metadata of a byte-level vocabulary whose merges were learnt from words as `row` cuts them."""
    import tokenizers

    engine = tokenizers.Tokenizer(tokenizers.models.BPE())
    engine.pre_tokenizer = cutter(row)
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens, merges = _trained(engine, CORPUS, n_vocab - len(BYTE_LEVEL_SPECIAL), letters)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": row.names[0],
        "tokenizer.ggml.tokens": [*BYTE_LEVEL_SPECIAL, *tokens],
        "tokenizer.ggml.token_type": [_CONTROL] * 4 + [_USER] + [_NORMAL] * len(tokens),
        "tokenizer.ggml.merges": merges,
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def bytes_alone(
    names: Sequence[str] = (), kind: TokenType = TokenType.CONTROL, pre: str = "gpt-2"
) -> dict[str, Any]:
    """Metadata of a byte-level vocabulary of the bytes, one merge, and tokens of some names behind them."""
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": ["<s>", "</s>", *BYTE_LETTERS, "th", *names],
        "tokenizer.ggml.token_type": [3, 3] + [1] * 257 + [int(kind)] * len(names),
        "tokenizer.ggml.merges": ["t h"],
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
    }


def sentence_piece(n_vocab: int = 2500) -> dict[str, Any]:
    """Metadata of a vocabulary of SentencePiece's kind: letters, their merges with a score each, bytes."""
    import tokenizers

    engine = tokenizers.Tokenizer(tokenizers.models.BPE())
    words = tokenizers.Regex(f"{SPACE}+[^{SPACE}]*|[^{SPACE}]+")
    engine.pre_tokenizer = tokenizers.pre_tokenizers.Split(words, "isolated")
    corpus = [text.replace(" ", SPACE) for text in CORPUS]
    tokens, _ = _trained(engine, corpus, n_vocab - 261, [], limit_alphabet=300)
    first = [*SENTENCE_PIECE_SPECIAL[:3], *byte_token_texts()]
    last = [SENTENCE_PIECE_SPECIAL[3], "  \n"]
    tokens = [token for token in tokens if token not in {*first, *last}]
    n_first, n_last = len(first), len(last)
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": [*first, *tokens, *last],
        "tokenizer.ggml.token_type": [
            TokenType.UNKNOWN, _CONTROL, _CONTROL, *[TokenType.BYTE] * 256,
            *[_NORMAL] * len(tokens), _USER, _USER,
        ],
        "tokenizer.ggml.scores": [0.0] * n_first + [-float(i) for i in range(len(tokens))] + [-1000.0] * n_last,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }  # fmt: skip


def _trained(engine, corpus, n_vocab, letters, **limits):
    """(tokens in the order in which they were made, the merges as GGUF has them)."""
    import tokenizers

    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=n_vocab,
        min_frequency=1,
        initial_alphabet=letters,
        show_progress=False,
        **limits,
    )
    engine.train_from_iterator(corpus, trainer)
    model = json.loads(engine.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].get)
    return tokens, [" ".join(pair) for pair in model["merges"]]


def write(path: pathlib.Path, metadata: dict[str, Any]) -> pathlib.Path:
    """A GGUF file of this metadata and no tensors, with the sizes that llama.cpp wants of a llama model."""
    sizes = {
        "context_length": 128, "embedding_length": 32, "block_count": 1, "feed_forward_length": 32,
        "attention.head_count": 1, "rope.dimension_count": 32,
    }  # fmt: skip
    writer = GGUFWriter(path, "llama", endianess=GGUFEndian.LITTLE)
    for key, size in sizes.items():
        writer.add_uint32(f"llama.{key}", size)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    for key, value in metadata.items():
        writer.add_key_value(key, *_typed(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


def _typed(value):
    if isinstance(value, list):
        if isinstance(value[0], (int, TokenType)):
            return [int(item) for item in value], GGUFValueType.ARRAY
        return value, GGUFValueType.ARRAY
    kinds = {bool: GGUFValueType.BOOL, int: GGUFValueType.UINT32, str: GGUFValueType.STRING}
    return value, kinds[type(value)]
