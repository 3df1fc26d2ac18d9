"""Every CUDA kernel and template instance: the one table that the loader, the tests and the table of
resources (lowlevel/gpu/resources.py) share.

The ground's own kernels stand here. A floor above hands in its own when the module that lists them is imported
(`register`), with the sources and headers that are no files but made from a table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple


class Kernel(NamedTuple):
    """A kernel that can be launched.

    Attributes
    ----------
    package, file : str
        Where the source is: "quant.gpu", "q2_k.cu".
    name : str
        An extern "C" function, or a template instance such as ``"dequantize<Q2_K, Float32, true>"``.
    parameters : tuple of str
        NumPy type codes in order: "i8" a scalar, "f4*" and "const u1*" arrays of that type,
        "const V*" arrays of any; "V80" a structure of 80 bytes; "map" a `tensor_map.TensorMap`.
    block : int
        Threads of a block, as ``__launch_bounds__`` says.
    architecture : str, optional
        The only one that its instructions are of: "90a".
    """

    package: str
    file: str
    name: str
    parameters: tuple
    block: int
    architecture: str | None = None

    @property
    def source(self) -> tuple[str, str]:
        return self.package, self.file


# The widest unit that divides addresses, strides and the innermost length copies fastest.
COPY_UNITS = {1: "unsigned char", 2: "unsigned short", 4: "unsigned", 8: "uint2", 16: "uint4"}
COPY = {
    n_bytes: Kernel(
        package="lowlevel.gpu",
        file="concat.cu",
        name=f"copy_strided<{unit}>",
        parameters=("const V*", "V*", "V208", "u4"),
        block=256,
    )
    for n_bytes, unit in COPY_UNITS.items()
}
TRANSPOSED = {
    n_bytes: Kernel(
        package="lowlevel.gpu",
        file="concat.cu",
        name=f"copy_transposed<{unit}>",
        parameters=("const V*", "V*", "V232"),
        block=256,
    )
    for n_bytes, unit in COPY_UNITS.items()
    if n_bytes < 16
}
JOIN_SOURCES = 4
JOIN = {
    n_bytes: Kernel(
        package="lowlevel.gpu",
        file="concat.cu",
        name=f"join_rows<{unit}>",
        parameters=(*["const V*"] * JOIN_SOURCES, "V*", "V56", "u4"),
        block=256,
    )
    for n_bytes, unit in COPY_UNITS.items()
}
# The types that attention's kernels are made for, and their names there.
FLOAT_TYPES = {"float32": "Float32", "float16": "Float16", "bfloat16": "Bfloat16"}
ATTENTION_CALL = "V184"  # attention_call.cuh's AttentionCall, attention.py's CALL


class FusedShape(NamedTuple):
    """The tile of a fused attention kernel, as its .cu file defines it."""

    rows: int  # TILE_ROWS: query rows of a block
    keys: int  # TILE_KEYS
    warps: int  # WARPS
    blocks: int  # at work on one multiprocessor, as registers and shared memory allow
    latent: bool = False  # attention_latent.cuh: reads V out of K's rows
    k_stages: int = 1  # STAGES_K: tiles of K in shared memory, unless latent

    @property
    def counts_keys(self) -> bool:
        """Whether its kernels can read how many keys there are where they run: all without KEYS_FROM_HOST."""
        return self.latent or self.rows < 128


# (d_k, d_v) -> tile
FUSED_SHAPES = {
    (64, 64): FusedShape(rows=128, keys=64, warps=4, blocks=2, k_stages=2),
    (128, 128): FusedShape(rows=128, keys=64, warps=4, blocks=2),
    (192, 128): FusedShape(rows=128, keys=64, warps=4, blocks=2),
    (576, 512): FusedShape(rows=64, keys=64, warps=8, blocks=1, latent=True),
}
# Where the query rows of a K/V head are few, tiles have no more than these: blocks are small, and so many that
# copies of K and V fill the memory link. (d_k, d_v) -> tiles, the smallest first
FEW_ROWS_SHAPES = {
    (d_k, d_v): tuple(
        FusedShape(rows=rows, keys=64, warps=rows // 16, blocks=blocks, k_stages=k_stages)
        for rows, blocks in blocks_of.items()
    )
    for d_k, d_v, k_stages, blocks_of in (
        (64, 64, 2, {32: 4, 64: 4}),
        (128, 128, 2, {32: 4, 64: 3}),
        (192, 128, 1, {32: 4, 64: 3}),
    )
}
_ROW_OPERANDS = ("f4*", "const f4*", "const f4*", "const f4*")  # lse, mask, slopes, sinks
_STATE = ("f4*", "f4*")
# (d_k, d_v, TILE_ROWS, type, general: mask, softcap, ALiBi or a scale that is not positive) -> kernel
FUSED = {
    (d_k, d_v, shape.rows, dtype, general): Kernel(
        package="lowlevel.gpu",
        file=f"attention_{d_k}_{d_v}{rows}.cu",
        name=f"attention_{'latent' if shape.latent else 'fused'}"
        f"<{FLOAT_TYPES[dtype]}, {str(general).lower()}>",
        parameters=(
            *["const u2*"] * (2 if shape.latent else 3),  # q, k, v
            *("V*", *_ROW_OPERANDS, *_STATE),
            *(["const i4*"] if shape.counts_keys else []),  # n_kv
            *(["i4"] if shape.latent else []),  # stages
            ATTENTION_CALL,
        ),
        block=32 * shape.warps,
    )
    for (d_k, d_v), whole in FUSED_SHAPES.items()
    for shape, rows in (
        (whole, ""),
        *((few, f"_rows_{few.rows}") for few in FEW_ROWS_SHAPES.get((d_k, d_v), ())),
    )
    for dtype in ("float16", "bfloat16")
    for general in (False, True)
}
# Fused attention where products are a warpgroup's and the copy engine brings K and V (attention_wgmma.cuh,
# attention_latent_wgmma.cuh): aligned rows.
# (d_k, d_v) -> tile; rows as in FUSED_SHAPES, for plans are made for both.
WGMMA_SHAPES = {
    (64, 64): FusedShape(rows=128, keys=128, warps=12, blocks=1),
    (128, 128): FusedShape(rows=128, keys=128, warps=12, blocks=1),
    (192, 128): FusedShape(rows=128, keys=128, warps=12, blocks=1),
    (576, 512): FusedShape(rows=64, keys=64, warps=12, blocks=1, latent=True),
}
WGMMA_STAGES = 2  # STAGES: tiles of K and of V in shared memory
# (d_k, d_v, type, general) -> kernel
WGMMA = {
    (d_k, d_v, dtype, general): Kernel(
        package="lowlevel.gpu",
        file=f"attention_wgmma_{d_k}_{d_v}.cu",
        name=f"attention_{'latent_' if shape.latent else ''}wgmma"
        f"<{FLOAT_TYPES[dtype]}, {str(general).lower()}>",
        parameters=(
            *["map"] * (1 if shape.latent else 2),  # k, v
            *("const u2*", "V*", *_ROW_OPERANDS, *_STATE),
            *(["const i4*"] if shape.counts_keys else []),  # n_kv
            ATTENTION_CALL,
        ),
        block=32 * shape.warps,
        architecture="90a",
    )
    for (d_k, d_v), shape in WGMMA_SHAPES.items()
    for dtype in ("float16", "bfloat16")
    for general in (False, True)
}
MERGE = {
    dtype: Kernel(
        package="lowlevel.gpu",
        file="attention_merge.cu",
        name=f"attention_merge<{FLOAT_TYPES[dtype]}>",
        parameters=("const f4*", "const f4*", "const f4*", "V*", "f4*", "i4", ATTENTION_CALL),
        block=512,
    )
    for dtype in ("float16", "bfloat16")
}
_BITS = {"float32": "f4*", "float16": "u2*", "bfloat16": "u2*"}


def _row_kernels(name, parameters):
    """{type: Kernel} of a kernel of attention_softmax.cu; ``{bits}``: the type's bits in memory."""
    return {
        dtype: Kernel(
            package="lowlevel.gpu",
            file="attention_softmax.cu",
            name=f"{name}<{instance}>",
            parameters=tuple(x.format(bits=_BITS[dtype]) for x in parameters),
            block=128,
        )
        for dtype, instance in FLOAT_TYPES.items()
    }


CAST = {
    (source, target): Kernel(
        package="lowlevel.gpu",
        file="cast.cu",
        name=f"cast<{FLOAT_TYPES[source]}, {FLOAT_TYPES[target]}>",
        parameters=(f"const {_BITS[source]}", _BITS[target], "V56"),
        block=256,
    )
    for source in FLOAT_TYPES
    for target in FLOAT_TYPES
    if source != target
}
MERGE_STATES = {
    dtype: Kernel(
        package="lowlevel.gpu",
        file="merge_states.cu",
        name=f"merge_states<{FLOAT_TYPES[dtype]}>",
        parameters=("f4*", "f4*", f"const {_BITS[dtype]}", "const f4*", "V80"),
        block=128,
    )
    for dtype in FLOAT_TYPES
}
# The tiles path: by the type of what is read, of V, of V, of out.
WIDEN = _row_kernels("attention_widen", ("const {bits}", "f4*", "i4", "i4", *["i8"] * 4, "i4"))
SCAN = _row_kernels("attention_scan", ("const {bits}", "f4*", "i4", ATTENTION_CALL))
SOFTMAX = _row_kernels(
    "attention_softmax",
    ("f4*", "f4*", "f4*", "const f4*", "const {bits}", "const f4*", "const f4*", "i4", "i4")
    + (ATTENTION_CALL,),
)
FINISH = _row_kernels(
    "attention_finish",
    ("const f4*", "const f4*", "const f4*", "{bits}", "f4*", "i4", ATTENTION_CALL),
)
ATTENTION = tuple(
    kernel
    for table in (FUSED, WGMMA, MERGE, WIDEN, SCAN, SOFTMAX, FINISH)
    for kernel in table.values()
)
# ---- operations of models: see lowlevel/ops ----------------------------------------------------------

ROWS_CALL = "V72"  # rows.cuh's RowsCall, ops/launch.py's CALL
_PAIRS = tuple((source, target) for source in FLOAT_TYPES for target in FLOAT_TYPES)


def _row_operations(file, name, parameters, kinds=_PAIRS, block=256):
    """{types: Kernel} of a template; ``{0}``, ``{1}``: the bits in memory of its first, its second type."""
    return {
        of: Kernel(
            package="lowlevel.gpu",
            file=file,
            name=f"{name}<{', '.join(FLOAT_TYPES[dtype] for dtype in of)}>",
            parameters=tuple(x.format(*(_BITS[dtype] for dtype in of)) for x in parameters),
            block=block,
        )
        for of in kinds
    }


def _of_one(file, name, parameters, block=256):
    """{type: Kernel} of a template with one type."""
    kinds = tuple((dtype,) for dtype in FLOAT_TYPES)
    table = _row_operations(file, name, parameters, kinds, block)
    return {dtype: kernel for (dtype,), kernel in table.items()}


# By the types of what is read and of what is written; ADD: of x and out, of y.
RMS_NORM = _row_operations(
    "rms_norm.cu",
    "rms_norm",
    ("{0}", "const V*", "const f4*", "{1}", "f4", "i4", ROWS_CALL),
)
GATED = _row_operations(
    "gated.cu", "gated", ("const {0}", "const {0}", "{1}", "i4", "f4", "f4", ROWS_CALL)
)
ADD = _row_operations(
    "add.cu", "add", ("const {0}", "const {1}", "const i4*", "{0}", "i8", "i4", ROWS_CALL)
)
SCALE = _of_one("add.cu", "scale", ("{0}", "f4", ROWS_CALL))
ROPE = _of_one("rope.cu", "rope", ("{0}", "const i4*", "const u8*", "V64"))
ROUTE = _of_one("routing.cu", "route", ("const {0}", "const f4*", "i4*", "f4*", "V56"), block=128)
GATHER_ROWS = _row_operations("rows.cu", "gather_rows", ("const {0}", "const i4*", "{1}", "V48"))
PUT_ROWS = _row_operations("rows.cu", "put_rows", ("const {0}", "const i4*", "{1}", "V64"))
SCATTER_ORDER = Kernel(
    package="lowlevel.gpu",
    file="rows.cu",
    name="scatter_order",
    parameters=("const i4*", "i4*", "i4*", "i8", "i4", "i4"),
    block=256,
)
SCATTER_ADD = _row_operations(
    "rows.cu",
    "scatter_add",
    ("const {0}", "const f4*", "const i4*", "const i4*", "{1}", "V32"),
)
OPERATIONS = (
    *(kernel for table in (RMS_NORM, GATED, ADD, SCALE, ROPE, ROUTE) for kernel in table.values()),
    *(SCATTER_ORDER, *GATHER_ROWS.values(), *PUT_ROWS.values(), *SCATTER_ADD.values()),
)
KERNELS = (
    *COPY.values(),
    *TRANSPOSED.values(),
    *JOIN.values(),
    *CAST.values(),
    *MERGE_STATES.values(),
    *ATTENTION,
    *OPERATIONS,
)


_kernels: dict[str, tuple] = {}  # package -> its kernels
_generated: dict[
    str, Mapping[str, str]
] = {}  # package -> {file: text} of sources that are no files


def register(
    package: str, kernels: Iterable[Kernel], made: Mapping[str, str] | None = None
) -> None:
    """Let all know a package's kernels, and the text of its files that are `made`, not there: {name: text}."""
    _kernels[package], _generated[package] = tuple(kernels), made or {}


register("lowlevel.gpu", KERNELS)


def all_kernels() -> tuple[Kernel, ...]:
    """Every `Kernel` of all packages that have been imported."""
    return tuple(kernel for kernels in _kernels.values() for kernel in kernels)


def packages() -> tuple[str, ...]:
    """The packages that have kernels."""
    return tuple(_kernels)


def of_source(source: tuple[str, str]) -> tuple[Kernel, ...]:
    """The kernels of one file, (package, file): they are compiled together."""
    return tuple(k for k in _kernels[source[0]] if k.source == source)


def generated(package: str, file: str) -> str | None:
    """The text of a source or header that a package makes; None if it makes none of that name."""
    return _generated.get(package, {}).get(file)


def generated_files(package: str) -> tuple[str, ...]:
    """The names of all that a package makes."""
    return tuple(_generated[package])
