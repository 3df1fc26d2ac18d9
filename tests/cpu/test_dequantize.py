"""quant.dequantize: bit for bit what the gguf package says, whatever the bytes and the layout."""

import mmap
import threading

import numpy as np
import pytest
from quant_cases import assert_same_bits, random_tensor, reference, width

import quant.cpu.dequantize.run as cpu
from quant import FORMATS, QuantTensor, dequantize
from quant.cpu.dequantize.decoders import DECODERS

ALL = tuple(row.name for row in FORMATS.values())
DTYPES = ("float32", "float16")


@pytest.fixture
def rng():
    seed = int(np.random.SeedSequence().entropy % 2**32)
    print("seed", seed)
    return np.random.default_rng(seed)


def sparse_bytes(n_bytes):
    """So many bytes of address space; pages that nobody touches take no memory."""
    try:
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0)
        return np.frombuffer(mmap.mmap(-1, n_bytes, flags=flags), np.uint8)
    except (OSError, ValueError) as error:
        pytest.skip(f"no {n_bytes} bytes of address space: {error}")


# ---------------------------------------------------------------- the same bits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_bits(rng, name, dtype):
    t = random_tensor(rng, name, (2, 7, width(name, 5)))
    assert_same_bits(dequantize(t, dtype), reference(t, dtype))


# Formats differ in it by their writers (values or codes of a table) and by the weights that they write at a time, in
# which order: all write sixteen or thirty-two, at multiples of that.
STREAMED = ("F32", "F16", "BF16", "Q8_0", "IQ4_NL", "Q2_K", "Q4_K", "IQ4_XS", "Q5_0", "TQ1_0")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", STREAMED)
def test_bits_when_streaming(rng, name, dtype, monkeypatch):
    monkeypatch.setattr(cpu, "STREAM_BYTES", 0)
    t = random_tensor(rng, name, (3, width(name, 64)))
    memory = np.zeros(t.size * 4 + 128, np.uint8)
    start = -memory.ctypes.data % 64
    for offset in (0, 16, 4, 48):  # 4: not streamed, or the process would die
        out = memory[start + offset :][: t.size * np.dtype(dtype).itemsize]
        out = out.view(dtype).reshape(t.shape)
        assert_same_bits(dequantize(t, out=out), reference(t, dtype))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["Q8_0", "IQ4_NL", "Q4_0", "MXFP4"])
def test_every_scale(rng, name, dtype):
    """All 65536 values of d, one in each block; of a scale of eight bits all 256."""
    t = random_tensor(rng, name, (256, 256 * 32))
    scale = t.format.fields[0]
    bits = np.arange(65536).astype(f"u{scale.n_bytes}").reshape(256, 256)
    t.data.view(t.format.block_dtype)[scale.name] = bits.view(scale.dtype)
    assert_same_bits(dequantize(t, dtype), reference(t, dtype))


@pytest.mark.parametrize("name", ["F16", "BF16"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_16_bit_float(name, dtype):
    t = QuantTensor(np.arange(65536, dtype=np.uint16).view(np.uint8), name, (65536,))
    assert_same_bits(dequantize(t, dtype), reference(t, dtype))


def test_float16_is_rounded_to_nearest_even(rng):
    halves = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float64)
    ties = np.append((halves[1:] + halves[:-1]) / 2, 65520).astype(np.float32)
    values = np.concatenate([ties, np.nextafter(ties, 0), np.nextafter(ties, np.float32(1e9))])
    values = np.concatenate([values, -values, np.float32([np.inf, -np.inf, np.nan, 1e30, 1e-44])])
    t = QuantTensor(values.view(np.uint8), "F32", values.shape)
    with np.errstate(over="ignore"):
        assert_same_bits(dequantize(t, "float16"), values.astype(np.float16))


def test_way_by_size_and_alignment(monkeypatch):
    memory = np.zeros(1 << 12, np.uint8)
    memory = memory[-memory.ctypes.data % 64 :]

    def way(offset, *axes):
        return cpu.best_way(memory[offset : offset + 512].view(np.float32), cpu.Runs(axes, 4))

    assert way(0) == "cached"
    monkeypatch.setattr(cpu, "STREAM_BYTES", 512)
    assert (way(0), way(16), way(4)) == ("streamed", "streamed in pieces", "cached")
    assert way(0, (2, 34, 192)) == "streamed"
    assert way(0, (2, 34, 208)) == "streamed in pieces"
    assert way(0, (2, 34, 192), (3, 34, 196)) == "cached"


# ---------------------------------------------------------------- layouts


@pytest.mark.parametrize("name", ALL)
def test_strided_read_only_blocks(rng, name):
    n = width(name, 3)
    whole = random_tensor(rng, name, (5, 6, n))
    whole.data.flags.writeable = False
    for index in (slice(None, None, 2), (slice(1, 4), slice(None, None, -2)), (3, slice(2, 3)), 4):
        assert_same_bits(dequantize(whole[index]), reference(whole[index]))
    same = QuantTensor(np.broadcast_to(whole.data[2, 3], (9, whole.row_bytes)), name, (9, n))
    assert_same_bits(dequantize(same), reference(same))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ALL)
def test_out_is_written_and_nothing_else(rng, name, dtype):
    t = random_tensor(rng, name, (3, 5, width(name, 2)))
    memory = np.full((4, 11, t.columns + 3), 7, dtype)
    out = memory[:3, 1:11:2, 2:-1]
    assert dequantize(t, out=out) is out
    assert_same_bits(np.ascontiguousarray(out), reference(t, dtype))
    memory[:3, 1:11:2, 2:-1] = 7
    assert (memory == 7).all()


def test_out_may_be_a_transposed_view(rng):
    t = random_tensor(rng, "IQ4_NL", (4, 3, 64))
    out = np.zeros((3, 4, 64), np.float32).transpose(1, 0, 2)
    dequantize(t, out=out)
    assert_same_bits(np.ascontiguousarray(out), reference(t))


@pytest.mark.parametrize("shape", [(0, 256), (3, 0), (2, 0, 512), (0,)])
def test_empty(shape):
    t = QuantTensor(np.zeros(0, np.uint8), "Q2_K", shape)
    assert dequantize(t).shape == shape
    assert dequantize(t, out=np.zeros(shape, np.float16)).dtype == np.float16


@pytest.mark.parametrize("name", ["Q3_K", "Q4_0", "F32"])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (1, 3, 1)])
def test_single_rows(rng, name, shape):
    t = random_tensor(rng, name, (*shape[:-1], width(name, shape[-1])))
    assert_same_bits(dequantize(t), reference(t))


@pytest.mark.parametrize("name", ALL)
def test_unaligned_data(rng, name):
    t = random_tensor(rng, name, (3, width(name, 3)))
    data = np.zeros(t.n_bytes + 1, np.uint8)
    data[1:] = t.data.ravel()
    assert_same_bits(dequantize(QuantTensor(data[1:], name, t.shape)), reference(t))


def test_rows_far_apart(rng):
    """Strides that 32 bits cannot hold, on both sides."""
    t = random_tensor(rng, "Q4_K", (2, 2, 512))
    source, destination = sparse_bytes(6 << 30), sparse_bytes(9 << 30)
    strides = (4 << 30, 3 << 29, 1)
    data = np.lib.stride_tricks.as_strided(source, t.data.shape, strides, writeable=True)
    data[...] = t.data
    out = np.lib.stride_tricks.as_strided(
        destination.view(np.float32), t.shape, (7 << 30, 3 << 29, 4), writeable=True
    )
    dequantize(QuantTensor(data, "Q4_K", t.shape), out=out)
    assert_same_bits(np.ascontiguousarray(out), reference(t))


@pytest.mark.parametrize("name", ["Q2_K", "IQ4_NL"])
def test_beyond_two_to_the_31_weights_in_one_run(rng, name):
    """The last units of a run of more than 2**31 weights, others left out."""
    tail = random_tensor(rng, name, (9, 8192))
    shape = ((1 << 18) + 9, 8192)
    data = sparse_bytes(shape[0] * tail.row_bytes)
    data[-tail.n_bytes :] = tail.data.ravel()
    t = QuantTensor(data, name, shape)
    out = sparse_bytes(t.size * 4).view(np.float32).reshape(shape)
    runs = cpu.find_runs(
        shape[:1],
        t.data.strides[:1],
        out.strides[:1],
        t.format.row_blocks(8192),
        t.format.block_bytes,
        t.format.block_weights * 4,
    )
    assert runs == ([], t.size // t.format.block_weights)
    work = cpu.plan_work(t, out, runs, 1)
    counter = np.array([work.task[0] - 2])  # a unit has eight rows: the last has one
    assert not DECODERS[name].kernels["float32", "cached"](*work, counter)
    assert_same_bits(out[-9:], reference(tail))


def test_runs_are_joined_where_both_sides_have_no_gaps():
    def runs(shape, source, destination):
        return cpu.find_runs(shape, source, destination, 2, 18, 128)

    assert runs((3, 4, 5), (720, 180, 36), (5120, 1280, 256)) == ([], 120)
    assert runs((3, 4, 5), (720, 180, 36), (6000, 1500, 300)) == ([(60, 36, 300)], 2)
    assert runs((3, 4, 5), (800, 200, 36), (5120, 1280, 256)) == ([(12, 200, 1280)], 10)
    assert runs((3, 4), (180, 36), (1024, 256)) == ([(3, 180, 1024)], 8)
    assert runs((4, 3), (0, 0), (768, 256)) == ([(12, 0, 256)], 2)
    assert runs((4, 1), (36, 999), (256, 7)) == ([], 8)
    assert runs((2, 3), (36, 72), (768, 256)) == ([(2, 36, 768), (3, 72, 256)], 2)
    assert runs((), (), ()) == ([], 2)


# ---------------------------------------------------------------- threads


@pytest.mark.parametrize("name", ["Q2_K", "Q8_0"])
def test_any_number_of_threads(rng, name, monkeypatch):
    monkeypatch.setattr(cpu, "THREAD_WEIGHTS", 1)
    monkeypatch.setattr(cpu, "SLICE_WEIGHTS", 1 << 15)  # several returns to Python
    monkeypatch.setattr(cpu, "UNIT_WEIGHTS", 1 << 12)
    monkeypatch.setattr(cpu, "GRAB_WEIGHTS", 1)
    t = random_tensor(rng, name, (2, 33, 4096))
    expected = reference(t)
    for part, wanted in ((t, expected), (t[:, ::2], expected[:, ::2])):
        for n_threads in (1, 2, 3, 7, None):
            assert_same_bits(dequantize(part, n_threads=n_threads), np.ascontiguousarray(wanted))


def test_calls_from_many_threads(rng):
    tensors = [random_tensor(rng, name, (9, 4096)) for name in ("Q2_K", "Q6_K", "IQ4_NL", "Q8_0")]
    failures = []

    def work(t):
        try:
            expected = reference(t)
            for _ in range(5):
                assert_same_bits(dequantize(t, n_threads=2), expected)
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(t,)) for t in tensors]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


# ---------------------------------------------------------------- what is refused


def bad_calls():
    data = np.zeros((4, 34), np.uint8)
    t = QuantTensor(data, "Q8_0", (4, 32))
    out = np.full((4, 32), 7, np.float32)
    read_only = out.view()
    read_only.flags.writeable = False
    odd = np.zeros(out.nbytes + 1, np.uint8)[1:].view(np.float32).reshape(4, 32)
    floats = np.full((4, 32), 7, np.float32)
    own = QuantTensor(floats.view(np.uint8), "F32", (4, 32))
    several, shifted = (np.lib.stride_tricks.as_strided(out, (4, 32), (n, 4)) for n in (0, 64))
    yield TypeError, "t: expected a QuantTensor, got an array of uint8", (data,), {}, out
    for dtype in ("float64", "bfloat17", np.int8, "uint8"):
        yield ValueError, "dtype: expected one of float32, float16", (t, dtype), {"out": out}, out
    yield TypeError, "out: expected float16", (t, "float16"), {"out": out}, out
    yield TypeError, "out: expected float32 or float16", (t,), {"out": np.zeros((4, 32))}, out
    yield TypeError, "out: expected a NumPy array, got list", (t,), {"out": out.tolist()}, out
    yield ValueError, r"shape \(4, 32\), got \(2, 32\)", (t,), {"out": out[:2]}, out
    yield ValueError, r"shape \(4, 32\), got \(128,\)", (t,), {"out": out.ravel()}, out
    yield ValueError, "out: the array is read-only", (t,), {"out": read_only}, out
    yield ValueError, "not aligned", (t,), {"out": odd}, odd
    yield ValueError, "must be contiguous", (t,), {"out": np.asfortranarray(out)}, out
    yield ValueError, "two elements in one place", (t,), {"out": several}, out
    yield ValueError, "two elements in one place", (t,), {"out": shifted}, out
    yield ValueError, "out: shares memory with t", (own,), {"out": floats}, floats
    yield ValueError, "n_threads: expected an int, 1 to", (t,), {"out": out, "n_threads": 0}, out
    yield TypeError, "n_threads", (t,), {"out": out, "n_threads": 2.0}, out


@pytest.mark.parametrize(("error", "message", "args", "kwargs", "watched"), list(bad_calls()))
def test_what_does_not_fit_is_refused_before_writing(error, message, args, kwargs, watched):
    before = watched.tobytes()
    with pytest.raises(error, match=message):
        dequantize(*args, **kwargs)
    assert watched.tobytes() == before
