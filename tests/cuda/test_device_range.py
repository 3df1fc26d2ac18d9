"""Attention on devices from small scores to float32's ends: right, or past them NaN, in every kernel."""

import numpy as np
import pytest
import range_cases
from attention_calls import DTYPES, HALF_BOUND, attend, products_by
from range_cases import HIGHEST, LOWEST, assert_right

import lowlevel
import quant
from lowlevel.gpu import instances

# (d_k, d_v, type, products): of every fused kernel, and the tiles path.
WAYS = [
    (*sizes, dtype, way)
    for sizes in sorted(instances.FUSED_SHAPES)
    for dtype in ("float16", "bfloat16")
    for way in (("wgmma", "mma") if sizes in instances.WGMMA_SHAPES else ("mma",))
]
WAYS += [(40, 24, dtype, "mma") for dtype in DTYPES]


@pytest.fixture(params=WAYS, ids=str)
def kind(request):
    """(d_k, d_v, type) whose products the test's kernels make in one way."""
    *kind, way = request.param
    with products_by(way):
        yield kind


def bound(dtype):
    return 5e-6 if dtype == "float32" else 2 * HALF_BOUND


def latent(operands, d_k, d_v):
    """V inside K where the kernel wants it there: then of zeros but for the scores' column."""
    q, k, v = operands
    return [q, k, k[..., d_k - d_v :]] if (d_k, d_v) == (576, 512) else [q, k, v]


def test_random_calls_over_the_range(device, kind, rng):
    d_k, d_v, dtype = kind
    for number in range(4):
        n_head, n_head_kv = [(1, 1), (4, 2), (3, 1)][rng.integers(3)]
        n_tokens, n_kv = int(rng.choice([1, 5, 33])), int(rng.choice([1, 64, 200]))
        sizes = n_head, n_head_kv, n_tokens, n_kv, d_k, d_v
        operands, scale = range_cases.operands(rng, *sizes, DTYPES[dtype])
        operands = latent(operands, d_k, d_v)
        options = range_cases.options(rng, n_head, n_tokens, n_kv) if number % 2 else {}
        options = dict(options, scale=scale)
        right = range_cases.expected(*operands, **options)
        got = attend(device, operands, options)
        assert_right(got, right, bound(dtype), f"{sizes} {options}")


def test_a_whole_row_of_the_lowest_mask_is_the_mean(device, kind):
    """As Hugging Face writes padding."""
    d_k, d_v, dtype = kind
    q, k = (np.ones((1, n, d_k), DTYPES[dtype]) for n in (1, 4))
    v = (np.arange(4 * d_v) % 128).reshape(1, 4, d_v).astype(DTYPES[dtype])
    q, k, v = latent([q, k, v], d_k, d_v)
    mask = np.full((1, 4), LOWEST)
    out, lse = attend(device, (q, k, v), dict(mask=mask, causal=False))
    np.testing.assert_allclose(out, v.astype("f4").mean(1, keepdims=True), rtol=bound(dtype))
    assert (lse == LOWEST).all()
    out, lse = attend(device, (q, k, v), dict(mask=mask, causal=False, sinks=[HIGHEST]))
    assert (out == 0).all() and (lse == HIGHEST).all()


def test_scores_past_integers(device, kind):
    d_k, d_v, dtype = kind
    q, k = (np.zeros((1, n, d_k), DTYPES[dtype]) for n in (17, 2))
    v = np.broadcast_to(np.array([[1], [5]], DTYPES[dtype]), (1, 2, d_v))
    q[..., 0], k[0, :, 0] = 1, (5e4, -5e4)
    q, k, v = latent([q, k, v], d_k, d_v)
    for scale in (0.11, 1.1e5, 1.1e15, 6.7e33):
        out, lse = attend(device, (q, k, v), dict(scale=scale, causal=False))
        assert (out == v[0, 0].astype("f4")).all()
        right = np.float64(k[0, 0, 0]) * np.float32(scale)
        np.testing.assert_allclose(lse, np.full(lse.shape, right), rtol=1e-6)
    out, lse = attend(device, (q, k, v), dict(scale=7e33, causal=False))
    assert np.isnan(out).all() and np.isnan(lse).all()


@pytest.mark.parametrize("way", ["wgmma", "mma"])
@pytest.mark.parametrize("general", [False, True])
def test_splits_and_chunks_over_the_range(device, way, general, launched, rng):
    """Maxima go from a chunk of keys to the next, and from splits to the merge, as they are."""
    (q, k, v), scale = range_cases.operands(rng, 4, 2, 1, 2100, 64, 64, np.float16)
    q[...], scale = np.abs(q), 2.0 ** int(rng.integers(-30, 90))
    k, v = quant.quantize(k.astype("f4"), "Q8_0"), quant.quantize(v.astype("f4"), "Q8_0")
    plain = [quant.dequantize(x).astype(np.float16) for x in (k, v)]
    options = dict(scale=scale, sinks=np.array([-1e9, HIGHEST, LOWEST, 2], np.float32))
    if general:
        options["mask"] = rng.choice(np.float32([0, LOWEST, -1e9]), (1, 2100))
    right = range_cases.expected(q, *plain, **options)
    there = {
        name: lowlevel.asarray(x, device) if name == "mask" else x for name, x in options.items()
    }
    with products_by(way):
        for operands in (plain, (k, v)):
            on_device = [
                x.to(device) if hasattr(x, "to") else lowlevel.asarray(x, device) for x in operands
            ]
            out = lowlevel.asarray(np.zeros((4, 1, 64), np.float32), device)
            with lowlevel.Pool("700KiB", device=device) as pool:
                got = lowlevel.attention(
                    lowlevel.asarray(q, device), *on_device, out=out, pool=pool, return_lse=True, **there
                )  # fmt: skip
            got = [lowlevel.asnumpy(x) for x in got]
            assert_right(got, right, bound("float16"), f"{scale}")
    assert instances.MERGE["float16"] in launched
