"""Text to token ids: special tokens are taken out, the rest goes through a byte-pair encoding of `tokenizers`."""

from __future__ import annotations

import re
import warnings
from typing import TYPE_CHECKING

import numpy as np
from gguf import TokenType

from lowlevel.extras import pip_install

from .byte_letters import BYTE_LETTERS
from .pre_tokenizers import PRE_TOKENIZERS, PreTokenizer
from .vocabulary import BYTE_LEVEL, SENTENCE_PIECE, SPACE, SPECIAL, Vocabulary, byte_token_texts

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tokenizers import Tokenizer as Engine
    from tokenizers.pre_tokenizers import PreTokenizer as Cutter

__all__ = ["Encoder", "SpecialTokens"]


class SpecialTokens:
    """Finds special tokens in a text, the longest first wherever in the text it is, as llama.cpp does."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._strips_right = vocabulary.strips_right
        special = vocabulary.tokens_of_kinds(SPECIAL)
        self._ids = {
            vocabulary.tokens[token]: token for token in special if vocabulary.tokens[token]
        }
        self._always = {
            text
            for text, token in self._ids.items()
            if vocabulary.kinds[token] == TokenType.USER_DEFINED
        }
        # Where one may begin, and how long those are that begin so.
        self._lengths: dict[str, set[int]] = {}
        for text in self._ids:
            self._lengths.setdefault(text[0], set()).add(len(text))
        letters = "".join(map(re.escape, self._lengths))
        self._begin = re.compile(f"[{letters}]" if letters else "(?!)")

    def split(self, text: str, parse_special: bool) -> Iterator[str | int]:
        """The pieces of a text in order: special tokens as ids, what lies between as texts, none empty.

        Parameters
        ----------
        text : str
        parse_special : bool
            Control tokens as well; otherwise the ones that the vocabulary calls user-defined alone.
        """
        found = self._found(text, self._ids if parse_special else self._always)
        pieces: list[str | int] = [text] if text else []
        for special in sorted(found, key=lambda one: -len(one.encode())):
            pieces = [part for piece in pieces for part in self._cut(piece, special)]
        return iter(pieces)

    def _found(self, text, wanted):
        found = set()
        for match in self._begin.finditer(text):
            start = match.start()
            for length in self._lengths[match.group()]:
                part = text[start : start + length]
                if part in wanted:
                    found.add(part)
        return found

    def _cut(self, piece, special):
        if isinstance(piece, int):
            yield piece
            return
        token = self._ids[special]
        begin = 0
        while (place := piece.find(special, begin)) >= 0:
            if place > begin:
                yield piece[begin:place]
            yield token
            begin = place + len(special)
            if token in self._strips_right:
                begin = len(piece) - len(piece[begin:].lstrip(" \t\n\v\f\r"))
        if begin < len(piece):
            yield piece[begin:]


class Encoder:
    """Ids of a text without special tokens.

    Raises
    ------
    ValueError
        For a vocabulary whose way of cutting text is not known; the message names the key.
    ImportError
        `tokenizers` is not installed; the message says what to install.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        vocabulary.check_model()
        make = {BYTE_LEVEL: _byte_level, SENTENCE_PIECE: _sentence_piece}[vocabulary.model]
        self._engine, extra = make(vocabulary)
        self._escapes_spaces = vocabulary.model == SENTENCE_PIECE
        self._prefix = " " if self._escapes_spaces and vocabulary.add_space_prefix else ""
        self._n_vocab = len(vocabulary.tokens)
        # Bytes that have no token got an id behind the vocabulary's, so that they are noticed.
        self._without_token = {self._n_vocab + place: byte for place, byte in enumerate(extra)}

    def encode(self, text: str, begins: bool) -> list[int]:
        """Token ids.

        Parameters
        ----------
        text : str
        begins : bool
            It stands at the beginning, or behind a special token.
        """
        if self._escapes_spaces:
            text = ((self._prefix if begins else "") + text).replace(" ", SPACE)
        ids = self._engine.encode(text, add_special_tokens=False).ids
        if not self._without_token or max(ids, default=0) < self._n_vocab:
            return ids
        missing = sorted({self._without_token[token] for token in ids if token >= self._n_vocab})
        warnings.warn(
            "text: the vocabulary has no tokens for the bytes "
            + ", ".join(f"0x{byte:02X}" for byte in missing)
            + "; they are left out",
            stacklevel=3,
        )
        return [token for token in ids if token < self._n_vocab]


def _library():
    try:
        import tokenizers
    except ImportError as error:
        raise ImportError(
            f"text needs the library tokenizers ({pip_install('text')}); token ids work without"
        ) from error
    return tokenizers


def _with_all_bytes(vocabulary, byte_texts):
    """(ids with one for each byte, bytes that had none; theirs lie behind the vocabulary's)."""
    missing = [byte for byte, text in enumerate(byte_texts) if text not in vocabulary.ids]
    first = len(vocabulary.tokens)
    extra = {byte_texts[byte]: first + place for place, byte in enumerate(missing)}
    return vocabulary.ids | extra, missing


def _byte_level(vocabulary: Vocabulary) -> tuple[Engine, list[int]]:
    """Words are cut by regexes, then written in `BYTE_LETTERS`, which merges join."""
    row = _pre_tokenizer(vocabulary.pre)
    library = _library()
    ids, missing = _with_all_bytes(vocabulary, BYTE_LETTERS)
    engine = library.Tokenizer(
        library.models.BPE(ids, vocabulary.merges, ignore_merges=row.whole_words)
    )
    engine.pre_tokenizer = cutter(row)
    return engine, missing


def cutter(row: PreTokenizer) -> Cutter:
    """What cuts a text into words and writes them in `BYTE_LETTERS`."""
    library = _library()
    cut = library.pre_tokenizers
    splits = [cut.Split(library.Regex(split), "isolated") for split in row.splits]
    return cut.Sequence([*splits, cut.ByteLevel(add_prefix_space=False, use_regex=False)])


def _pre_tokenizer(name: str) -> PreTokenizer:
    if name in PRE_TOKENIZERS:
        return PRE_TOKENIZERS[name]
    what = f"is {name!r}, which is not known" if name else "is missing"
    raise ValueError(
        f"metadata tokenizer.ggml.pre {what}: text would be cut otherwise than the model was trained on; "
        f"give token ids. Known are {', '.join(PRE_TOKENIZERS)}"
    )


def _sentence_piece(vocabulary: Vocabulary) -> tuple[Engine, list[int]]:
    """The whole text is one word of letters; letters without a token are written in tokens of bytes."""
    library = _library()
    ids, missing = _with_all_bytes(vocabulary, byte_token_texts())
    merges = merges_of_scores(vocabulary.ids, vocabulary.scores)
    return library.Tokenizer(library.models.BPE(ids, merges, byte_fallback=True)), missing


def merges_of_scores(ids: dict[str, int], scores: np.ndarray) -> list[tuple[str, str]]:
    """The merges that make of letters what SentencePiece makes: all ways to cut a token in two, best score first.

    Of tokens with one score the order is theirs, where SentencePiece takes the leftmost in the text. That differs
    only in a text in which two of them overlap.
    """
    tokens = list(ids)
    order = np.argsort(-scores[list(ids.values())], kind="stable")
    merges = []
    for place in order.tolist():
        token = tokens[place]
        merges += [
            (left, right)
            for cut in range(1, len(token))
            if (left := token[:cut]) in ids and (right := token[cut:]) in ids
        ]
    return merges
