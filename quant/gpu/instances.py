"""The CUDA kernels of this floor, see lowlevel/gpu/instances.py.

A block format NAME has a file name.cu with a struct NAME, which the kernel template of
dequantize.cuh takes, and a file matmul_name.cu with another, which those of products take. What the row of
formats.py says of it, they include as "constants/name.cuh".
"""

from typing import NamedTuple

from lowlevel.gpu.instances import Kernel, register

from ..formats import FORMATS, BlockFormat
from .constants import constants, header

PACKAGE = "quant.gpu"
# Headers with a format's numbers, and sources that only say which format's kernels they are.
GENERATED = {
    f"constants/{block.name.lower()}.cuh": header(block)
    for block in FORMATS.values()
    if not block.is_float
} | {
    f"matmul_wgmma_{block.name.lower()}.cu": (
        f"// Products of many rows of x with {block.name}.\n"
        f'#include "{block.name.lower()}.cu"\n#include "matmul_wgmma.cuh"\n'
    )
    for block in FORMATS.values()
    if not block.is_float
}
# dtype name -> the struct of float_types.cuh, its Bits, how many make 16 bytes
OUTPUTS = {
    "float32": ("Float32", "f4", 4),
    "float16": ("Float16", "u2", 8),
    "bfloat16": ("Bfloat16", "u2", 8),
}
_FLOAT_TYPES = {"F32": "Float32", "F16": "Float16", "BF16": "Bfloat16"}


def _dequantize(block, dtype, aligned):
    struct, bits, _ = OUTPUTS[dtype]
    flag = "true" if aligned else "false"
    if block.is_float:
        file, name = "floats.cu", f"convert<{_FLOAT_TYPES[block.name]}, {struct}, {flag}>"
        counts = ("i8", "i8")
    else:
        file, name = f"{block.name.lower()}.cu", f"dequantize<{block.name}, {struct}, {flag}>"
        counts = ("u4",) * 5  # row_blocks, n_rows, row_tiles, tile_columns, tile_rows
    return Kernel(PACKAGE, file, name, ("const u1*", "i8", f"{bits}*", "i8", *counts), 256)


# (format's name, dtype's name, aligned?) -> Kernel
DEQUANTIZE = {
    (block.name, dtype, aligned): _dequantize(block, dtype, aligned)
    for block in FORMATS.values()
    for dtype in OUTPUTS
    for aligned in (True, False)
}


# ---- products: see matmul.py -------------------------------------------------------------------------

CALL = "V72"  # matmul_call.cuh's MatmulCall
_TARGET = ("V*", "const i4*", "const i4*", CALL)  # out, order, groups
_BYTES = ("const u1*", "const u1*", "const f4*", "const i4*", *_TARGET)  # weights, x, scales, sums
_FLOATS = ("const u1*", "const f4*", *_TARGET)  # weights, x
_ANY = ("const u1*", "const V*", *_TARGET)  # weights, x as it is given
STREAM_COLUMNS = (1, 2, 4, 8)  # rows of x that a launch of "matvec" takes at most
STREAM_THREADS, SINGLE_THREADS = 256, 512  # kStreamThreads, kSingleThreads
EXACT_STREAM_COLUMNS = (1, 4)


class Tile(NamedTuple):
    """What a block of the product by tiles makes."""

    threads: int  # four times the rows of weights
    columns: int  # rows of x


TILES = (Tile(128, 16), Tile(128, 64), Tile(256, 128))


class WgmmaTile(NamedTuple):
    """What a block of the product by warpgroups makes."""

    threads: int
    columns: int  # rows of x


WGMMA_TILES = (WgmmaTile(512, 64), WgmmaTile(512, 128), WgmmaTile(384, 256))
WGMMA_ROWS = 128  # of weights: kTileRows
WGMMA_ARCHITECTURE = "90a"


def _product(block, name, parameters, n_threads):
    file = "matmul_floats.cu" if block.is_float else f"matmul_{block.name.lower()}.cu"
    return Kernel(PACKAGE, file, name, parameters, n_threads)


# (format's name, columns) -> Kernel
MATVEC = {
    (block.name, columns): _product(
        block, f"matvec<{block.name}, {columns}>", _BYTES, STREAM_THREADS
    )
    for block in FORMATS.values()
    if not block.is_float
    for columns in STREAM_COLUMNS
}
MATVEC_EXACT = {
    (block.name, columns): _product(
        block, f"matvec_exact<{block.name}, {columns}>", _FLOATS, STREAM_THREADS
    )
    for block in FORMATS.values()
    for columns in EXACT_STREAM_COLUMNS
}
# Rows of float weights, of all matrices of a call, that a block each takes.
MOST_FEW_ROWS = 512
MATVEC_FEW = {
    (block.name, columns): _product(block, f"matvec_few<{block.name}, {columns}>", _FLOATS, 256)
    for block in FORMATS.values()
    if block.is_float
    for columns in EXACT_STREAM_COLUMNS
}
MATVEC_SINGLE = {
    block.name: _product(block, f"matvec_single<{block.name}>", _ANY, SINGLE_THREADS)
    for block in FORMATS.values()
    if not block.is_float
}
MATMUL_TILES = {
    (block.name, tile): _product(
        block, f"matmul_tiles<{block.name}, {tile.threads}, {tile.columns}>", _BYTES, tile.threads
    )
    for block in FORMATS.values()
    if not block.is_float
    for tile in TILES
}
MATMUL_EXACT = {
    block.name: _product(block, f"matmul_exact<{block.name}>", _FLOATS, 128)
    for block in FORMATS.values()
}
# (format's name, tile) -> Kernel
MATMUL_WGMMA = {
    (block.name, tile): Kernel(
        PACKAGE,
        f"matmul_wgmma_{block.name.lower()}.cu",
        f"matmul_wgmma<{block.name}, {tile.threads}, {tile.columns}>",
        ("const u1*", "const u1*", "const u1*", *_TARGET),  # weights, more weights, x
        tile.threads,
        WGMMA_ARCHITECTURE,
    )
    for block in FORMATS.values()
    if not block.is_float
    for tile in WGMMA_TILES
}


def bytes_of_x(block: BlockFormat) -> tuple[int, bool, bool]:
    """How x becomes bytes for a format: (weights that share a scale, interleaved?, sums?)."""
    of = constants(block)
    return block.block_weights, of.interleaved, of.sums


_X = ("const V*", "const i4*", "V24", "const i4*")  # x, rows, RowsOfX, order
# (what `bytes_of_x` gives, in the order of kernels that stream?) -> Kernel
QUANTISE_ROWS = {
    (of_x, streamed): Kernel(
        PACKAGE,
        "matmul_x.cu",
        f"quantise_rows<{', '.join(str(each).lower() for each in (*of_x, streamed))}>",
        (*_X, "u1*", "f4*", "i2*", "i4"),
        256,
    )
    for of_x in sorted({bytes_of_x(block) for block in FORMATS.values() if not block.is_float})
    for streamed in (False, True)
}
GATHER_ROWS = {
    interleaved: Kernel(
        PACKAGE,
        "matmul_x.cu",
        f"gather_rows<{str(interleaved).lower()}>",
        (*_X, "f4*", "i4", "i4"),
        256,
    )
    for interleaved in (False, True)
}
TILE_ROWS = Kernel(PACKAGE, "matmul_x.cu", "tile_rows", (*_X, "u1*", "i4", "i4"), 256)
SORT_THREADS = 1024
# dtype of the experts' numbers -> Kernel
SORT_ROWS = {
    dtype: Kernel(
        PACKAGE,
        "matmul_x.cu",
        f"sort_rows<{c_type}>",
        (f"const {code}*", "i8", "i4", "i4", "i4*", "i4", "i4*", "i4", "i4", "i4")
        + ("V*", "i8", "i4", "i4"),  # out
        SORT_THREADS,
    )
    for dtype, code, c_type in (("int32", "i4", "int"), ("int64", "i8", "long long"))
}
PRODUCTS = (
    TILE_ROWS,
    *SORT_ROWS.values(),
    *(
        kernel
        for table in (
            MATVEC,
            MATVEC_SINGLE,
            MATVEC_EXACT,
            MATVEC_FEW,
            MATMUL_TILES,
            MATMUL_EXACT,
            MATMUL_WGMMA,
            QUANTISE_ROWS,
            GATHER_ROWS,
        )
        for kernel in table.values()
    ),
)
KERNELS = (*DEQUANTIZE.values(), *PRODUCTS)
register(PACKAGE, KERNELS, GENERATED)
