"""Vectors in memory: loads, stores, streams, addresses and tasks of lowlevel.cpu.simd.

The last test runs the others again as on lesser CPUs.
"""

import threading

import numpy as np
import pytest
from simd_cases import LANES, assert_same, random_floats

from lowlevel.cpu import kv_fill, simd
from lowlevel.cpu.jit import kernel


@pytest.fixture
def rng():
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print("seed", seed)
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def quiet():
    with np.errstate(all="ignore"):
        yield


@pytest.mark.parametrize(
    ("load", "dtype", "lanes"),
    [
        (simd.load_f32x16, "float32", 16),
        (simd.load_i32x16, "int32", 16),
        (simd.load_u16x16, "uint16", 16),
        (simd.load_u8x16, "uint8", 16),
        (simd.load_u8x32, "uint8", 32),
        (simd.load_u8x64, "uint8", 64),
    ],
)
def test_loads_and_stores_at_any_alignment(rng, load, dtype, lanes):
    """Every item index, and arrays that start at odd bytes; nothing beside is touched."""

    @kernel
    def copy(source, i, target, j):
        simd.store(target, j, load(source, i))

    item = np.dtype(dtype).itemsize
    for start in range(0, 64, 7 if item > 1 else 13):  # bytes
        memory, out = (
            np.frombuffer(bytearray(rng.bytes(300 * item + 64)), np.uint8) for _ in range(2)
        )
        source, target = (m[start : start + 300 * item].view(dtype) for m in (memory, out))
        i, j = (int(x) for x in rng.integers(0, 300 - lanes, 2))
        expected = target.copy()
        expected[j : j + lanes] = source[i : i + lanes]
        copy(source, i, target, j)
        np.testing.assert_array_equal(target.view(np.uint8), expected.view(np.uint8))


def aligned(n_bytes, alignment=64, dtype=np.uint8):
    memory = np.zeros(n_bytes + alignment, np.uint8)
    start = -memory.ctypes.data % alignment
    return memory[start : start + n_bytes].view(dtype)


def test_streams_to_whole_vectors(rng):
    @kernel
    def stream_all(floats, halves, out, out_halves):
        for i in range(0, len(floats), LANES):
            simd.stream(out, i, simd.load_f32x16(floats, i))
            simd.stream_half(out_halves, i, simd.load_u16x16(halves, i))
        simd.stream_fence()

    floats, halves = random_floats(rng, 1600), rng.integers(0, 2**16, 1600, dtype=np.uint16)
    out, out_halves = aligned(6400, 64, np.float32), aligned(3200, 32, np.uint16)
    stream_all(floats, halves, out, out_halves)
    assert_same(out.view(np.int32), floats.view(np.int32))
    assert_same(out_halves, halves)


@pytest.mark.parametrize(
    ("load", "lanes", "dtype"),
    [
        (simd.load_f32x16, 16, "float32"),
        (simd.load_i32x16, 16, "int32"),
        (simd.load_u16x16, 16, "uint16"),
        (simd.load_u8x16, 16, "uint8"),
        (simd.load_u8x32, 32, "uint8"),
        (simd.load_u8x64, 64, "uint8"),
    ],
)
@pytest.mark.parametrize(
    ("write", "alignment"),
    [(simd.write_at, 1), (simd.stream_at, None), (simd.stream_pieces_at, 16)],
    ids=["write_at", "stream_at", "stream_pieces_at"],
)
def test_writes_to_addresses(rng, write, alignment, load, lanes, dtype):
    size = lanes * np.dtype(dtype).itemsize
    alignment = alignment or size

    @kernel
    def copy(source, address):
        write(address, load(source, 0))
        simd.stream_fence()

    values = np.frombuffer(rng.bytes(size), dtype)
    for multiple in range(1, 5):
        memory = aligned(1024)
        memory[:] = rng.integers(0, 256, 1024)
        expected = memory.copy()
        at = multiple * alignment if alignment > 1 else int(rng.integers(0, 900))
        expected[at : at + size] = values.view(np.uint8)
        copy(values, memory.ctypes.data + at)
        np.testing.assert_array_equal(memory, expected)


@pytest.mark.parametrize("write", [simd.write_at, simd.stream_at, simd.stream_pieces_at])
def test_writes_of_scalars_to_addresses(write):
    @kernel
    def put(address):
        write(address, np.float32(1.5))
        write(address + 5, np.uint16(0x1234))
        write(address + 9, np.uint8(0xAB))

    memory = np.zeros(16, np.uint8)
    put(memory.ctypes.data + 1)
    assert memory[1:5].view(np.float32)[0] == 1.5
    assert memory[6:8].view(np.uint16)[0] == 0x1234
    assert memory[10] == 0xAB
    assert not memory[[0, 5, 8, 9, *range(11, 16)]].any()


@pytest.mark.parametrize(
    ("read", "dtype", "lanes"),
    [
        (simd.read_u8, "uint8", 1),
        (simd.read_u16, "uint16", 1),
        (simd.read_i32, "int32", 1),
        (simd.read_i64, "int64", 1),
        (simd.read_u8x16, "uint8", 16),
        (simd.read_u8x32, "uint8", 32),
        (simd.read_u8x64, "uint8", 64),
        (simd.read_u16x16, "uint16", 16),
    ],
)
def test_reads_from_addresses(rng, read, dtype, lanes):
    @kernel
    def copy(address, target):
        simd.write_at(target, read(address))

    memory = rng.integers(0, 256, 200, dtype=np.uint8)
    size = lanes * np.dtype(dtype).itemsize
    for at in range(0, 100, 9):
        target = np.zeros(80, np.uint8)
        copy(memory.ctypes.data + at, target.ctypes.data + 3)
        np.testing.assert_array_equal(target[3 : 3 + size], memory[at : at + size])
        assert not target[:3].any() and not target[3 + size :].any()


def test_floats_behind_addresses_with_negative_indices(rng):
    @kernel
    def move(address, i, target, j):
        simd.write_f32(target, j, simd.read_f32(address, i))
        simd.write_f32x16(target, j + 1, simd.read_f32x16(address, i + 1))

    source, target = random_floats(rng, 100), np.zeros(100, np.float32)
    middle = 4 * 50
    for i, j in ((-50, 33), (33, -50), (0, 0), (-7, 5)):
        target[:] = 0
        move(source.ctypes.data + middle, i, target.ctypes.data + middle, j)
        assert_same(target[50 + j : 67 + j], source[50 + i : 67 + i])
        assert not target[: 50 + j].any() and not target[67 + j :].any()


def test_write_first_f32(rng):
    @kernel
    def put(values, address, n):
        simd.write_first_f32(address, 3, simd.load_f32x16(values, 0), n)

    values = random_floats(rng, LANES)
    for n in (-5, *range(LANES + 1), 17, 1000):
        target = np.full(40, 7, np.float32)
        put(values, target.ctypes.data, n)
        kept = min(max(n, 0), LANES)
        assert_same(target[3 : 3 + kept], values[:kept])
        assert (target[:3] == 7).all() and (target[3 + kept :] == 7).all()


def test_address():
    @kernel
    def where(array):
        return simd.address(array)

    array = np.zeros(10, np.uint16)
    assert where(array) == array.ctypes.data
    assert where(array[3:]) == array.ctypes.data + 6


def test_spilled_vectors_can_be_read_back(rng):
    """Several at once, in a loop: each has a place of its own and holds the latest value."""

    @kernel
    def reverse_and_double(a, out):
        for i in range(0, len(a), LANES):
            x = simd.load_f32x16(a, i)
            first, second = simd.spill(x), simd.spill(x + x)
            for j in range(LANES):
                out[i + j] = simd.read_f32(first, LANES - 1 - j)
                out[len(a) + i + j] = simd.read_f32(second, LANES - 1 - j)

    a = random_floats(rng, 5 * LANES)
    out = np.zeros(2 * len(a), np.float32)
    reverse_and_double(a, out)
    backwards = a.reshape(-1, LANES)[:, ::-1].ravel()
    assert_same(out[: len(a)], backwards)
    assert_same(out[len(a) :], backwards + backwards)


def test_prefetch_takes_any_address():
    @kernel
    def ask(address):
        simd.prefetch(address)
        return 1

    for address in (0, -1, 8, 2**63 - 1, -(2**63), np.zeros(1).ctypes.data):
        assert ask(address) == 1


def test_call_fill(rng):
    @kernel
    def call(function, source, row_stride, n_rows, n_columns, out, stride):
        simd.call_fill(function, source, row_stride, n_rows, n_columns, out, stride)

    for name, dtype in (("float32", np.float32), ("float16", np.float16)):
        source = rng.standard_normal((5, 40)).astype(dtype)
        for n_columns in (1, 15, 16, 37):
            out = np.full((5, 40), 7, np.float32)
            call(
                kv_fill.DENSE[name].address, source.ctypes.data + 4 * source.strides[0],
                -source.strides[0], 5, n_columns, out.ctypes.data, 40,
            )  # fmt: skip
            assert_same(out[:, :n_columns], source[::-1, :n_columns].astype(np.float32))
            assert (out[:, n_columns:] == 7).all()


def test_each_task_is_taken_once():
    """Four threads on one counter, tasks in portions of several sizes."""

    @kernel
    def take_all(counter, portion, taken):
        while True:
            first = simd.take_task(counter, portion)
            if first >= len(taken):
                return
            for i in range(first, min(first + portion, len(taken))):
                taken[i] += 1

    for portion in (1, 3):
        n = 200_001
        counter, taken = np.zeros(1, np.int64), np.zeros(n, np.int8)
        take_all(np.full(1, n), portion, taken)  # compiles
        threads = [
            threading.Thread(target=take_all, args=(counter, portion, taken)) for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert (taken == 1).all()
        assert counter[0] == -(-n // portion) * portion + 4 * portion
