"""Every kernel instance, on its own small call, in every order of threads and blocks, and under all
checks of the simulator; of formats that share their kernels' structure the first one, the others
in one order each. A kernel without a call here fails."""

from unittest import mock

import numpy as np
import ops_checks
import pytest
from attention_calls import DTYPES, HALF_BOUND, check, products_by, random_operands
from comparison import assert_close
from matmul_cases import check_product, random_x
from matmul_cases import random_tensor as plain_tensor
from quant_cases import (
    CHECKED,
    ORDERS,
    assert_same_bits,
    block_format,
    is_checked_in_every_way,
    random_tensor,
    reference,
    width,
)

from lowlevel import asarray, asnumpy, concat, cudasim, devices, merge_states
from lowlevel.gpu import instances
from lowlevel.gpu.resources import key_of
from lowlevel.shapes import resolve_dtype
from quant import FORMATS, QuantTensor, dequantize, matmul
from quant.gpu import instances as products
from quant.gpu.matmul import plan as matmul_plan

FORMATS_BY_NAME = {row.name: row for row in FORMATS.values()}
WAYS = {
    **{order: {"order": order} for order in ORDERS},
    "checked": CHECKED,
}


def copies(rng, n_bytes):
    source = rng.integers(0, 256, (3, 2 * 150, n_bytes), np.uint8)
    found = asnumpy(concat([asarray(source, "cudasim")[::-1, ::2]]))
    assert np.array_equal(found, source[::-1, ::2])


def transposes(rng, n_bytes):
    """A whole tile, and parts of tiles on both sides of it."""
    source = rng.integers(0, 256, (2, 70, 65 * n_bytes), np.uint8).view(f"V{n_bytes}")
    found = asnumpy(concat([asarray(source, "cudasim").transpose(0, 2, 1)]))
    assert np.array_equal(found, source.transpose(0, 2, 1))


def joins(rng, n_bytes):
    parts = [rng.integers(0, 256, (60, n, n_bytes), np.uint8) for n in (3, 1, 2, 5)]
    found = asnumpy(concat([asarray(part, "cudasim") for part in parts], 1))
    assert np.array_equal(found, np.concatenate(parts, 1))


def decodes(rng, name, dtype, aligned):
    t = random_tensor(rng, name, (2, width(name, 3) + (5 if name in ("F32", "F16", "BF16") else 0)))
    offset, gap = (0, 16 - t.row_bytes % 16 + 16 * t.row_bytes) if aligned else (1, 1)
    memory = np.zeros((2, t.row_bytes + gap), np.uint8)
    memory[:, : t.row_bytes] = t.data
    flat = asarray(np.concatenate([np.zeros(offset, np.uint8), memory.reshape(-1)]), "cudasim")
    data = flat[offset:].reshape(memory.shape)[:, : t.row_bytes]
    dtype = resolve_dtype(dtype)
    columns = -(-t.columns // 8) * 8 + (0 if aligned else 1)
    out = devices.get("cudasim").empty((2, columns), dtype)[:, : t.columns]
    dequantize(QuantTensor(data, name, t.shape), out=out)
    assert_same_bits(asnumpy(out), reference(t, dtype))


def multiplies(rng, name, exact, n, one_expert=False, n_rows=67):
    """Two tiles of rows and part of a third, as numbers that do not depend on the run: see `test`."""
    t = plain_tensor(rng, name, n_rows, width(name, 3))
    x, activations = random_x(rng, n, t.columns), "float32" if exact else "int8"
    there, experts = t.to("cudasim"), None
    if one_expert:
        there, experts = there.reshape(1, *t.shape), [0] * n
    y = matmul(asarray(x, "cudasim"), there, experts=experts, activations=activations)
    check_product(asnumpy(y), x, t, activations)


def attends(rng, d_k, d_v, rows, dtype, general):
    """Packed heads, a tile of rows and part of the next, three tiles of keys, NaN that few rows see."""
    wide = d_k == 576
    n_head, n_tokens, n_kv = (
        (4, 17, 100) if wide else (2, 70 if rows == 128 else rows // 2 - 3, 150)
    )
    operands = random_operands(rng, n_head, 1, n_tokens, n_kv, d_k, d_v, dtype)
    if general:
        options = {"softcap": 20.0, "alibi_slopes": np.full(n_head, 0.1, np.float32)}
        options["mask"] = rng.normal(0, 1, (n_tokens, n_kv)).astype(np.float32)
        options["mask"][:, 20:30] = -np.inf
        operands[2][:, 25, 3] = np.nan
    else:
        options = {"window": n_kv - n_tokens}  # the first token sees keys 1 to n_kv - n_tokens
        operands[2][:, 0, 3] = np.nan
    with products_by("mma"):
        check("cudasim", operands, options, HALF_BOUND)


def attends_by_warpgroups(rng, d_k, d_v, dtype, general):
    """As `attends`; each place in shared memory is used twice, by tiles that all rows see too."""
    n_tokens, n_kv = (20, 400) if d_k == 576 else (70, 700)
    operands = random_operands(rng, 2, 1, n_tokens, n_kv, d_k, d_v, dtype)
    if d_k == 576:
        operands[2] = operands[1][..., 64:]
    operands[2][:, 0, 3] = np.nan
    options = {"window": n_kv - n_tokens}
    if general:
        options["mask"] = rng.normal(0, 1, (n_tokens, n_kv)).astype(np.float32)
        options["mask"][:, 120:130] = -np.inf
        operands[2][:, 125, 3] = np.nan
    check("cudasim", operands, options, HALF_BOUND)


def merges(rng, dtype):
    operands = random_operands(rng, 2, 1, 1, 1030, 64, 64, dtype)
    check("cudasim", operands, {"sinks": np.ones(2, np.float32)}, HALF_BOUND)


def attends_by_tiles(rng, dtype):
    """Several tiles of heads, tokens and keys; NaN in V that few rows see."""
    operands = random_operands(rng, 4, 2, 9, 40, 17, 12, dtype)
    operands[2][:, 35, 3] = np.nan
    out = asarray(np.full((4, 9, 12), np.nan, DTYPES[dtype]), "cudasim")
    options = {"softcap": 20.0, "sinks": np.ones(4, np.float32)}
    check("cudasim", operands, options, HALF_BOUND + 2.0**-8, out=out, budget="25KiB")


def joins_states(rng, dtype):
    parts = rng.standard_normal((3, 2, 3, 140), dtype=np.float32).astype(DTYPES[dtype])
    lses = rng.normal(0, 2, (3, 2, 3)).astype(np.float32)
    on = [[asarray(x, "cudasim") for x in xs] for xs in (parts, lses)]
    out, _ = merge_states(*on)
    weights = np.exp(lses.astype(np.float64))[..., None]
    expected = (weights * parts.astype(np.float64)).sum(0) / weights.sum(0)
    assert_close(asnumpy(out).astype(np.float64), expected, 2e-6)


def operates(rng, name, *arguments):
    """One of tests/ops_checks.py."""
    getattr(ops_checks, name)(rng, "cudasim", *arguments)


def multiplies_by_warpgroups(rng, name, tile, dtype="int64"):
    """Two matrices of experts: rows are sorted and cut into tiles on the device."""
    block = FORMATS_BY_NAME[name]
    t = plain_tensor(
        rng, name, 2, 140, 160 if block.block_weights == 32 else max(192, 2 * block.block_weights)
    )
    x, experts = random_x(rng, 20, t.columns), np.arange(20) % 2
    with mock.patch.object(matmul_plan, "_wgmma_tile", lambda *sizes: tile):
        matmul_plan._plan.cache_clear()
        on = asarray(experts.astype(dtype), "cudasim")
        y = matmul(asarray(x, "cudasim"), t.to("cudasim"), activations="bfloat16", experts=on)
    matmul_plan._plan.cache_clear()
    y = asnumpy(y)
    for e in range(2):
        check_product(y[experts == e], x[experts == e], t[e], "bfloat16")


_ROWS = (3, 40)
CALLS = {
    **{kernel: (operates, "cast", _ROWS, *key) for key, kernel in instances.CAST.items()},
    **{kernel: (joins_states, dtype) for dtype, kernel in instances.MERGE_STATES.items()},
    **{kernel: (operates, "rms_norm", _ROWS, *key) for key, kernel in instances.RMS_NORM.items()},
    **{kernel: (operates, "add", _ROWS, *key) for key, kernel in instances.ADD.items()},
    **{
        kernel: (operates, "gated", "swiglu", _ROWS, *key)
        for key, kernel in instances.GATED.items()
    },
    **{kernel: (operates, "scale", _ROWS, dtype) for dtype, kernel in instances.SCALE.items()},
    **{
        kernel: (operates, "rope", (2, 3, 24), 16, "halves", 4, dtype)
        for dtype, kernel in instances.ROPE.items()
    },
    **{
        kernel: (operates, "routing", 5, 64, 4, "softmax", (4, 2), dtype)
        for dtype, kernel in instances.ROUTE.items()
    },
    **{
        kernel: (operates, "gather", 11, 37, 6, *key)
        for key, kernel in instances.GATHER_ROWS.items()
    },
    **{
        kernel: (operates, "put", (2, 5, 37), 11, *key)
        for key, kernel in instances.PUT_ROWS.items()
    },
    **{
        kernel: (operates, "scatter", 24, 6, 40, *key)
        for key, kernel in instances.SCATTER_ADD.items()
    },
    instances.SCATTER_ORDER: (operates, "scatter", 24, 6, 40),
    **{kernel: (multiplies_by_warpgroups, *key) for key, kernel in products.MATMUL_WGMMA.items()},
    **{
        kernel: (multiplies_by_warpgroups, "Q8_0", products.WGMMA_TILES[0], dtype)
        for dtype, kernel in products.SORT_ROWS.items()
    },
    products.TILE_ROWS: (multiplies_by_warpgroups, "Q8_0", products.WGMMA_TILES[0]),
    **{kernel: (copies, n_bytes) for n_bytes, kernel in instances.COPY.items()},
    **{kernel: (transposes, n_bytes) for n_bytes, kernel in instances.TRANSPOSED.items()},
    **{kernel: (joins, n_bytes) for n_bytes, kernel in instances.JOIN.items()},
    **{kernel: (attends, *key) for key, kernel in instances.FUSED.items()},
    **{kernel: (attends_by_warpgroups, *key) for key, kernel in instances.WGMMA.items()},
    **{kernel: (merges, dtype) for dtype, kernel in instances.MERGE.items()},
    **{
        kernel: (attends_by_tiles, dtype)
        for table in (instances.WIDEN, instances.SCAN, instances.SOFTMAX, instances.FINISH)
        for dtype, kernel in table.items()
    },
    **{kernel: (decodes, *key) for key, kernel in products.DEQUANTIZE.items()},
    **{k: (multiplies, name, False, n, n == 1) for (name, n), k in products.MATVEC.items()},
    **{kernel: (multiplies, name, False, 1) for name, kernel in products.MATVEC_SINGLE.items()},
    # A few rows of floats have a kernel of their own.
    **{
        kernel: (
            multiplies,
            name,
            True,
            n,
            False,
            products.MOST_FEW_ROWS + 3 if block_format(name).is_float else 67,
        )
        for (name, n), kernel in products.MATVEC_EXACT.items()
    },
    **{kernel: (multiplies, name, True, n) for (name, n), kernel in products.MATVEC_FEW.items()},
    **{
        kernel: (multiplies, name, False, max(9, tile.columns - 3))
        for (name, tile), kernel in products.MATMUL_TILES.items()
    },
    **{kernel: (multiplies, name, True, 35) for name, kernel in products.MATMUL_EXACT.items()},
    **{
        products.QUANTISE_ROWS[products.bytes_of_x(block), streamed]: (
            multiplies,
            block.name,
            False,
            n,
        )
        for block in reversed(
            FORMATS.values()
        )  # the first format of each: its products run in every way
        if not block.is_float
        for streamed, n in ((True, 3), (False, 11))
    },
    **{
        products.GATHER_ROWS[interleaved]: (multiplies, name, True, 3)
        for interleaved, name in ((False, "Q8_0"), (True, "IQ4_NL"))
    },
}
KERNELS = tuple(CALLS)


# Formats' names are template arguments of their kernels.
FORMAT_OF = {
    kernel: block.name
    for block in FORMATS.values()
    for kernel in products.KERNELS
    if f"<{block.name}," in kernel.name or f"<{block.name}>" in kernel.name
}


def ways_of(index, kernel):
    """All, or for a format that has another's kernels but for unpacking one in turn: see `FIRST_OF_STRUCTURE`."""
    if kernel not in FORMAT_OF or is_checked_in_every_way(FORMAT_OF[kernel]):
        return tuple(WAYS)
    return (ORDERS[index % len(ORDERS)],)


CASES = [(k, way) for i, k in enumerate(instances.all_kernels()) for way in ways_of(i, k)]


@pytest.mark.parametrize(
    "kernel, way", CASES, ids=lambda case: case if isinstance(case, str) else key_of(case)
)
def test_every_kernel(kernel, way, launched):
    assert kernel in CALLS, "a kernel without a call of its own: give it one in CALLS"
    call, *arguments = CALLS[kernel]
    # Always the same numbers: two 16-bit sums of x beside each other may be, by chance, the
    # simulator's mark for unwritten memory.
    rng = np.random.default_rng(1)
    with cudasim.settings(**WAYS[way]):
        call(rng, *arguments)
    assert kernel in launched
