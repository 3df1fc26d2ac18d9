"""Strings that tokenizers stumble over: scripts, emoji, blanks, code, digits, special tokens in the text; seeded."""

from __future__ import annotations

import random

__all__ = ["odd_strings"]

# One or more sentences a script, with marks, ligatures and right-to-left letters among them.
SCRIPTS = (
    "The quick brown fox jumps over the lazy dog. It's what we've said: they'll go, I'm sure, you'd better!",
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich; STRASSE, Straße.",
    "Voix ambiguë d'un cœur qui préfère les jattes de kiwis à l'été, NAÏVEté, ÉCOLE, İstanbul ığdır",
    "Příliš žluťoučký kůň úpěl ďábelské ódy. Gżegżółka, zażółć gęślą jaźń",
    "Съешь же ещё этих мягких французских булок, да выпей чаю. МИРмир",
    "Ξεσκεπάζω την ψυχοφθόρα βδελυγμία, ΑΒΓ αβγ ς",
    "我能吞下玻璃而不伤身体。人工智能，机器学习：２０２４年！“引号”",
    "いろはにほへと ちりぬるを、カタカナ・ガギグゲゴ ﾊﾝｶｸ 々〇 東京タワー。",
    "키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.",
    "नमस्ते दुनिया, यह हिन्दी में लिखा हुआ एक वाक्य है। १२३",
    "আমি কাঁচ খেতে পারি; தமிழ் மொழி; ગુજરાતી; తెలుగు",
    "สวัสดีชาวโลก ภาษาไทยไม่มีช่องว่าง ๑๒๓",
    "مرحبا بالعالم، هذه جملة باللغة العربيّة ١٢٣؟",
    "שלום עולם, זה משפט בעברית עִם נִקּוּד",
    "Ես կարող եմ ապակի ուտել; მინას ვჭამ; ᏣᎳᎩ; ⴰⵎⴰⵣⵉⵖ",
    "cafe\u0301 e\u0308 n\u0303 Z\u0351\u036b\u0343a\u030b\u0346l\u034cgo \u0628\u0650\u0633\u0652\u0645",
    "\U00010400\U00010428 \U0001d400\U0001d41a𝔘𝔫𝔦 \U00020000\U0002a6d6 ﬁﬂ ① ² ½ Ⅷ ㊙",
)
EMOJI = "😀 👍🏽 👨‍👩‍👧‍👦 🇩🇪🇫🇷 ❤️ 🏳️‍🌈 ☃ ⌚ 🤷🏿‍♀️ ♞ ➀ 🫠"
CODE = (
    'def f(x: int = 0) -> str:\n    return f"{x!r:>10}"  # comment\n\n\nclass A(B):\n\tpass\n',
    "for (int i = 0; i < n; ++i) { a[i] += b[i]*c; }\r\n\r\n// getElementById XMLHttpRequest snake_case_name\r\n",
    "SELECT * FROM \"t\" WHERE a='it''s' AND b<>1e-5 OR c LIKE '%x\\_y';",
    '<div class="a b"><table><tr><td>1</td></tr></table></div> <s>gone</s> &amp; <h1>Title</h1>',
    '{"key": [1, 2.5, -3e+10, null, true], "nested": {"a": "\\u00e9\\n"}}',
    "https://example.org/path?q=a%20b&c=d#frag user@host.com C:\\Users\\x $HOME/.cache `ls -la | grep x`",
    "\\frac{\\partial u}{\\partial t} = \\nabla^2 u \\quad \\forall x \\in \\mathbb{R}^n",
)
BLANKS = (
    " ", "  ", "   ", "\n", "\n\n", "\n\n\n", "\t", "\t\t", "\r\n", "\r", " \n", "\n ", "  \n\n  ", "\u00a0", "\u3000",
    "\u2003", "\u200b", "\u2028", "\u0085", "\v", "\f", "\ufeff", "\u00ad", "▁", "▁▁",
)  # fmt: skip
DIGITS = (
    "0", "7", "42", "123", "1234", "12345678901234567890", "3.14159", "1,000,000", "0x1F", "1e10", "２０２４", "٣٤٥", "१२",
    "2024-12-01T10:20:30Z", "+49 (0)30 1234-567", "5%", "€9.99", "£3", "½", "x²", "10⁻³",
)  # fmt: skip
SIGNS = (
    "!", "...", "?!", "--", "—", "…", "'", "''", "\"", "''s", "'S", "'LL", "’s", "()", "[](){}", "<>", "<|", "|>", "#", "$$", "^_^",
    "~~", "`", "```", "=-=-=-=-=", "==========", "++++", "//", "\\", "@@", "&&", "；", "、。", "「」", "\x00", "\x01", "\x7f",
    "\u0300", "\u0489", "\ue000", "\ufffd",
)  # fmt: skip


def odd_strings(n: int, special: tuple[str, ...] = (), seed: int = 0) -> list[str]:
    """`n` strings, the same for the same arguments; some have names of special tokens in them.

    Parameters
    ----------
    n : int
    special : tuple of str
        Names of special tokens of the vocabulary.
    seed : int
    """
    whole = ["", *SCRIPTS, EMOJI, *CODE, *BLANKS, *DIGITS, *SIGNS, *special]
    whole += [blank * times for blank in BLANKS for times in (5, 17, 40)]
    pick = random.Random(seed)
    sources = [
        _words(SCRIPTS),
        EMOJI.split(" "),
        _words(CODE),
        BLANKS,
        DIGITS,
        SIGNS,
        special or ("x",),
    ]
    weights = [5, 1, 3, 4, 2, 3, 1]
    while len(whole) < n:
        parts = [
            pick.choice(pick.choices(sources, weights)[0]) * pick.choice((1, 1, 1, 1, 2, 3))
            for _ in range(pick.randint(2, 14))
        ]
        whole.append(pick.choice(("", "", " ")).join(parts))
    return whole[:n]


def _words(texts):
    return [word for text in texts for word in text.split(" ")]
