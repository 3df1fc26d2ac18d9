"""What this machine can do at most: fill and read bandwidth, both at once, FMA and int8 dot peak, sgemm."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from lowlevel.cpu import simd
from lowlevel.cpu.jit import kernel
from lowlevel.cpu.threads import run_workers

from . import Variant, inputs

# As much as a dequantised tensor of the benchmark, written again and again.
FILL_BYTES = 64 * 2**20
READ_BYTES = 256 * 2**20
CHUNK_BYTES = 1 << 20
_VECTOR = 64
# Rounds of the register loops a task, and tasks a call: about 10 ms for one thread.
_ROUNDS, _TASKS = 100_000, 16
_ACCUMULATORS = 12 if simd.LEVEL == "avx512" else 6
_SGEMM = 2048

_blas_limit = None


def describe() -> dict[str, Any]:
    return dict(simd=simd.LEVEL)


def set_threads(n_threads: int) -> None:
    import threadpoolctl

    global _blas_limit
    _blas_limit = threadpoolctl.threadpool_limits(n_threads, user_api="blas")


def prepare(case: dict[str, Any], data: dict[str, np.ndarray]) -> dict[str, Variant | str]:
    """Columns named as the limit, a colon, and the way it is reached."""
    return {column: v for limit in case["limits"] for column, v in _MAKE[limit](data).items()}


# ---------------------------------------------------------------- memory


@kernel
def _fill_streaming(start, n_chunks, counter):
    # Not zero: Zen 4 streams cache lines of zeros at three times the speed of any others.
    value = simd.splat(np.float32(3))
    while True:
        task = simd.take_task(counter, 1)
        if task >= n_chunks:
            break
        base = start + task * CHUNK_BYTES
        for offset in range(0, CHUNK_BYTES, 4 * _VECTOR):
            simd.stream_at(base + offset, value)
            simd.stream_at(base + offset + _VECTOR, value)
            simd.stream_at(base + offset + 2 * _VECTOR, value)
            simd.stream_at(base + offset + 3 * _VECTOR, value)
    simd.stream_fence()
    return False


@kernel
def _fill_plain(start, n_chunks, counter):
    value = simd.splat(np.float32(1))
    while True:
        task = simd.take_task(counter, 1)
        if task >= n_chunks:
            return False
        base = start + task * CHUNK_BYTES
        for offset in range(0, CHUNK_BYTES, 2 * _VECTOR):
            simd.write_at(base + offset, value)
            simd.write_at(base + offset + _VECTOR, value)


@kernel
def _read(data, sums, counter):
    """Sum of all floats, eight running sums a worker."""
    a = b = c = d = e = f = g = h = simd.splat(np.float32(0))
    chunk = CHUNK_BYTES // 4
    while True:
        task = simd.take_task(counter, 1)
        if (task + 1) * chunk > data.size:
            break
        for i in range(task * chunk, (task + 1) * chunk, 128):
            a = a + simd.load_f32x16(data, i)
            b = b + simd.load_f32x16(data, i + 16)
            c = c + simd.load_f32x16(data, i + 32)
            d = d + simd.load_f32x16(data, i + 48)
            e = e + simd.load_f32x16(data, i + 64)
            f = f + simd.load_f32x16(data, i + 80)
            g = g + simd.load_f32x16(data, i + 96)
            h = h + simd.load_f32x16(data, i + 112)
    sums[0] += simd.sum_lanes(((a + b) + (c + d)) + ((e + f) + (g + h)))
    return False


def _make_traffic(store):
    @kernel
    def traffic(source, chunk_in, start, n_chunks, counter):
        """Reads evenly between writes; what was read is what is written, lest it be left out."""
        value = simd.splat(3)
        while True:
            task = simd.take_task(counter, 1)
            if task >= n_chunks:
                break
            base, read = start + task * CHUNK_BYTES, source + task * chunk_in
            done = 0
            for offset in range(0, CHUNK_BYTES, 4 * _VECTOR):
                due = (offset + 4 * _VECTOR) * chunk_in // CHUNK_BYTES
                while done < due:
                    value = value | simd.as_i32x16(simd.read_u8x64(read + done))
                    done += _VECTOR
                store(base + offset, value)
                store(base + offset + _VECTOR, value)
                store(base + offset + 2 * _VECTOR, value)
                store(base + offset + 3 * _VECTOR, value)
        simd.stream_fence()
        return False

    return traffic


_traffic_streaming, _traffic_plain = _make_traffic(simd.stream_at), _make_traffic(simd.write_at)


@functools.cache
def _buffer(n_bytes):
    return inputs.aligned(n_bytes // 4)


def _over_chunks(kernel_call, n_threads):
    counter = np.zeros(1, np.int64)
    run_workers(n_threads, lambda i: kernel_call(i, counter), counter)


def _fill(_inputs):
    start, n_chunks = _buffer(FILL_BYTES).ctypes.data, FILL_BYTES // CHUNK_BYTES
    info = dict(limit="fill", work=FILL_BYTES)

    def with_kernel(fill):
        return Variant(
            lambda n: _over_chunks(lambda i, counter: fill(start, n_chunks, counter), n), None, info
        )

    return {
        "fill: streaming": with_kernel(_fill_streaming),
        "fill: plain": with_kernel(_fill_plain),
    }


def _traffic(data):
    """As many bytes as the blocks read while as many as the weights are written: no arithmetic."""
    blocks, out = data["blocks"], _buffer(FILL_BYTES)
    n_chunks = FILL_BYTES // CHUNK_BYTES
    chunk_in = blocks.nbytes // n_chunks // _VECTOR * _VECTOR
    addresses = blocks.ctypes.data, chunk_in, out.ctypes.data, n_chunks
    info = dict(limit="traffic", work=FILL_BYTES)

    def with_kernel(traffic):
        def call(n_threads, blocks=blocks):
            _over_chunks(lambda i, counter: traffic(*addresses, counter), n_threads)

        return Variant(call, None, info)

    return {
        "traffic: streaming": with_kernel(_traffic_streaming),
        "traffic: plain": with_kernel(_traffic_plain),
    }


def _read_variants(_inputs):
    data, sums = _buffer(READ_BYTES), np.zeros((64, 16), np.float32)

    def call(n_threads):
        _over_chunks(lambda i, counter: _read(data, sums[i % 64], counter), n_threads)

    return {"read: sum": Variant(call, None, dict(limit="read", work=READ_BYTES))}


# ---------------------------------------------------------------- arithmetic


@kernel
def _fma_6(x, y, results, n_rounds):
    p, q = simd.splat(x), simd.splat(y)
    # chains that start alike would be one chain to the compiler
    a, b, c = q, simd.splat(x + 1), simd.splat(x + 2)
    d, e, f = simd.splat(x + 3), simd.splat(x + 4), simd.splat(x + 5)
    for _ in range(n_rounds):
        a, b, c = simd.fma(a, p, q), simd.fma(b, p, q), simd.fma(c, p, q)
        d, e, f = simd.fma(d, p, q), simd.fma(e, p, q), simd.fma(f, p, q)
    results[0] = simd.sum_lanes(((a + b) + (c + d)) + (e + f))


@kernel
def _fma_12(x, y, results, n_rounds):
    p, q = simd.splat(x), simd.splat(y)
    a, b, c = q, simd.splat(x + 1), simd.splat(x + 2)
    d, e, f = simd.splat(x + 3), simd.splat(x + 4), simd.splat(x + 5)
    g, h, i = simd.splat(x + 6), simd.splat(x + 7), simd.splat(x + 8)
    j, k, m = simd.splat(x + 9), simd.splat(x + 10), simd.splat(x + 11)
    for _ in range(n_rounds):
        a, b, c = simd.fma(a, p, q), simd.fma(b, p, q), simd.fma(c, p, q)
        d, e, f = simd.fma(d, p, q), simd.fma(e, p, q), simd.fma(f, p, q)
        g, h, i = simd.fma(g, p, q), simd.fma(h, p, q), simd.fma(i, p, q)
        j, k, m = simd.fma(j, p, q), simd.fma(k, p, q), simd.fma(m, p, q)
    first = ((a + b) + (c + d)) + (e + f)
    results[0] = simd.sum_lanes(first + (((g + h) + (i + j)) + (k + m)))


@kernel
def _dots_12(data, results, n_rounds):
    """Twelve chains of byte products; one operand is read anew each round, or it would be hoisted."""
    s = simd.load_u8x64(data, 0)
    a, b, c, d, e, f = (
        simd.splat(0), simd.splat(1), simd.splat(2), simd.splat(3), simd.splat(4), simd.splat(5),
    )  # fmt: skip
    g, h, i, j, k, m = (
        simd.splat(6), simd.splat(7), simd.splat(8), simd.splat(9), simd.splat(10), simd.splat(11),
    )  # fmt: skip
    for n in range(n_rounds):
        u = simd.load_u8x64(data, (n & 7) * 64)
        a, b, c = simd.dot_u8s8(a, u, s), simd.dot_u8s8(b, u, s), simd.dot_u8s8(c, u, s)
        d, e, f = simd.dot_u8s8(d, u, s), simd.dot_u8s8(e, u, s), simd.dot_u8s8(f, u, s)
        g, h, i = simd.dot_u8s8(g, u, s), simd.dot_u8s8(h, u, s), simd.dot_u8s8(i, u, s)
        j, k, m = simd.dot_u8s8(j, u, s), simd.dot_u8s8(k, u, s), simd.dot_u8s8(m, u, s)
    first = simd.to_f32(a + b + c) + simd.to_f32(d + e + f)
    results[0] = simd.sum_lanes(first + (simd.to_f32(g + h + i) + simd.to_f32(j + k + m)))


@kernel
def _dots_6(data, results, n_rounds):
    """The same of six, which are two registers each where those have 32 bytes."""
    s = simd.load_u8x64(data, 0)
    a, b, c, d, e, f = (
        simd.splat(0), simd.splat(1), simd.splat(2), simd.splat(3), simd.splat(4), simd.splat(5),
    )  # fmt: skip
    for n in range(n_rounds):
        u = simd.load_u8x64(data, (n & 7) * 64)
        a, b, c = simd.dot_u8s8(a, u, s), simd.dot_u8s8(b, u, s), simd.dot_u8s8(c, u, s)
        d, e, f = simd.dot_u8s8(d, u, s), simd.dot_u8s8(e, u, s), simd.dot_u8s8(f, u, s)
    results[0] = simd.sum_lanes(simd.to_f32(a + b + c) + simd.to_f32(d + e + f))


@kernel
def _next_task(counter):
    return simd.take_task(counter, 1)


def _register_loop(limit, run_once, operations):
    def call(n_threads):
        counter = np.zeros(1, np.int64)
        results = np.zeros((n_threads, 16), np.float32)

        def worker(i):
            while _next_task(counter) < _TASKS:
                run_once(results[i])
            return False

        run_workers(n_threads, worker, counter)

    info = dict(limit=limit, work=float(operations * _ROUNDS * _TASKS))
    return {f"{limit}: registers": Variant(call, None, info)}


def _fma(_inputs):
    run = _fma_12 if _ACCUMULATORS == 12 else _fma_6
    x, y = np.float32(0.999), np.float32(0.001)  # stays near 1
    return _register_loop(
        "fma", lambda results: run(x, y, results, _ROUNDS), 2 * 16 * _ACCUMULATORS
    )


def _int8_dot(_inputs):
    run = _dots_12 if _ACCUMULATORS == 12 else _dots_6
    data = np.ones(512, np.uint8)
    return _register_loop(
        "int8 dot", lambda results: run(data, results, _ROUNDS), 2 * 64 * _ACCUMULATORS
    )


def _sgemm(_inputs):
    a, b, c = (inputs.aligned((_SGEMM, _SGEMM)) for _ in range(3))
    a[:], b[:] = 1, 1
    info = dict(limit="sgemm", work=2.0 * _SGEMM**3)
    return {"sgemm: OpenBLAS": Variant(lambda n_threads: np.matmul(a, b, out=c), None, info)}


# Each is called with the case's inputs.
_MAKE = {
    "fill": _fill,
    "traffic": _traffic,
    "read": _read_variants,
    "fma": _fma,
    "int8 dot": _int8_dot,
    "sgemm": _sgemm,
}
