"""Products of warpgroups against descriptors, swizzles and fragments written out here from the PTX ISA.

The same kernels and checks run on a GPU of compute capability 9.0 (marker gpu); what the simulator finds
wrong with a use of them, on the simulator alone.
"""

import ml_dtypes
import numpy as np
import pytest
from sim_kernels import ORDERS

from lowlevel import cudasim

THREADS = np.arange(128)
WARP, GROUP, IN_GROUP = THREADS // 32, THREADS % 32 // 4, THREADS % 4
OPERANDS = np.dtype(
    [
        (name, "<i4")
        for name in "a_start a_leading a_stride b_start b_leading b_stride swizzle accumulates".split()
    ]
)
DTYPES = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}
WIDTHS = {0: 1, 1: 8, 2: 4, 3: 2}  # swizzling mode: 16-byte chunks of a line
SHARED = 48 << 10


def accumulators(n):
    """Rows and columns of the (128, n / 2) registers of d."""
    i = np.arange(n // 2)
    rows = 16 * WARP[:, None] + GROUP[:, None] + i % 4 // 2 * 8
    return rows, np.broadcast_to(i // 4 * 8 + i % 2, rows.shape) + 2 * IN_GROUP[:, None]


def a_registers(a):
    """(128, 4) registers of A (64, 16)."""
    words = np.ascontiguousarray(a).view(np.uint32)  # (64, 8)
    row = 16 * WARP + GROUP
    places = [(row, IN_GROUP), (row + 8, IN_GROUP), (row, IN_GROUP + 4), (row + 8, IN_GROUP + 4)]
    return np.stack([words[place] for place in places], 1)


def swizzled(address, width):
    """Bits 4.. exchanged by those from bit 7 on: as many as a line's chunks have numbers."""
    return address ^ ((address >> 7 & (width - 1)) << 4)


def rows_layout(shape, width, leading, stride):
    """Byte offsets of a K-major matrix (rows, k)."""
    row, k = np.indices(shape)
    if width == 1:
        return row % 8 * 16 + row // 8 * stride + k // 8 * leading + k % 8 * 2
    return row % 8 * width * 16 + row // 8 * stride + k * 2


def columns_layout(shape, width, leading, stride):
    """Byte offsets of an N-major matrix (k, columns)."""
    k, column = np.indices(shape)
    chunk, inside = column // 8, column % 8 * 2
    if width == 1:
        return chunk * stride + k % 8 * 16 + k // 8 * leading + inside
    line = chunk % width * 16 + chunk // width * leading
    return line + k % 8 * width * 16 + k // 8 * stride + inside


def put(image, start, offsets, values, width):
    image[swizzled(start + offsets, width) // 2] = values.view(np.uint16)


@pytest.fixture
def product(anywhere):
    def run(kind, n, source, majority, image, registers, d, operands):
        name = f"wgmma_{kind}_{n}_{source}_{majority}"
        kernel = anywhere("wgmma.cu", name, architecture="90a")
        arguments = (image.view(np.uint32), np.int32(SHARED // 16), registers, d, operands)
        kernel((1,), (128,), arguments, shared_mem=SHARED)

    return run


@pytest.mark.parametrize("swizzle", WIDTHS)
@pytest.mark.parametrize("majority", ["rows", "columns"])
@pytest.mark.parametrize("source", ["shared", "registers"])
@pytest.mark.parametrize("n", [64, 128])
@pytest.mark.parametrize("kind", DTYPES)
def test_product(product, rng, kind, n, source, majority, swizzle):
    width = WIDTHS[swizzle]
    a, b = (rng.integers(-30, 31, s).astype(DTYPES[kind]) for s in ((64, 16), (16, n)))
    image = rng.integers(0, 1 << 16, SHARED // 2).astype(np.uint16)
    operands = np.zeros((), OPERANDS)
    # Strides that differ, and mostly are longer than needed: one cannot be mistaken for another.
    line = 8 * width * 16
    fields = dict(
        a_start=1024, a_leading=2560, a_stride=line if width == 8 else line + 256 * width,
        b_start=12288, b_leading=6144, b_stride=2 * line,
        swizzle=swizzle, accumulates=int(rng.integers(2)),
    )  # fmt: skip
    if majority == "columns":
        leading_and_stride = {1: (128, 1024), 2: (1024, 12288), 4: (1024, 12288), 8: (4096, 2048)}
        fields["b_leading"], fields["b_stride"] = leading_and_stride[width]
    for name, value in fields.items():
        operands[name] = value
    where_a = rows_layout((64, 16), width, fields["a_leading"], fields["a_stride"])
    put(image, fields["a_start"], where_a, a, width)
    strides = width, fields["b_leading"], fields["b_stride"]
    if majority == "rows":
        put(image, 12288, rows_layout((n, 16), *strides), np.ascontiguousarray(b.T), width)
    else:
        put(image, 12288, columns_layout((16, n), *strides), b, width)
    before = rng.integers(-1000, 1000, (64, n)).astype(np.float32)
    rows, columns = accumulators(n)
    d = np.ascontiguousarray(before[rows, columns])
    product(kind, n, source, majority, image, a_registers(a), d, operands)
    expected = before * fields["accumulates"] + a.astype(np.float32) @ b.astype(np.float32)
    np.testing.assert_array_equal(d, expected[rows, columns])


@pytest.mark.parametrize("step", range(4))
@pytest.mark.parametrize("majority", ["rows", "columns"])
def test_parts_of_swizzled_tiles(product, rng, majority, step):
    """16 of 64 k: they start within a line (K-major), or some lines further (N-major)."""
    a, b = (rng.integers(-30, 31, s).astype(np.float16) for s in ((64, 64), (64, 128)))
    image = np.zeros(SHARED // 2, np.uint16)
    put(image, 1024, rows_layout((64, 64), 8, 16, 1024), a, 8)
    operands = np.zeros((), OPERANDS)
    operands["a_start"], operands["a_stride"], operands["swizzle"] = 1024 + 32 * step, 1024, 1
    operands["b_stride"] = 1024
    if majority == "rows":
        put(image, 16384, rows_layout((128, 64), 8, 16, 1024), np.ascontiguousarray(b.T), 8)
        operands["b_start"] = 16384 + 32 * step
    else:
        put(image, 16384, columns_layout((64, 128), 8, 8192, 1024), b, 8)
        operands["b_start"], operands["b_leading"] = 16384 + 2048 * step, 8192
    rows, columns = accumulators(128)
    d = np.full(rows.shape, np.nan, np.float32)
    k = slice(16 * step, 16 * step + 16)
    product("f16", 128, "shared", majority, image, a_registers(a[:, k]), d, operands)
    expected = a[:, k].astype(np.float32) @ b[k].astype(np.float32)
    np.testing.assert_array_equal(d, expected[rows, columns])


def run_pipeline(kernel, rng):
    """Whether both results of ``wgmma_pipeline`` are right."""
    x = rng.integers(-9, 10, (64, 64)).astype(ml_dtypes.bfloat16)
    first, second = np.zeros((2, 128, 32), np.float32)
    kernel((1,), (256,), (x.view(np.uint16), first, second), shared_mem=64 * 128)
    rows, columns = accumulators(64)
    expected = (x.astype(np.float32) @ x.astype(np.float32).T)[rows, columns]
    return np.array_equal(first, expected) and np.array_equal(second, expected)


def test_pipeline(anywhere, rng):
    assert run_pipeline(anywhere("wgmma.cu", "wgmma_pipeline", architecture="90a"), rng)


@pytest.mark.parametrize("checks", [{"race": True}, {"ub": True}], ids=["race", "ub"])
def test_pipeline_checked(kernel, rng, checks):
    with cudasim.settings(**checks):
        assert run_pipeline(kernel("wgmma.cu", "wgmma_pipeline", **checks), rng)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(
    "bug, error",
    [
        ("PROXY", "without fence.proxy.async"),
        ("FENCE", "without wgmma.fence"),
        ("WAIT", None),  # what is read then is poison
        ("COPY_WAIT", None),
    ],
)
def test_what_is_left_out_shows(kernel, rng, order, bug, error):
    with cudasim.settings(order=order):
        try:
            assert not run_pipeline(kernel("wgmma.cu", "wgmma_pipeline", f"BUG_{bug}"), rng)
            assert error is None
        except cudasim.KernelError as found:
            assert error is not None and error in str(found)


@pytest.mark.parametrize("bug", ["READY", "FREE", "COPY_WAIT"])
def test_races_with_products(kernel, rng, bug):
    with cudasim.settings(race=True), pytest.raises(cudasim.KernelError):
        run_pipeline(kernel("wgmma.cu", "wgmma_pipeline", f"BUG_{bug}", race=True), rng)


def test_operands_changed_too_early(kernel, rng):
    """Without race mode: seen in some order of threads."""
    found = 0
    for order in ORDERS:
        with cudasim.settings(order=order):
            try:
                found += not run_pipeline(kernel("wgmma.cu", "wgmma_pipeline", "BUG_FREE"), rng)
            except cudasim.RaceError as error:
                assert "was changed between a wgmma that reads it and the wait" in str(error)
                found += 1
    assert found


def test_part_of_a_warpgroup(kernel, rng):
    x = np.zeros((64, 64), np.uint16)
    with pytest.raises(cudasim.BarrierError, match="whole warpgroups"):
        kernel("wgmma.cu", "wgmma_f16_64_shared_rows")(
            (1,), (96,),
            (x.view(np.uint32), np.int32(1), np.zeros(4, np.uint32), np.zeros(4096, "f4"), np.zeros((), OPERANDS)),
            shared_mem=SHARED,
        )  # fmt: skip
