"""The tests notice: kernels with one thing changed give wrong weights, or an error of the simulator."""

import numpy as np
import pytest
from quant_cases import assert_same_bits, random_tensor, reference, width

from lowlevel import asarray, asnumpy, concat, cudasim, devices
from lowlevel.cuda import loader
from quant import dequantize

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
    text_of = loader.source_text

    def change(old, new):
        def changed(package, file):
            text = text_of(package, file)
            assert old in text
            return text.replace(old, new)

        monkeypatch.setattr(loader, "source_text", changed)
        simulator = devices.get("cudasim")
        monkeypatch.setattr(simulator, "_library", loader.Library(simulator._library._compile))

    return change


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
