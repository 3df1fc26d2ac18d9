"""Attention that reads on the device how many keys there are: a cache's, which a graph is launched over again."""

import numpy as np
import pytest
from attention_calls import HALF_BOUND, bound_for, on_device, products_by, random_operands
from comparison import assert_close

import lowlevel
from lowlevel import asarray, asnumpy
from lowlevel.attention.reference import attention_float64

# (d_k, d_v), heads, K/V heads, tokens
CALLS = {
    "64": ((64, 64), 4, 2, 3),
    "128, many rows": ((128, 128), 16, 1, 4),
    "192": ((192, 128), 2, 2, 1),
    "latent": ((576, 512), 20, 1, 2),
}
ROOM = 1400  # keys


def attend(device, operands, n_kv, options):
    """(out, lse) of a call over room for `ROOM` keys, of which the device is told how many there are."""
    q, k, v = on_device(operands, device)
    there = {
        name: asarray(value, device) if isinstance(value, np.ndarray) else value
        for name, value in options.items()
    }
    counted = asarray(np.array([n_kv], np.int32), device)
    out = asarray(np.full((*q.shape[:2], v.shape[2]), np.nan, np.float32), device)
    with lowlevel.Pool("64MiB", device=device) as pool:
        result = lowlevel.attention(
            q, k, v, n_kv=counted, pool=pool, out=out, return_lse=True, **there
        )
        return [asnumpy(array) for array in result]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("call", CALLS)
def test_keys_are_counted_on_the_device(device, rng, way, call, dtype):
    """As a call with so many keys; what lies behind is anything."""
    sizes, n_head, n_head_kv, n_tokens = CALLS[call]
    operands = random_operands(rng, n_head, n_head_kv, n_tokens, ROOM, *sizes, dtype)
    all_options = {
        "sinks": rng.standard_normal(n_head).astype(np.float32),
        "alibi_slopes": rng.uniform(0, 0.1, n_head).astype(np.float32),
        "mask": rng.standard_normal((n_tokens, ROOM)).astype(np.float32),
        "window": 700,
        "softcap": 20.0,
    }
    cases = [(n, {}) for n in (n_tokens, 65, 641, ROOM)]
    cases += [(1000, {"causal": False}), (1111, all_options)]
    for n_kv, options in cases:
        q, k, v = (operand.copy() for operand in operands)
        if np.shares_memory(operands[1], operands[2]):
            column = (operands[2].ctypes.data - operands[1].ctypes.data) // k.itemsize
            v = k[..., column : column + v.shape[2]]
        k[:, n_kv:], v[:, n_kv:] = np.nan, np.inf
        with products_by(way):
            out, lse = attend(device, [q, k, v], n_kv, options)
        options = dict(options)
        if "mask" in options:
            options["mask"] = options["mask"][:, :n_kv]
        expected = attention_float64(q, k[:, :n_kv], v[:, :n_kv], return_lse=True, **options)
        bound = bound_for(q, HALF_BOUND)
        what = f"{n_kv} keys, {sorted(options)}"
        assert_close(out.astype(np.float64), expected[0], bound, what)
        assert_close(lse, expected[1], bound, what, least=1)


@pytest.mark.parametrize("n_kv, counted", [(-5, 0), (0, 0), (ROOM + 1, ROOM)])
def test_numbers_that_no_cache_has(device, rng, n_kv, counted):
    """Fewer than none are none, and more than there is room for are as many as there is."""
    operands = random_operands(rng, 4, 2, 1, ROOM, 64, 64, "float16")
    out, _ = attend(device, operands, n_kv, {})
    if counted:
        expected = attention_float64(*operands)
        assert_close(out.astype(np.float64), expected, HALF_BOUND)
    else:
        assert not out.any()


def test_no_key_is_counted_where_kernels_do_not(device, rng):
    counted = asarray(np.array([3], np.int32), device)

    def call(n_kv=counted, n_tokens=1, dtype="float16"):
        operands = random_operands(rng, 4, 2, n_tokens, 100, 64, 64, dtype)
        lowlevel.attention(*on_device(operands, device), n_kv=n_kv)

    for options in ({"n_tokens": 70}, {"dtype": "float32"}):
        with pytest.raises(ValueError, match=r"n_kv: read by kernels .*k\[:, :n_kv\]"):
            call(**options)
    with pytest.raises(TypeError, match="n_kv: lies on cpu"):
        call(np.array([3], np.int32))
    with pytest.raises(TypeError, match=r"n_kv: expected int32.*got int64"):
        call(asarray(np.array([3]), device))
    with pytest.raises(ValueError, match=r"n_kv: expected shape \(1,\), got \(2,\)"):
        call(asarray(np.array([3, 4], np.int32), device))


def test_on_the_cpu_it_is_a_slice():
    array = np.ones((1, 4, 8), np.float32)
    with pytest.raises(ValueError, match=r"n_kv: read by kernels of a GPU.* give k\[:, :n_kv\]"):
        lowlevel.attention(array, array, array, n_kv=np.array([2], np.int32))


def test_sinks_of_the_device_stay_there(device, rng, monkeypatch):
    """And are as those of the host."""
    operands = random_operands(rng, 4, 2, 3, 100, 64, 64, "float16")
    values = rng.standard_normal(4).astype(np.float32)
    there = on_device(operands, device)
    results = []
    for sinks in (values, asarray(values, device)):
        if sinks is not values:
            refused = lambda *_: pytest.fail("waits for the device")  # noqa: E731
            monkeypatch.setattr(lowlevel.devices.get(device), "to_host", refused)
        results.append(lowlevel.attention(*there, sinks=sinks))
        monkeypatch.undo()
    np.testing.assert_array_equal(*map(asnumpy, results))
    with pytest.raises(ValueError, match=r"sinks: expected shape \(4,\)"):
        lowlevel.attention(*there, sinks=asarray(values[:3], device))
