"""GPT-2's alphabet of bytes: byte-level vocabularies are written in 256 printable letters, one a byte.

Bytes that are printable in Latin-1 stand for themselves, the others for letters from U+0100 on, in order
(`bytes_to_unicode` of OpenAI's GPT-2): the space is "Ġ", the newline "Ċ".
"""

import itertools

__all__ = ["BYTE_LETTERS", "LETTER_BYTES"]


def _byte_letters():
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    stand_ins = itertools.count(0x100)
    return tuple(chr(byte if byte in printable else next(stand_ins)) for byte in range(256))


BYTE_LETTERS = _byte_letters()
LETTER_BYTES = {letter: byte for byte, letter in enumerate(BYTE_LETTERS)}
