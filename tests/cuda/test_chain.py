"""From norm to experts without the host: nothing waits, and a CUDA graph holds it, replayed while a cache grows."""

import numpy as np
import pytest
from attention_calls import DTYPES
from chain import Layer, Sizes

from lowlevel import Pool, asnumpy, devices

# Root mean square of the error over that of the result: activations are 8 or 16 bits.
BOUND = 0.02
WAITS = ("synchronise", "to_host", "from_host", "upload", "allocate", "empty")


def set_tokens(layer, rng, first, dtype):
    """Rows and positions of the next tokens; (rows as float64, positions)."""
    s, device = layer.sizes, devices.get(layer.device)
    x = rng.standard_normal((s.n_tokens, s.n_embd)).astype(dtype)
    positions = np.arange(first, first + s.n_tokens, dtype=np.int32)
    n_kv = np.array([first + s.n_tokens], np.int32)
    for target, array in ((layer.x, x), (layer.positions, positions), (layer.n_kv, n_kv)):
        device.upload(target, array)
    return x.astype(np.float64), positions


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("n_tokens", [1, 3])
def test_no_call_waits(device, rng, monkeypatch, dtype, n_tokens):
    """Nothing but launches from norm to norm; what comes out is right."""
    layer = Layer(rng, Sizes(n_tokens), DTYPES[dtype], device)
    caches = np.zeros((2, *layer.cache_k.shape))
    with Pool("1MiB", device=device) as pool:
        for first in (0, n_tokens, 600):
            x, positions = set_tokens(layer, rng, first, DTYPES[dtype])
            waits = []
            with monkeypatch.context() as patch:
                for name in WAITS:
                    patch.setattr(
                        devices.get(device), name, lambda *_, of=(waits, name): of[0].append(of[1])
                    )
                layer.run(pool)
            assert not waits
            expected = layer.expected(x, positions, *caches)
            error = asnumpy(layer.x).astype(np.float64) - expected
            assert np.sqrt((error**2).mean() / (expected**2).mean()) < BOUND
        assert pool.used == 0


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("n_tokens", [1, 3])
def test_a_graph_holds_it(rng, dtype, n_tokens):
    """Captured once, launched for ever longer caches: the bits of calls one by one."""
    cupy = pytest.importorskip("cupy")
    seed = int(rng.integers(2**32))
    one_by_one, in_graph = (
        Layer(np.random.default_rng(seed), Sizes(n_tokens), DTYPES[dtype], "cuda:0")
        for _ in range(2)
    )
    stream = cupy.cuda.Stream(non_blocking=True)
    with Pool("1MiB", device="cuda:0") as pool, Pool("1MiB", device="cuda:0") as own:
        cupy.cuda.Device().synchronize()
        with stream:
            in_graph.run(own)  # loads kernels, which no capture may
            stream.begin_capture(mode=cupy.cuda.runtime.streamCaptureModeGlobal)
            in_graph.run(own)
            graph = stream.end_capture()
        for first in (0, n_tokens, 70, 630):
            rows = int(rng.integers(2**32))
            set_tokens(one_by_one, np.random.default_rng(rows), first, DTYPES[dtype])
            one_by_one.run(pool)
            with stream:
                set_tokens(in_graph, np.random.default_rng(rows), first, DTYPES[dtype])
                graph.launch(stream)
                found = asnumpy(in_graph.x)
            np.testing.assert_array_equal(found, asnumpy(one_by_one.x))
            assert (found != 0).any()
        assert own.used == 0


@pytest.mark.gpu
def test_memory_of_other_streams_is_refused_in_a_capture():
    """A graph cannot wait for them; those that come later do not wait for what only was captured."""
    cupy = pytest.importorskip("cupy")
    stream = cupy.cuda.Stream(non_blocking=True)
    with Pool("1MiB", device="cuda:0") as pool:
        pool.free(pool.empty(1000))
        with stream:
            stream.begin_capture()
            try:
                with pytest.raises(RuntimeError, match="a pool of their own"):
                    pool.empty(1000)
            finally:
                stream.end_capture()
            assert pool.used == 0
            pool.free(pool.empty(1000))
            stream.begin_capture()
            pool.free(pool.empty(1000))
            stream.end_capture()
        pool.free(pool.empty(1000))
