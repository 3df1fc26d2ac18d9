"""The vocabulary in a GGUF file's metadata, checked as from a hostile hand, with the roles of its special tokens.

Roles are given as llama.cpp gives them (src/llama-vocab.cpp): by the ids in the metadata, and, since many files
do not say them all, by the tokens' text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from gguf import TokenType

from ...gguf.header import shown
from .byte_letters import LETTER_BYTES
from .pre_tokenizers import PRE_TOKENIZERS

if TYPE_CHECKING:
    from typing import Any

__all__ = ["BYTE_LEVEL", "SENTENCE_PIECE", "SPACE", "Vocabulary"]

BYTE_LEVEL, SENTENCE_PIECE = "gpt2", "llama"  # as tokenizer.ggml.model calls them
UNDEFINED = 0  # a token_type that GGUF does not name; such tokens stand for nothing
SPACE = "\u2581"  # stands for the space in SentencePiece's tokens
# Far above any real vocabulary (262144 tokens of at most some hundred letters): they bound what a hostile one costs.
MAX_TOKENS = 2**20
MAX_TOKEN_LETTERS = 2**10

PREFIX = "tokenizer.ggml."
# Tokens that end a turn or a text, by their text; the models whose they are: Llama 3, ChatML, Phi 3, gpt-oss,
# Solar, Gemma 2 and 3, GPT-2, Llama 2, CodeLlama, Kimi-K2, Granite, SmolDocling, Gemma 4, DeepSeek, MiniMax.
END_OF_GENERATION = (
    "<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
    "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
)  # fmt: skip
END_OF_TURN = ("<|eot_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<EOT>", "_<EOT>", "[EOT]",
               "<end_of_utterance>")  # fmt: skip
# Metadata keys of tokens that parts of a file are filled in by (the older names too), with the texts by which one
# is found that no key names, and whether it ends a text as well.
FILL_IN = (
    (("fim_pre_token_id", "prefix_token_id"), False,
     ("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<｜fim▁begin｜>", "<PRE>", "▁<PRE>", "<|code_prefix|>")),
    (("fim_suf_token_id", "suffix_token_id"), False,
     ("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<｜fim▁hole｜>", "<SUF>", "▁<SUF>", "<|code_suffix|>")),
    (("fim_mid_token_id", "middle_token_id"), False,
     ("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<｜fim▁end｜>", "<MID>", "▁<MID>", "<|code_middle|>")),
    (("fim_pad_token_id",), True, ("<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]")),
    (("fim_rep_token_id",), True, ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>")),
    (("fim_sep_token_id",), True, ("<|file_sep|>",)),
)  # fmt: skip
# Tokens that are looked for in a text before it is cut into words; the first two only where that is asked for.
SPECIAL = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
# gpt-oss writes its turns with these: they are shown, and found in any text.
CHANNEL_MARKS = ("<|channel|>", "<|message|>", "<|start|>", "<|constrain|>")
# Where all the others end a text, <|end|> is only the end of a part of it (gpt-oss, Solar).
PARTS_OF_A_TURN = (("<|return|>", "<|call|>"), ("<|return|>", "<|calls|>"),
                   ("<|flush|>", "<|call|>"), ("<|flush|>", "<|calls|>"))  # fmt: skip


@dataclass(frozen=True)
class Vocabulary:
    """What the metadata says of tokens.

    Attributes
    ----------
    model : str
        ``tokenizer.ggml.model``: BYTE_LEVEL, SENTENCE_PIECE, or one that is not known here.
    pre : str
        ``tokenizer.ggml.pre``, "" where it is missing.
    tokens : tuple of str
    ids : dict of str to int
        The tokens' places; one without text has none.
    kinds : bytes
        A gguf.TokenType each, with what the text of a token says of it.
    scores : numpy.ndarray
        float32 (n_vocab,): of SENTENCE_PIECE, the higher the earlier a token is made; else empty.
    merges : list of (str, str)
        Of BYTE_LEVEL, the earliest first; else empty.
    bos_id, eos_id, eot_id : int or None
        Begin of a text, its end, the end of a turn.
    eos_ids : frozenset of int
        All after which nothing more is to be generated.
    before, after : tuple of int
        The tokens that a text begins and ends with.
    add_space_prefix : bool
        Whether a space is put before a text.
    strips_right : frozenset of int
        Special tokens behind which blanks are not part of the text.
    """

    model: str
    pre: str
    tokens: tuple[str, ...]
    ids: dict[str, int]
    kinds: bytes
    scores: np.ndarray
    merges: list[tuple[str, str]]
    bos_id: int | None
    eos_id: int | None
    eot_id: int | None
    eos_ids: frozenset[int]
    before: tuple[int, ...]
    after: tuple[int, ...]
    add_space_prefix: bool
    strips_right: frozenset[int]

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Vocabulary:
        """Read and check it.

        Raises
        ------
        ValueError
            A key of ``tokenizer.ggml.`` is missing, of the wrong kind, or contradicts the others; the message
            names it.
        """
        model = _text(metadata, "model")
        pre = _text(metadata, "pre", "")
        tokens = _tokens(metadata)
        ids = _ids(tokens)
        kinds = _kinds(metadata, tokens)
        roles = _Roles(metadata, tokens, ids, kinds, model == SENTENCE_PIECE)
        return cls(
            model=model,
            pre=pre,
            tokens=tokens,
            ids=ids,
            kinds=kinds.astype(np.uint8).tobytes(),
            scores=_scores(metadata, len(tokens)) if model == SENTENCE_PIECE else np.empty(0, "f4"),
            merges=_merges(metadata, ids) if model == BYTE_LEVEL else [],
            bos_id=roles.bos_id,
            eos_id=roles.eos_id,
            eot_id=roles.eot_id,
            eos_ids=frozenset(roles.end_of_generation),
            before=_added(metadata, "bos", roles.bos_id, _default_add_bos(model, pre)),
            after=_added(metadata, "eos", roles.eos_id, False),
            add_space_prefix=_flag(metadata, "add_space_prefix", model == SENTENCE_PIECE),
            strips_right=_strips_right(metadata.get("general.name"), ids, kinds),
        )

    def check_model(self) -> None:
        """ValueError if nobody here knows how this kind of tokenizer writes text."""
        if self.model not in (BYTE_LEVEL, SENTENCE_PIECE):
            raise ValueError(
                f"metadata {PREFIX}model is {self.model!r}; only {BYTE_LEVEL!r} and {SENTENCE_PIECE!r} are known: "
                "text cannot be read or written, token ids work"
            )

    def piece(self, token: int, special: bool = False) -> bytes:
        """The bytes that a token stands for; of a control token its name if `special`, else nothing."""
        text, kind = self.tokens[token], self.kinds[token]
        if kind == TokenType.NORMAL:
            if self.model == SENTENCE_PIECE:
                return text.replace(SPACE, " ").encode()
            try:
                return bytes([LETTER_BYTES[letter] for letter in text])
            except KeyError:  # a token that was added in plain letters
                return text.encode()
        if kind == TokenType.BYTE:
            return bytes([int(text[3:5], 16)])
        shown_always = kind == TokenType.USER_DEFINED
        return text.encode() if shown_always or (special and kind in SPECIAL) else b""

    def tokens_of_kinds(self, kinds: tuple[TokenType, ...]) -> list[int]:
        """All tokens of some kinds, in order."""
        return np.flatnonzero(np.isin(np.frombuffer(self.kinds, np.uint8), kinds)).tolist()


def _default_add_bos(model, pre):
    return model == SENTENCE_PIECE or (pre in PRE_TOKENIZERS and PRE_TOKENIZERS[pre].add_bos)


# ---------------------------------------------------------------- single values


def _bad(key, expected, value):
    return ValueError(f"metadata {PREFIX}{key}: expected {expected}, got {shown(value)}")


def _text(metadata, key, *default):
    value = metadata.get(PREFIX + key, *default)
    if not isinstance(value, str):
        raise _missing(key) if value is None else _bad(key, "a text", value)
    return value


def _missing(key):
    return ValueError(f"metadata {PREFIX}{key} is missing: the file holds no whole tokenizer")


def _flag(metadata, key, default):
    value = metadata.get(PREFIX + key, default)
    if not isinstance(value, (bool, np.bool_)):
        raise _bad(key, "true or false", value)
    return bool(value)


def _added(metadata, which, token, default):
    """The token as a tuple if ``add_bos_token`` or ``add_eos_token`` holds, which asks for there being one."""
    if not _flag(metadata, f"add_{which}_token", default):
        return ()
    if token is None:
        raise ValueError(
            f"metadata {PREFIX}add_{which}_token is true, but {PREFIX}{which}_token_id is missing"
        )
    return (token,)


def _token_id(metadata, keys, n_vocab, default=None):
    """The token that the first of `keys` names that is there."""
    for key in keys:
        value = metadata.get(PREFIX + key)
        if value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
            raise _bad(key, "a whole number", value)
        if not 0 <= value < n_vocab:
            raise _bad(key, f"one of the {n_vocab} tokens", value)
        return int(value)
    return default if default is not None and default < n_vocab else None


# ---------------------------------------------------------------- arrays


def _strings(metadata, key):
    value = metadata.get(PREFIX + key)
    if value is None:
        raise _missing(key)
    if not isinstance(value, (tuple, list)) or set(map(type, value)) - {str}:
        raise _bad(key, "an array of texts", value)
    return value


def _tokens(metadata):
    tokens = tuple(_strings(metadata, "tokens"))
    if not 0 < len(tokens) <= MAX_TOKENS:
        raise _bad("tokens", f"1 to {MAX_TOKENS} tokens", len(tokens))
    longest = max(map(len, tokens))
    if longest > MAX_TOKEN_LETTERS:
        raise _bad("tokens", f"tokens of at most {MAX_TOKEN_LETTERS} letters", longest)
    return tokens


def _ids(tokens):
    ids = dict(zip(tokens, range(len(tokens)), strict=True))
    n_empty = tokens.count("")
    if len(ids) != len(tokens) - max(0, n_empty - 1):
        twice = next(i for i, token in enumerate(tokens) if token and ids[token] != i)
        raise ValueError(
            f"metadata {PREFIX}tokens: {shown(tokens[twice])} is there twice, as {twice} and "
            f"{ids[tokens[twice]]}"
        )
    ids.pop("", None)
    return ids


def _numbers(metadata, key, n_vocab, kinds):
    value = np.asarray(metadata[PREFIX + key])
    if value.ndim != 1 or value.dtype.kind not in kinds:
        raise _bad(key, "an array of numbers", metadata[PREFIX + key])
    if len(value) != n_vocab:
        raise _bad(key, f"one for each of the {n_vocab} tokens", f"{len(value)} of them")
    return value


def _kinds(metadata, tokens):
    if PREFIX + "token_type" not in metadata:
        return np.full(len(tokens), TokenType.NORMAL, np.int8)
    value = _numbers(metadata, "token_type", len(tokens), "iu")
    known = (value >= 0) & (value <= max(TokenType))
    kinds = np.where(known, value, UNDEFINED).astype(np.int8)
    for token in np.flatnonzero(kinds == TokenType.BYTE):
        if not _is_byte(tokens[token]):
            raise ValueError(
                f"metadata {PREFIX}token_type: token {token} is said to be a byte, but is "
                f"{shown(tokens[token])}, not of the form <0x0A>"
            )
    return kinds


def _is_byte(text):
    hexadecimal = "0123456789ABCDEFabcdef"
    return (
        len(text) == 6
        and text[:3] == "<0x"
        and text[5] == ">"
        and all(digit in hexadecimal for digit in text[3:5])
    )


def _scores(metadata, n_vocab):
    if PREFIX + "scores" not in metadata:
        raise _missing("scores")
    scores = _numbers(metadata, "scores", n_vocab, "fiu").astype(np.float32)
    if not np.isfinite(scores).all():
        raise _bad("scores", "finite numbers", float(scores[~np.isfinite(scores)][0]))
    return scores


def _merges(metadata, ids):
    """The merges as pairs; each makes a token of two, and no pair is there twice."""
    texts = _strings(metadata, "merges")
    most = sum(map(len, ids))
    if len(texts) > most:
        raise _bad("merges", f"at most {most}, all ways to cut the tokens in two", len(texts))
    merges = []
    for rank, text in enumerate(texts):
        between = text.find(" ", 1)  # the first letter may be a space itself
        left, right = text[:between], text[between + 1 :]
        merges.append((left, right))
        if not (between > 0 and left in ids and right in ids and left + right in ids):
            raise ValueError(
                f"metadata {PREFIX}merges: merge {rank}, {shown(text)}, does not make a token of two tokens"
            )
    if len(set(merges)) < len(merges):
        raise ValueError(f"metadata {PREFIX}merges: a pair is there twice")
    return merges


# ---------------------------------------------------------------- special tokens


class _Roles:
    """Who begins and ends; `kinds` is set right for tokens whose text says what they are."""

    def __init__(self, metadata, tokens, ids, kinds, sentence_piece):
        n_vocab = len(tokens)
        # Files of Llama 2's time leave out its own.
        default_bos, default_eos = (1, 2) if sentence_piece else (None, None)
        self.bos_id = _token_id(metadata, ["bos_token_id"], n_vocab, default_bos)
        self.eos_id = _token_id(metadata, ["eos_token_id"], n_vocab, default_eos)
        by_text = next((ids[text] for text in END_OF_TURN if text in ids), None)
        self.eot_id = _token_id(metadata, ["eot_token_id"], n_vocab, by_text)
        end_of_message = _token_id(metadata, ["eom_token_id"], n_vocab)
        fill_in = []
        for keys, ends, texts in FILL_IN:
            token = _token_id(metadata, keys, n_vocab)
            if token is None:
                token = next((ids[text] for text in texts if text in ids), None)
                if token is not None:
                    kinds[token] = TokenType.CONTROL
            fill_in += [token] if ends else []
        by_text = [ids[text] for text in END_OF_GENERATION if text in ids]
        kinds[by_text] = TokenType.CONTROL
        kinds[[ids[text] for text in CHANNEL_MARKS if text in ids]] = TokenType.USER_DEFINED
        named = [self.eos_id, self.eot_id, end_of_message, *fill_in]
        self.end_of_generation = {*by_text, *(token for token in named if token is not None)}
        ends = {tokens[token] for token in self.end_of_generation}
        if "<|end|>" in ends and any(ends.issuperset(parts) for parts in PARTS_OF_A_TURN):
            self.end_of_generation.remove(ids["<|end|>"])
            kinds[ids["<|end|>"]] = TokenType.USER_DEFINED


def _strips_right(name, ids, kinds):
    """Phi 3 was trained so; no key says it, and llama.cpp goes by the model's name as well."""
    if not isinstance(name, str) or not any(mark in name.lower() for mark in ("phi-3", "phi3")):
        return frozenset()
    special = np.flatnonzero(np.isin(kinds, SPECIAL)).tolist()
    keep = {ids.get(text) for text in ("<unk>", "<s>", "<|endoftext|>")}
    return frozenset(token for token in special if token not in keep)


def byte_token_texts() -> tuple[str, ...]:
    """SentencePiece's tokens for single bytes: <0x00> to <0xFF>."""
    return tuple(f"<0x{byte:02X}>" for byte in range(256))
