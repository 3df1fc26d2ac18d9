"""The tests notice: kernels with one thing changed give wrong weights, or an error of the simulator."""

import numpy as np
import pytest
from matmul_cases import check_product, random_x
from matmul_cases import random_tensor as plain_tensor
from quant_cases import assert_same_bits, random_tensor, reference, width

from lowlevel import asarray, asnumpy, concat, cudasim, devices
from lowlevel.cuda import loader
from quant import dequantize, matmul

# file of the change, text, its replacement
DECODING = [
    (
        "Q2_K",
        "q2_k.cu",
        "(16 * (pair % 2) + 8 * (byte / 16))",
        "(8 * (pair % 2) + 8 * (byte / 16))",
    ),
    ("Q3_K", "q3_k.cu", "block + kHmask + byte", "block + kHmask"),
    ("Q4_K", "q4_k.cu", "third >> 4 & 0x0f0fu", "third & 0x0f0fu"),
    ("Q6_K", "q6_k.cu", "codes, -32.0f", "codes, -31.0f"),
    ("IQ4_NL", "iq4_nl.cu", "0x26190d01u", "0x26190e01u"),
    ("Q8_0", "dequantize.cuh", "block >= n_blocks", "block > n_blocks"),
    ("F16", "floats.cu", "first + kVector <= row_weights", "first < row_weights"),
]


@pytest.fixture
def mutate(monkeypatch):
    """``mutate(text, replacement)``: whatever is compiled from now on has the change."""
    return lambda old, new: _change(monkeypatch, old, new)


def _change(monkeypatch, old, new, but=()):
    """Put `new` in the place of `old` in every source from now on, but for some files."""
    text_of = loader.source_text

    def changed(package, file):
        text = text_of(package, file)
        if file in but:
            return text
        assert old in text
        return text.replace(old, new)

    monkeypatch.setattr(loader, "source_text", changed)
    simulator = devices.get("cudasim")
    monkeypatch.setattr(simulator, "_library", loader.Library(simulator._library._compile))


def is_right(run, expected):
    """Whether it runs and gives the same bits."""
    try:
        assert_same_bits(asnumpy(run()), expected)
    except (AssertionError, cudasim.KernelError):
        return False
    return True


@pytest.mark.parametrize("name, file, old, new", DECODING, ids=[row[0] for row in DECODING])
def test_dequantize(name, file, old, new, mutate, rng):
    t = random_tensor(rng, name, (3, width(name, 5)))
    on, expected = t.to("cudasim"), reference(t)
    assert is_right(lambda: dequantize(on), expected)
    mutate(old, new)
    assert not is_right(lambda: dequantize(on), expected)


@pytest.mark.parametrize(
    "old, new",
    [
        ("index * axis.source_stride", "index * axis.target_stride"),
        ("i == layout.n_axes", "i + 1 == layout.n_axes"),
        (">> shift;", ">> (shift - 1);"),
    ],
)
def test_concat(old, new, mutate, rng):
    x = rng.random((5, 7, 3), np.float32)
    on, expected = (
        asarray(x, "cudasim").transpose(1, 2, 0),
        np.ascontiguousarray(x.transpose(1, 2, 0)),
    )
    assert is_right(lambda: concat([on]), expected)
    mutate(old, new)
    assert not is_right(lambda: concat([on]), expected)


# format, rows of x, text, its replacement
PRODUCTS = [
    ("IQ4_NL", 2, "low >> 16, which >> 16", "low >> 16, which"),
    ("Q2_K", 9, "(high_digit & 255) << 8", "(low_digit & 255) << 8"),
    ("Q3_K", 9, "kFoldOffset = 4", "kFoldOffset = 3"),
    ("Q8_0", 9, "ptx::cp_async_wait_all();\n    __syncthreads();", "__syncthreads();"),
    ("Q8_0", 2, "cp_async_wait<kStages - 1>();", "cp_async_wait<kStages>();"),
]


@pytest.mark.parametrize("name, n, old, new", PRODUCTS, ids=[f"{r[0]}-{r[1]}" for r in PRODUCTS])
def test_matmul(name, n, old, new, monkeypatch, rng):
    t = plain_tensor(rng, name, 37, width(name, 8))
    x = random_x(rng, n, t.columns)

    def right():
        y = matmul(asarray(x, "cudasim"), t.to("cudasim"))
        try:
            check_product(asnumpy(y), x, t, False)
        except AssertionError:
            return False
        return True

    assert right()
    _change(monkeypatch, old, new, but=("matmul_x.cu",))
    try:
        assert not right()
    except cudasim.KernelError:
        pass
