r"""How text is cut into words before its bytes are merged: a row a name of ``tokenizer.ggml.pre``.

The regexes are those of the models' own tokenizer.json, in Oniguruma's syntax, applied one after the other: each
cuts the pieces that the one before left, and what it does not match stays a piece. llama.cpp runs most of them as
they are. Where it has no classes for combining marks and for the case of letters outside ASCII, it cuts otherwise
(gpt-4o and tekken: "नमस्ते", "ÉCOLE"; kimi-k2: these and "camelCase"), and deepseek-llm's at U+3000. A model's own
tokens rarely cross such a cut in English or code, often in Hindi. tests/models/test_tokenizer.py has llama.cpp's
forms, and holds that nothing else differs.
"""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["PRE_TOKENIZERS", "PreTokenizer"]


class PreTokenizer(NamedTuple):
    """One way of cutting.

    Attributes
    ----------
    names : tuple of str
        What ``tokenizer.ggml.pre`` calls it.
    splits : tuple of str
        Regexes, in the order in which they cut.
    whole_words : bool
        A word that is a token stays one, whatever the merges would make of it (``ignore_merges``).
    add_bos : bool
        What a file means that does not have ``add_bos_token``.
    """

    names: tuple[str, ...]
    splits: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False


_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_SUFFIXES = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"

_GPT_2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def _words(digits):
    """cl100k's cut and its kin: a letter run takes one sign before it, a run of signs the newlines behind it."""
    return (
        rf"{_SUFFIXES}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|"
        + _SPACES
    )


def _cased_words(digits, suffixes="", but="", newlines=r"\r\n/"):
    """o200k's cut and its kin: a word also ends where a small letter is followed by a capital."""
    upper = rf"[\p{{Lu}}\p{{Lt}}\p{{Lm}}\p{{Lo}}\p{{M}}{but}]"
    lower = rf"[\p{{Ll}}\p{{Lm}}\p{{Lo}}\p{{M}}{but}]"
    before = r"[^\r\n\p{L}\p{N}]?"
    return (
        rf"{before}{upper}*{lower}+{suffixes}|{before}{upper}+{lower}*{suffixes}|"
        rf"{digits}| ?[^\s\p{{L}}\p{{N}}]+[{newlines}]*|{_SPACES}"
    )


# The letters of DeepSeek-LLM's second cut: those with a case, as Unicode had them in 2019.
_CASED_LETTERS = (
    "A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373\u0376"
    "\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    "\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    "\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d\u1f5f-\u1f7d"
    "\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb\u1fe0-\u1fec\u1ff2-\u1ff4"
    "\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128\u212a-\u212d\u212f-\u2134\u2139"
    "\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d"
    "\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a"
    "\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3\U000104d8-\U000104fb\U00010c80-\U00010cb2"
    "\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_ASCII_SIGNS = r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~]"""

_ROWS = (
    # No model's own: what llama.cpp's converter wrote where it knew no better.
    PreTokenizer(("default",), (r"[\p{P}\$\+<=>\^~\|]+", _GPT_2, r"\p{N}+", "[0-9][0-9][0-9]")),
    PreTokenizer(
        ("gpt-2", "phi-2", "olmo", "mpt", "gigachat", "mellum", "a.x-4.0", "exaone4", "trillion"),
        (_GPT_2,),
    ),
    PreTokenizer(
        ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"),
        (r"\p{N}", _GPT_2),
    ),
    PreTokenizer(
        ("llama-bpe", "llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "lfm2"),
        (_words(r"\p{N}{1,3}"),),
        whole_words=True,
        add_bos=True,
    ),
    PreTokenizer(("glm4", "chatglm-bpe"), (_words(r"\p{N}{1,3}"),)),
    PreTokenizer(("smaug-bpe", "dbrx"), (_words(r"\p{N}{1,3}"),)),
    PreTokenizer(
        ("qwen2", "deepseek-r1-qwen", "kormo", "megrez", "stablelm2", "hunyuan", "solar-open"),
        (_words(r"\p{N}"),),
    ),
    PreTokenizer(
        ("gpt-4o", "llama4", "kanana2", "minimax-m2"), (_cased_words(r"\p{N}{1,3}", _SUFFIXES + "?"),)
    ),
    PreTokenizer(("tekken",), (_cased_words(r"\p{N}"),), whole_words=True, add_bos=True),
    PreTokenizer(
        ("kimi-k2",),
        (
            r"[\p{Han}]+|"
            + _cased_words(r"\p{N}{1,3}", _SUFFIXES + "?", r"&&[^\p{Han}]", r"\r\n"),
        ),
    ),
    PreTokenizer(
        ("deepseek-llm",),
        (
            r"[\r\n]",
            rf"\s?[{_CASED_LETTERS}]+",
            "\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+",
            r"\s+$",
            "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
            r"\p{N}",
        ),
    ),
    PreTokenizer(
        ("deepseek-coder",),
        (
            r"[\r\n]",
            r"\s?\p{L}+",
            r"\s?\p{P}+",
            "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+",
            r"\p{N}",
        ),
    ),
    PreTokenizer(
        ("deepseek-v3", "hunyuan-dense", "joyai-llm"),
        (
            r"\p{N}{1,3}",
            "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
            _ASCII_SIGNS + r"[A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES,
        ),
    ),
)  # fmt: skip
# What a name of tokenizer.ggml.pre stands for.
PRE_TOKENIZERS = {name: row for row in _ROWS for name in row.names}
