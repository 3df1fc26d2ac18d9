"""Token embeddings out of quantised tables: the bits of the rows that dequantisation gives."""

import numpy as np
import pytest
from quant_cases import assert_same_bits, random_tensor, reference, width

import quant
from lowlevel import asarray, asnumpy

# Formats of each kind of kernel: floats, blocks of 32, super-blocks.
NAMES = ("F32", "BF16", "Q8_0", "IQ4_NL", "Q4_K")


@pytest.fixture
def rng():
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print("seed", seed)
    return np.random.default_rng(seed)


@pytest.mark.parametrize("device", ["cpu", "cudasim"])
@pytest.mark.parametrize("name", NAMES)
def test_rows_are_those_of_dequantisation(rng, device, name):
    t = random_tensor(rng, name, (9, width(name, 2)))
    for ids in ([3], [0, 1, 2, 8, 8, 7], [4, 5, 5, 6], []):
        ids = np.array(ids, np.int32)
        out = asarray(np.zeros((len(ids), t.columns), np.float32), device)
        assert quant.embed(t.to(device), ids, out) is out
        assert_same_bits(asnumpy(out), reference(t)[ids])


def test_rows_with_gaps_and_threads(rng):
    t = random_tensor(rng, "Q8_0", (12, 3 * 32))[::2]
    ids = np.repeat(np.arange(6, dtype=np.int32), 2)[::-2]
    out = np.zeros((6, 100), np.float32)
    quant.embed(t, ids, out[:, 2:98], n_threads=2)
    assert_same_bits(np.ascontiguousarray(out[:, 2:98]), reference(t)[ids])
    assert not out[:, :2].any() and not out[:, 98:].any()


def test_what_does_not_fit_is_refused(rng):
    t = random_tensor(rng, "Q8_0", (4, 64))
    ids, out = np.zeros(3, np.int32), np.zeros((3, 64), np.float32)
    for kind, text, call in (
        (TypeError, "t: expected a QuantTensor", lambda: quant.embed(out, ids, out)),
        (ValueError, r"t: expected \(n_vocab, n\)", lambda: quant.embed(t.reshape(2, 2, 64), ids, out)),
        (TypeError, "ids: expected int32", lambda: quant.embed(t, ids.astype(np.int64), out)),
        (TypeError, "ids: lies on cudasim", lambda: quant.embed(t, asarray(ids, "cudasim"), out)),
        (IndexError, "ids: t has rows 0 to 3; got 4", lambda: quant.embed(t, ids + 4, out)),
        (IndexError, "ids: t has rows 0 to 3; got -1", lambda: quant.embed(t, ids - 1, out)),
        (TypeError, "out: expected float32 on cpu", lambda: quant.embed(t, ids, out.astype(np.float16))),
        (ValueError, r"out: expected shape \(3, 64\)", lambda: quant.embed(t, ids, out[:2])),
        (ValueError, "n_threads: cudasim has no use", lambda: quant.embed(t.to("cudasim"), ids, asarray(out.copy(), "cudasim"), n_threads=2)),
    ):  # fmt: skip
        with pytest.raises(kind, match=text):
            call()
        assert not out.any()
