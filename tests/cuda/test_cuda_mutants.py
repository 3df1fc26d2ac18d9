"""The tests notice: kernels with one thing changed give wrong weights, or an error of the simulator."""

import numpy as np
import pytest
from attention_calls import HALF_BOUND, check, products_by, random_operands
from matmul_cases import check_product, random_x
from matmul_cases import random_tensor as plain_tensor
from quant_cases import assert_same_bits, random_tensor, reference, width

from lowlevel import asarray, asnumpy, concat, cudasim, devices
from lowlevel.gpu import loader
from quant import QuantTensor, dequantize, matmul

# file of the change, text, its replacement
DECODING = [
    ("Q2_K", "q2_k.cu", "kScales + index / 16", "kScales + index / 32"),
    ("Q3_K", "q3_k.cu", "kHmask + index % 32", "kHmask"),
    ("Q4_K", "q4_k.cu", "third >> 4 & 15", "third & 15"),
    ("Q6_K", "q6_k.cu", "codes, -32.0f", "codes, -31.0f"),
    ("IQ4_NL", "constants/iq4_nl.cuh", "0x26190d01u", "0x26190e01u"),
    ("Q8_0", "dequantize.cuh", "row >= rows", "row > rows"),
    ("Q3_K", "dequantize.cuh", "max(at, 0)", "max(at, 2)"),
    ("Q4_0", "dequantize.cuh", "skew(row),", "skew(0),"),
    ("Q6_K", "dequantize.cuh", "__syncthreads();", ""),
    ("F16", "floats.cu", "first + kVector <= row_weights", "first < row_weights"),
    ("Q5_0", "five_bits.cuh", "high[0] >> (index + 4 * i)", "high[0] >> (4 * i)"),
    ("IQ1_M", "iq1_m.cu", "top & 8 ?", "top & 4 ?"),
]


class OneByOne(loader.Library):
    """A file has a dozen kernels, a test calls one or two: only these are compiled with the change."""

    def _compiled_with(self, kernel):
        return (kernel,)


@pytest.fixture
def mutate(monkeypatch):
    """``mutate(text, replacement, but=())``: what is compiled from now on has the change, but for some files."""
    text_of = loader.source_text
    changed_sources = []

    def change(old, new, but=()):
        def changed(package, file):
            text = text_of(package, file)
            if file in but:
                return text
            changed_sources.append(old in text)
            return text.replace(old, new)

        monkeypatch.setattr(loader, "source_text", changed)
        simulator = devices.get("cudasim")
        monkeypatch.setattr(simulator, "_library", OneByOne(simulator._library._compile))

    yield change
    assert any(changed_sources), "the text to change is in no kernel that was compiled"


def is_right(run, expected):
    """Whether it runs and gives the same bits."""
    try:
        assert_same_bits(asnumpy(run()), expected)
    except (AssertionError, cudasim.KernelError):
        return False
    return True


@pytest.mark.parametrize(
    "name, file, old, new", DECODING, ids=[f"{row[0]} {row[2]}" for row in DECODING]
)
def test_dequantize(name, file, old, new, mutate, rng):
    """Rows apart from each other, in the middle of a tensor and at both its ends."""
    t = random_tensor(rng, name, (3, width(name, 7)))
    whole = t.to("cudasim")
    step = t.row_bytes // 7
    parts = (whole.data[:, :-step], whole.data[:, step:])
    columns = t.columns // 7 * 6
    tensors = [whole, *(QuantTensor(part, name, (3, columns)) for part in parts)]

    def right():
        return all(
            is_right(lambda on=on: dequantize(on), reference(on.to("cpu"))) for on in tensors
        )

    assert right()
    mutate(old, new)
    assert not right()


COPIES = {
    "strided": lambda x: [x.transpose(1, 2, 0)],
    "transposed": lambda x: [x.reshape(21, 25).T],
    "joined": lambda x: [x[:, :, :4], x],
}


@pytest.mark.parametrize(
    "way, old, new",
    [
        ("strided", "index * axis.source_stride", "index * axis.target_stride"),
        ("strided", "i == layout.n_axes", "i + 1 == layout.n_axes"),
        ("strided", ">> shift;", ">> (shift - 1);"),
        ("transposed", "__syncthreads();", ""),
        ("transposed", "x < targets && y", "y"),
        ("transposed", "units[i] = from[(y", "units[i] = from[(x"),
        ("joined", "start = rows.ends[s - 1], end", "start = 0, end"),
        ("joined", "column = 0, ++row", "column = 0"),
    ],
)
def test_concat(way, old, new, mutate, rng):
    x = rng.random((5, 7, 15), np.float32)
    arrays = COPIES[way](asarray(x, "cudasim"))
    expected = np.concatenate(COPIES[way](x), -1)
    assert is_right(lambda: concat(arrays, -1), expected)
    mutate(old, new)
    assert not is_right(lambda: concat(arrays, -1), expected)


FUSED_CHANGES = {
    "the next tile of K overwrites what is read": ("  ptx::cp_async_wait_all();\n    __syncthreads();  // K", "  __syncthreads();  // K"),
    "sums are not scaled down": ("sums[m][n][2 * i] *= rescale, sums[m][n][2 * i + 1] *= rescale;", ";"),
    "a key too many": ("key >= range.high)", "key > range.high)"),
    "a lane's row": ("i * 8 + threadIdx.x % 32 / 4", "i * 4 + threadIdx.x % 32 / 4"),
    "the window": ("position - call.window + 1", "position - call.window"),
    "a sink is left out": ("sum = sum * rescale + exp2f((sink - new_max) * kLog2E)", "sum = sum * rescale"),
}  # fmt: skip
WGMMA_CHANGES = {
    "copies are not there yet": (
        "ptx::await(&copies.keys_ready[tile % STAGES], phase(tile));\n      await_turn();", "await_turn();",
    ),
    "Q is not seen by products": (
        "    ptx::fence_proxy_async();\n    ptx::arrive(&copies.rows);", "    ptx::arrive(&copies.rows);",
    ),
    "another phase": ("return tile / STAGES & 1;", "return (tile / STAGES & 1) ^ 1;"),
    "bytes that do not come": ("arrive_expecting(ready, V_TILE * 2)", "arrive_expecting(ready, V_TILE * 2 + 128)"),
    "bytes that nobody expects": ("arrive_expecting(ready, K_TILE * 2)", "arrive_expecting(ready, K_TILE * 2 - 128)"),
    "scores before they are there": ("ptx::wgmma_wait<1>();", "ptx::wgmma_wait<2>();"),
    "a place is given away before products are done": (
        "      ptx::wgmma_wait<0>();\n      ptx::wgmma_received(sums[0]);\n      give_back(copies.values_free, tile - 1);",
        "      give_back(copies.values_free, tile - 1);\n      ptx::wgmma_wait<0>();",
    ),
    "the weights of the tile after": ("ptx::copied_now(next[i][0][j])", "weights[i][0][j]"),
    "sums are not scaled down": ("sums[m][n][i] *= rescale[m][i / 2]", "sums[m][n][i] *= 1.0f"),
    "a warpgroup's rows": ("q_tile + consumer * 64 * kPanel", "q_tile"),
    "a tile too many is taken as seen by all": (
        "- keys.low) / TILE_KEYS;", "- keys.low + TILE_KEYS - 1) / TILE_KEYS;",
    ),
    "a tile too few is cut by the window": (
        "seen_by_all.low - keys.low + TILE_KEYS - 1)", "seen_by_all.low - keys.low)",
    ),
    "NaN in V": ("copies.careful[stage][threadIdx.x / 32] = any;", "copies.careful[stage][threadIdx.x / 32] = 0;"),
}  # fmt: skip
LATENT_WGMMA_CHANGES = {
    "weights before they are there": ("named_barrier_sync(kWeights + other,", "named_barrier_arrive(kWeights + other,"),
    "the other's maximum": ("exchange.row_max[other][row_of_lane(first_row, 0, i)]", "rows.row_max[0][i]"),
    "the other's sum": ("exchange.row_sum[0][row] + exchange.row_sum[1][row]", "exchange.row_sum[0][row]"),
    "a place is given away before products are done": (
        "    ptx::wgmma_wait<kLater + 1>();\n    ptx::wgmma_received(sums[0][0]);\n    free(kEarly, tile);",
        "    free(kEarly, tile);\n    ptx::wgmma_wait<kLater + 1>();\n    ptx::wgmma_received(sums[0][0]);",
    ),
    "a panel that is not there yet": ("ptx::await(&copies.ready[half][panel], tile / kStages & 1);", ""),
    "a panel of another phase": ("[panel], tile / kStages & 1);", "[panel], ~(tile / kStages) & 1);"),
    "NaN in V": ("keep_finite_values<Type>(k_tiles + half * K_TILE);", ""),
    "V's column": ("HEAD_V : 0) : v_column +", "HEAD_V : 0) :"),
    "the other half of V": ("others_values = ptx::matrix_descriptor(\n      k_tiles + other * K_TILE + half *", "others_values = ptx::matrix_descriptor(\n      k_tiles + other * K_TILE + other *"),
}  # fmt: skip
LATENT_CHANGES = {
    "weights before they are there": ("__syncthreads_or(grown)", "__any_sync(0xffffffffu, grown)"),
    "half of the keys' maximum": (
        "fmaxf(exchange.row_max[0][row], exchange.row_max[1][row])", "exchange.row_max[half][row]",
    ),
    "the two warps of a row do not meet": ("ptx::named_barrier_sync(1 + warp / 2, 64);", ""),
    "the next tile too early": ("__syncthreads();  // nobody reads K or weights any more", ""),
    "V's column": ("(call.v_column + first_column) / kChunk", "first_column / kChunk"),
}  # fmt: skip
TILE_CHANGES = {
    "sums so far": ("old_sum * rescale + sum", "state[2 * row + 1] + sum"),
    "a step of the reduction": ("int step = 16; step", "int step = 8; step"),
    "the position": ("slope, call.first_position + token)", "slope, call.first_position)"),
    "NaN in V": ("clean && !is_finite(value)", "clean && value > 1e38f"),
}
ATTENTION = [
    (sizes, dtype, way, what, *change)
    for sizes, dtype, way, changes in (
        ((192, 128), "bfloat16", "mma", FUSED_CHANGES),
        ((64, 64), "bfloat16", "wgmma", WGMMA_CHANGES),
        ((576, 512), "float16", "mma", LATENT_CHANGES),
        ((576, 512), "bfloat16", "wgmma", LATENT_WGMMA_CHANGES),
        ((40, 24), "float32", "mma", TILE_CHANGES),
    )
    for what, change in changes.items()
]


def attends_rightly(sizes, dtype, way, rng):
    """Whether a call of these head sizes agrees with float64 in two orders of threads."""
    with products_by(way):
        return (
            attends_by_warpgroups(rng, sizes, dtype)
            if way == "wgmma"
            else attends(rng, sizes, dtype)
        )


def attends_by_warpgroups(rng, sizes, dtype):
    operands = random_operands(rng, 4, 1, 40, 900, *sizes, dtype)
    if sizes == (576, 512):
        operands[2] = operands[1][..., 64:]  # whole panels, not the first ones
    operands[2][:, 890, 3] = np.nan  # the last tokens alone see it
    operands[1] *= np.linspace(0.2, 2, 900)[:, None].astype(operands[1].dtype)  # maxima grow
    try:
        for order in ("lifo", "random"):
            with cudasim.settings(order=order):
                check("cudasim", operands, {"window": 830}, HALF_BOUND)
    except (AssertionError, cudasim.KernelError):
        return False
    return True


def attends(rng, sizes, dtype):
    operands = random_operands(rng, 4, 1, 40, 200, *sizes, dtype)
    if sizes == (576, 512):
        operands[2] = operands[1][..., 64:]  # not the first columns
    options = {"window": 130, "sinks": np.full(4, 2.0, np.float32)}
    if dtype == "float32":
        operands[2][:, 199, 3] = np.nan  # the last token alone sees it
        options["alibi_slopes"] = np.full(4, 0.1, np.float32)
    try:
        for order in ("lifo", "reverse"):
            with cudasim.settings(order=order):
                check("cudasim", operands, options, HALF_BOUND, budget="60KiB")
    except (AssertionError, cudasim.KernelError):
        return False
    return True


@pytest.mark.parametrize("sizes, dtype, way", sorted({row[:3] for row in ATTENTION}), ids=str)
def test_attention_unchanged(sizes, dtype, way, rng):
    assert attends_rightly(sizes, dtype, way, rng)


@pytest.mark.parametrize(
    "sizes, dtype, way, what, old, new", ATTENTION, ids=[f"{row[0]} {row[3]}" for row in ATTENTION]
)
def test_attention(sizes, dtype, way, what, old, new, mutate, rng):
    mutate(old, new)
    assert not attends_rightly(sizes, dtype, way, rng)


# format, rows of x, text, its replacement
PRODUCTS = [
    ("IQ4_NL", 2, "Format::kValues2 + kOne", "Format::kValues2"),
    ("IQ4_NL", 9, "low >> 16, which >> 16", "low >> 16, which"),
    ("Q2_K", 9, "(high_digit & 255) << 8", "(low_digit & 255) << 8"),
    ("Q3_K", 9, "128 - kFoldOffset", "127 - kFoldOffset"),
    ("Q8_0", 9, "ptx::cp_async_wait_all();\n    __syncthreads();", "__syncthreads();"),
    ("Q8_0", 2, "cp_async_wait<kStages - 1>();", "cp_async_wait<kStages>();"),
    ("Q4_1", 9, "(float)sum * scale", "scale"),
    ("IQ2_XXS", 2, "minus * 255) + minus", "minus * 255)"),
    ("NVFP4", 9, "(first + start) / Format::kRun", "start / Format::kRun"),
    ("TQ1_0", 2, "0x511b0351u", "0x511b0951u"),
]


# On warpgroups' products.
WGMMA_PRODUCTS = [
    ("Q4_K", 20, "ptx::await(free + ring.stage, ring.parity ^ 1);", ""),
    ("Q4_K", 20, "ptx::await(ready + ring.stage, ring.parity);", ""),
    ("Q4_K", 20, "ptx::wgmma_wait<1>();", ""),
]


@pytest.mark.parametrize(
    "name, n, old, new",
    [*PRODUCTS, *WGMMA_PRODUCTS],
    ids=[f"{r[0]}-{r[1]}-{i}" for i, r in enumerate([*PRODUCTS, *WGMMA_PRODUCTS])],
)
def test_matmul(name, n, old, new, mutate, monkeypatch, rng):
    activations = "bfloat16" if n > 16 else "int8"
    monkeypatch.setattr(devices.get("cudasim"), "n_multiprocessors", 2)
    t = plain_tensor(rng, name, 37 if n < 16 else 300, width(name, 21 if n > 16 else 8))
    x = random_x(rng, n, t.columns)

    def right():
        try:
            with cudasim.settings(order="fifo" if n < 16 else "random"):
                y = matmul(asarray(x, "cudasim"), t.to("cudasim"), activations=activations)
            check_product(asnumpy(y), x, t, activations)
        except AssertionError:
            return False
        return True

    assert right()
    mutate(old, new, but=("matmul_x.cu",))
    try:
        assert not right()
    except cudasim.KernelError:
        pass
