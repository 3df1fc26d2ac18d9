"""One call of each operation on a device, on random rows, held against float64."""

import ml_dtypes
import numpy as np
import ops_cases as exact

from lowlevel import asarray, asnumpy, ops

DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
# Half a unit in the last place, and half the smallest number.
ROUNDING = {"float32": (2**-24, 1e-37), "float16": (2**-11, 2**-25), "bfloat16": (2**-8, 1e-37)}


def random_rows(rng, shape, dtype="float32", spread=2.0):
    return (spread * rng.standard_normal(shape)).astype(DTYPES[dtype])


def placed(rng, array, device):
    """A copy of rows on a device, in one of several layouts with gaps between rows."""
    kind = rng.integers(4)
    if kind == 0:
        return asarray(array.copy(), device)
    n = array.shape[-1]
    before, after = ((0, 8), (3, 2), (8, 1))[kind - 1]
    roomy = np.full((*array.shape[:-1], before + n + after), 77, array.dtype)
    roomy[..., before : before + n] = array
    if array.ndim == 3 and kind == 3:  # planes between the rows, as heads are
        whole = asarray(np.ascontiguousarray(roomy.transpose(1, 0, 2)), device)
        return whole.transpose(1, 0, 2)[..., before : before + n]
    return asarray(roomy, device)[..., before : before + n]


def held(result, wanted, bound, dtype="float32"):
    """Assert that a device's array is within an absolute `bound`, and rounding to `dtype`, of what is wanted."""
    result = exact.wide(asnumpy(result))
    relative, least = ROUNDING[dtype]
    np.testing.assert_array_equal(np.isnan(result), np.isnan(wanted))
    with np.errstate(invalid="ignore"):
        allowed = bound + relative * np.abs(wanted) * 1.01 + least
        bad = (np.abs(result - wanted) > allowed) & (result != wanted)
    assert not bad.any(), f"off by {np.abs(result - wanted)[bad][:5]}, allowed {allowed[bad][:5]}"


def outputs(rng, device, source, dtype, shape):
    """Where results may go: None (in place) where that is of the right dtype, and memory of its own."""
    own = placed(rng, np.zeros(shape, DTYPES[dtype]), device)
    return [own] if dtype != source else [own, None]


def rms_norm(rng, device, shape, source="float32", target="float32"):
    x = random_rows(rng, shape, source)
    for weight in (None, rng.standard_normal(shape[-1], np.float32)):
        wanted = exact.rms_norm(x, weight, 1e-5)
        for out in outputs(rng, device, source, target, shape):
            on = placed(rng, x, device)
            w = None if weight is None else asarray(weight, device)
            result = ops.rms_norm(on, w, eps=1e-5, out=out)
            assert result is (on if out is None else out)
            held(result, wanted, 1e-6 * np.abs(wanted), target)


def add_and_norm(rng, device, shape, source="float32", other="float32", target="float32"):
    """The bits of a sum and a norm of their own."""
    x, y = random_rows(rng, shape, source), random_rows(rng, shape, other)
    weight = asarray(rng.standard_normal(shape[-1], np.float32), device)
    on, addends = placed(rng, x, device), placed(rng, y, device)
    total = ops.add(asarray(x.copy(), device), addends)
    wanted = ops.rms_norm(total, weight, out=placed(rng, np.zeros(shape, DTYPES[target]), device))
    out = placed(rng, np.zeros(shape, DTYPES[target]), device)
    assert ops.rms_norm(on, weight, add=addends, out=out) is out
    np.testing.assert_array_equal(asnumpy(on), asnumpy(total))
    np.testing.assert_array_equal(asnumpy(out), asnumpy(wanted))


def gated(rng, device, kind, shape, source="float32", target="float32"):
    gate, up = random_rows(rng, shape, source, 5.0), random_rows(rng, shape, source, 5.0)
    wanted = getattr(exact, kind)(gate, up)
    size = np.abs(exact.wide(gate)) * (np.abs(exact.wide(up)) + 1)
    for out in outputs(rng, device, source, target, shape):
        on = placed(rng, gate, device)
        result = getattr(ops, kind)(on, placed(rng, up, device), out=out)
        assert result is (on if out is None else out)
        held(result, wanted, 5e-7 * size, target)


def add(rng, device, shape, source="float32", other="float32"):
    x, y = random_rows(rng, shape, source), random_rows(rng, shape, other)
    bias = random_rows(rng, shape[-1:], other)
    for addend in (y, bias):
        for out in outputs(rng, device, source, source, shape):
            on_device = asarray(addend, device) if addend is bias else placed(rng, y, device)
            result = ops.add(placed(rng, x, device), on_device, out=out)
            held(result, exact.wide(x) + exact.wide(addend), 0, source)
    if len(shape) == 2:
        ids = rng.integers(0, len(y), len(x)).astype(np.int32)
        result = ops.add(
            placed(rng, x, device), placed(rng, y, device), row_ids=asarray(ids, device)
        )
        held(result, exact.wide(x) + exact.wide(y)[ids], 0, source)


def scale(rng, device, shape, dtype="float32"):
    x = random_rows(rng, shape, dtype)
    held(ops.scale(placed(rng, x, device), 3.7), exact.wide(x) * np.float32(3.7), 0, dtype)


def cast(rng, device, shape, source="float32", target="float32"):
    """Any bits: NaN, infinities, subnormals, what overflows."""
    width = np.dtype(DTYPES[source]).itemsize
    x = rng.integers(0, 256, (*shape[:-1], width * shape[-1]), np.uint8).view(DTYPES[source])
    x.flat[: min(4, x.size)] = np.array([np.nan, np.inf, -np.inf, -0.0], DTYPES[source])[: x.size]
    with np.errstate(all="ignore"):
        wanted = x.astype(np.float32).astype(DTYPES[target])
    out = placed(rng, np.zeros(shape, DTYPES[target]), device)
    assert ops.cast(placed(rng, x, device), out) is out
    result, bits = asnumpy(out), f"u{wanted.itemsize}"
    with np.errstate(invalid="ignore"):
        is_nan = np.isnan(wanted)
        np.testing.assert_array_equal(np.isnan(result), is_nan)
    same = np.ascontiguousarray(result).view(bits) == wanted.view(bits)
    assert (same | is_nan).all()


def rope(rng, device, shape, n_rot, pairs, offset=0, dtype="float32", **options):
    names = dict(
        freq_base="base", freq_scale="scale", freq_factors="factors", ext_factor="ext", attn_factor="attn",
        beta_fast="fast", beta_slow="slow", n_ctx_orig="n_orig",
    )  # fmt: skip
    frequencies = ops.rope_frequencies(n_rot, **options).to(device)
    angles, magnitude = exact.frequencies(n_rot, **{names[k]: v for k, v in options.items()})
    assert frequencies.n_rot == n_rot and abs(frequencies.magnitude - magnitude) < 1e-12
    x = random_rows(rng, shape, dtype, 1.0)
    positions = rng.integers(0, 163840, shape[1]).astype(np.int32)
    positions[:1] = 2**31 - 1
    wanted = exact.rope(x, positions, angles, magnitude, pairs, offset)
    on = placed(rng, x, device)
    result = ops.rope(on, asarray(positions, device), frequencies, pairs=pairs, offset=offset)
    assert result is on
    # The largest position times the float64 error of an angle, which both sides make.
    held(result, wanted, magnitude * (3e-6 if shape[1] else 0), dtype)
    untouched = np.ones(shape[2], bool)
    untouched[offset : offset + n_rot] = False
    np.testing.assert_array_equal(asnumpy(result)[..., untouched], x[..., untouched])


def routing(
    rng, device, n_tokens, n_expert, n_used, gating, groups=(1, 1), dtype="float32", **options
):
    """Ids are the best by float64 but for scores that differ by rounding; weights are those of the ids."""
    logits = random_rows(rng, (n_tokens, n_expert), dtype, 3.0)
    bias = rng.standard_normal(n_expert, np.float32) if options.pop("biased", False) else None
    ids, weights = (
        placed(rng, np.zeros((n_tokens, n_used), kind), device) for kind in (np.int32, np.float32)
    )
    result = ops.top_k_routing(
        placed(rng, logits, device), ids, weights, gating=gating,
        bias=None if bias is None else asarray(bias, device),
        n_group=groups[0], n_group_used=groups[1], **options,
    )  # fmt: skip
    assert result[0] is ids and result[1] is weights
    chosen = asnumpy(ids)
    scores = exact.scores_of(logits, gating) + (0 if bias is None else bias)
    if bias is None and groups[0] == 1:
        scores = exact.wide(logits)  # any float32 rounding would be too much
    for token, row in enumerate(scores):
        best = exact.selection(row, n_used, *groups)
        assert len(set(chosen[token])) == n_used
        np.testing.assert_allclose(row[chosen[token]], row[best], rtol=0, atol=2e-6)
    wanted = exact.routing_weights(
        logits, chosen, gating, options.get("normalise", False), options.get("scale", 1.0)
    )
    held(weights, wanted, 1e-5 * wanted)


def gather(rng, device, n_rows, n, n_tokens, source="float32", target="float32"):
    table = random_rows(rng, (n_rows, n), source)
    ids = rng.integers(0, n_rows, n_tokens).astype(np.int32)
    out = placed(rng, np.zeros((n_tokens, n), DTYPES[target]), device)
    strided = asarray(np.repeat(ids, 2), device)[::2]
    assert ops.gather_rows(placed(rng, table, device), strided, out) is out
    held(out, exact.wide(table)[ids], 0, target)


def put(rng, device, shape, n_rows, source="float32", target="float32"):
    """`shape`: of the rows, to different places among `n_rows`; what is between them stays."""
    rows = random_rows(rng, shape, source)
    old = random_rows(rng, (*shape[:-2], n_rows, shape[-1]), target)
    ids = rng.permutation(n_rows)[: shape[-2]].astype(np.int32)
    out = placed(rng, old, device)
    assert ops.put_rows(placed(rng, rows, device), asarray(ids, device), out) is out
    wanted = exact.wide(old)
    wanted[..., ids, :] = exact.wide(rows)
    held(out, wanted, 0, target)


def scatter(rng, device, n_rows, n_tokens, n, source="float32", target="float32", pool=None):
    """With ids in any order, as many of each token in order, with weights and without."""
    rows, start = random_rows(rng, (n_rows, n), source), random_rows(rng, (n_tokens, n), target)
    scattered = rng.integers(0, n_tokens, n_rows).astype(np.int32)
    in_order = np.arange(n_rows) // max(1, n_rows // n_tokens)
    for tokens in (scattered, in_order if n_rows % n_tokens == 0 else scattered):
        for weights in (None, rng.uniform(0, 1, n_rows).astype(np.float32)):
            out = placed(rng, start, device)
            given = dict(weights=None if weights is None else asarray(weights, device), pool=pool)
            if tokens is scattered:
                given["tokens"] = asarray(tokens, device)
            assert ops.scatter_add(placed(rng, rows, device), out, **given) is out
            size = exact.scatter_add(np.abs(start), np.abs(rows), tokens, weights)
            held(out, exact.scatter_add(start, rows, tokens, weights), 1e-6 * size, target)
