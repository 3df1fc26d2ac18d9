"""Just enough drawing for a PNG without a library: rectangles, lines, and text in a 5 x 7 font."""

import struct
import zlib

import numpy as np

# Five columns a character from " " to "~", the lowest bit at the top.
_COLUMNS = bytes.fromhex(
    "000000000000005f00000007000700147f147f14242a7f2a12231308646236495522500005030000"
    "001c2241000041221c00082a1c2a0808083e08080050300000080808080800606000002010080402"
    "3e5149453e00427f400042615149462141454b311814127f1027454545393c4a4949300171090503"
    "3649494936064949291e003636000000563600000814224100141414141400412214080201510906"
    "324979413e7e1111117e7f494949363e414141227f4141221c7f494949417f090909013e4149497a"
    "7f0808087f00417f41002040413f017f081422417f404040407f020c027f7f0408107f3e4141413e"
    "7f090909063e4151215e7f09192946464949493101017f01013f4040403f1f2040201f3f4038403f"
    "631408146307087008076151494543007f41410002040810200041417f0004020102044040404040"
    "000102040020545454787f484444383844444420384444487f3854545418087e0901020c5252523e"
    "7f0804047800447d40002040443d007f1028440000417f40007c041804787c080404783844444438"
    "7c14141408081414187c7c080404084854545420043f4440203c4040207c1c2040201c3c4030403c"
    "44281028440c5050503c4464544c44000836410000007f000000413608001008081008"
)
CHARACTER_WIDTH, CHARACTER_HEIGHT = 6, 8


class Raster:
    """An RGB picture.

    Parameters
    ----------
    width, height : int
    background : tuple of int
        Red, green and blue, 0 to 255.

    Attributes
    ----------
    pixels : numpy.ndarray, uint8, (height, width, 3)
    """

    def __init__(self, width, height, background=(255, 255, 255)):
        self.pixels = np.empty((height, width, 3), np.uint8)
        self.pixels[...] = background

    def rectangle(self, left, top, width, height, colour):
        """Fill; what lies outside the picture is left out."""
        left, top, right, bottom = (round(x) for x in (left, top, left + width, top + height))
        self.pixels[max(top, 0) : max(bottom, 0), max(left, 0) : max(right, 0)] = colour

    def dashes(self, left, top, width, colour, *, vertical=False, on=6, off=4):
        """A dashed line, one pixel thick."""
        for start in range(0, int(width), on + off):
            length = min(on, int(width) - start)
            if vertical:
                self.rectangle(left, top + start, 1, length, colour)
            else:
                self.rectangle(left + start, top, length, 1, colour)

    def text(self, left, top, text, colour=(0, 0, 0), *, scale=2, align="left"):
        """Draw a line of text; characters that the font lacks become "?"."""
        left -= {"left": 0, "center": 0.5, "right": 1}[align] * text_width(text, scale)
        for index, character in enumerate(text):
            self._glyph(
                int(left) + index * CHARACTER_WIDTH * scale, int(top), character, colour, scale
            )

    def _glyph(self, left, top, character, colour, scale):
        code = ord(character) if " " <= character <= "~" else ord("?")
        columns = _COLUMNS[5 * (code - 32) : 5 * (code - 31)]
        for x, column in enumerate(columns):
            for y in range(8):
                if column >> y & 1:
                    self.rectangle(left + x * scale, top + y * scale, scale, scale, colour)

    def png(self):
        """The picture as the bytes of a PNG file."""
        height, width, _ = self.pixels.shape
        rows = np.zeros((height, 1 + 3 * width), np.uint8)  # each row starts with its filter: none
        rows[:, 1:] = self.pixels.reshape(height, -1)
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes(), 9)), (b"IEND", b"")]
        return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(*chunk) for chunk in chunks)


def text_width(text, scale=2):
    """Pixels that a line of text takes."""
    return len(text) * CHARACTER_WIDTH * scale


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
