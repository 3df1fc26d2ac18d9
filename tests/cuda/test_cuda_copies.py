"""Copies on the device: concat, and the strided copy under it."""

import numpy as np
import pytest
from quant_cases import CHECKED

from lowlevel import asarray, asnumpy, concat, cudasim, devices
from lowlevel.gpu import copies
from lowlevel.gpu.instances import COPY, JOIN, TRANSPOSED

KERNELS = (*COPY.values(), *TRANSPOSED.values(), *JOIN.values())


def random_array(rng, shape, dtype):
    """Any bits, NaNs with payloads too."""
    dtype = np.dtype(dtype)
    n_bytes = int(np.prod(shape)) * dtype.itemsize
    return rng.integers(0, 256, n_bytes, np.uint8).view(dtype).reshape(shape)


def same_bits(a, b):
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def numpy_concatenate(arrays, axis):
    """np.concatenate of the bytes: NaNs stay what they are."""
    items = [np.ascontiguousarray(array)[..., None].view("uint8") for array in arrays]
    return np.concatenate(items, axis % arrays[0].ndim).view(arrays[0].dtype)[..., 0]


def strided(rng, device, array):
    """The array's elements on a device, in memory of another layout."""
    whole = asarray(array, device)
    kind = rng.integers(4)
    if kind == 0:
        return whole
    if kind == 1:  # Fortran's order
        return asarray(np.ascontiguousarray(array.T), device).T
    if kind == 2:  # backwards
        return asarray(np.ascontiguousarray(np.flip(array)), device)[
            tuple(slice(None, None, -1) for _ in array.shape)
        ]
    roomy = np.zeros([2 * n + 1 for n in array.shape], array.dtype)
    spread = tuple(slice(0, 2 * n, 2) for n in array.shape)
    roomy[spread] = array
    return asarray(roomy, device)[spread]


@pytest.mark.parametrize("dtype", ["bool", "int8", "float16", "float32", "int64", "complex128"])
@pytest.mark.parametrize("seed", range(6))
def test_any_shape_axis_layout_and_number(dtype, seed, device):
    rng = np.random.default_rng(seed)
    ndim = int(rng.integers(1, 6))
    shape = rng.integers(0 if seed == 0 else 1, 7, ndim)
    axis = int(rng.integers(-ndim, ndim))
    arrays = []
    for _ in range(int(rng.choice([1, 2, 3, 20]))):
        shape[axis] = rng.integers(0, 5)  # empty pieces among them
        arrays.append(random_array(rng, shape, dtype if dtype != "bool" else "uint8"))
        if dtype == "bool":
            arrays[-1] = arrays[-1] > 127
    expected = numpy_concatenate(arrays, axis)
    inputs = [strided(rng, device, array) for array in arrays]
    joined = concat(inputs, axis)
    assert devices.of_array(joined, "joined").name == device and joined.flags.c_contiguous
    assert same_bits(asnumpy(joined), expected)
    out = strided(rng, device, np.zeros_like(expected))
    assert concat(inputs, axis, out=out) is out
    assert same_bits(np.ascontiguousarray(asnumpy(out)), expected)


@pytest.mark.parametrize("n_bytes", COPY)
def test_every_instance(n_bytes, device, launched, rng):
    """The widest unit that everything divides, one thread more and less than a thread block."""
    for n_units in (1, 255, 256, 257, 1000):
        source = random_array(rng, (3, 2 * n_units, n_bytes), "uint8")
        on = asarray(source, device)[:, ::2]
        assert same_bits(asnumpy(concat([on])), np.ascontiguousarray(source[:, ::2]))
    assert set(launched) == {COPY[n_bytes]}


@pytest.mark.parametrize("n_bytes", TRANSPOSED)
def test_every_transposed_instance(n_bytes, device, launched, rng):
    """Whole tiles and parts of them, alone and among other axes, also backwards."""
    for shape in ((64, 64), (16, 130), (65, 63), (2, 129, 17)):
        source = random_array(rng, (*shape, n_bytes), "uint8").view(f"V{n_bytes}")[..., 0]
        on = asarray(source, device)
        assert same_bits(asnumpy(concat([on.T])), np.ascontiguousarray(source.T))
        assert same_bits(asnumpy(concat([on[:, ::-1].T])), np.ascontiguousarray(source[:, ::-1].T))
    moved = source.transpose(0, 2, 1)
    assert same_bits(asnumpy(concat([on.transpose(0, 2, 1)])), np.ascontiguousarray(moved))
    assert TRANSPOSED[n_bytes] in launched


def test_narrow_ones_are_not_transposed_by_tiles(device, launched, rng):
    source = random_array(rng, (copies.LEAST_TRANSPOSED - 1, 100), "float16")
    assert same_bits(asnumpy(concat([asarray(source, device).T])), np.ascontiguousarray(source.T))
    assert launched == [COPY[2]]


@pytest.mark.parametrize("n_bytes", JOIN)
def test_every_join_instance(n_bytes, device, launched, rng):
    """Rows of two to four parts, which end anywhere in the 16 bytes that a thread writes."""
    for n_rows, lengths in (
        (1, (3, 2)),
        (5, (1, 1)),
        (300, (3, 2)),
        (7, (1, 30, 2)),
        (33, (5, 0, 9, 1, 4)),
    ):
        sources = [random_array(rng, (n_rows, n, n_bytes), "uint8") for n in lengths]
        expected = np.concatenate(sources, 1)
        on = [asarray(source, device) for source in sources]
        on[0] = asarray(np.concatenate([sources[0], sources[1]], 1), device)[:, : lengths[0]]
        assert same_bits(asnumpy(concat(on, 1)), expected)
    assert JOIN[n_bytes] in launched
    before = len(launched)
    concat([*on, on[0]], 1)  # five parts with something in them
    assert len(launched) == before + 5


@pytest.mark.parametrize("n_bytes", [n for n in JOIN if n < 16])
def test_rows_of_one_array_are_joined(n_bytes, device, launched, rng):
    """Those that no wide unit divides, as long as anybody likes."""
    source = random_array(rng, (9, 3 * copies.LONG_ROW + n_bytes), "uint8")
    part = slice(n_bytes, 2 * copies.LONG_ROW + 2 * n_bytes)
    joined = concat([asarray(source, device)[:, part]])
    assert same_bits(asnumpy(joined), np.ascontiguousarray(source[:, part]))
    assert launched == [JOIN[n_bytes]]


def test_long_rows_are_copied_one_source_after_the_other(device, launched, rng):
    sources = [random_array(rng, (3, copies.LONG_ROW + 16), "uint8") for _ in range(2)]
    joined = concat([asarray(source, device) for source in sources], 1)
    assert same_bits(asnumpy(joined), np.concatenate(sources, 1))
    assert launched == [COPY[16]] * 2


@pytest.mark.parametrize("offset", range(17))
def test_misaligned(offset, device, rng):
    """Rows of 64 bytes that start anywhere, into rows that start elsewhere."""
    source = random_array(rng, (5, 100), "uint8")
    out = asarray(np.zeros((5, 100), np.uint8), device)
    concat([asarray(source, device)[:, offset : offset + 64]], out=out[:, 3:67])
    expected = np.zeros((5, 100), np.uint8)
    expected[:, 3:67] = source[:, offset : offset + 64]
    assert same_bits(asnumpy(out), expected)


def test_orders(order, rng):
    source = random_array(rng, (7, 50, 33), "float32")
    on = asarray(source, "cudasim")
    joined = concat([on.transpose(2, 0, 1)])
    assert same_bits(asnumpy(joined), np.ascontiguousarray(source.transpose(2, 0, 1)))
    joined = concat([on[..., :5], on], -1)
    assert same_bits(asnumpy(joined), numpy_concatenate([source[..., :5], source], -1))


@pytest.mark.parametrize("n_bytes", COPY)
def test_checked(n_bytes, rng):
    source = random_array(rng, (3, 200, n_bytes), "uint8")
    flat = random_array(rng, (30, 70 * n_bytes), "uint8").view(f"V{n_bytes}")
    with cudasim.settings(**CHECKED):
        transposed = concat([asarray(flat, "cudasim").T])
        assert same_bits(asnumpy(transposed), np.ascontiguousarray(flat.T))
        rows = concat([asarray(source, "cudasim"), asarray(source, "cudasim")[:, :7]], 1)
        assert same_bits(asnumpy(rows), numpy_concatenate([source, source[:, :7]], 1))
        joined = concat(
            [asarray(source, "cudasim")[::-1, ::2], asarray(source, "cudasim")[:, :7]], 1
        )
    assert same_bits(asnumpy(joined), numpy_concatenate([source[::-1, ::2], source[:, :7]], 1))


@pytest.mark.parametrize("shape", [(5, 3, 8), (4, 2, 3, 2, 2, 3, 2, 2, 2, 3, 2)])
def test_one_plane_goes_to_all(shape, device, rng):
    """As `Device.copy` says; also where both lie in turns in one range of addresses."""
    both = np.asarray(rng.standard_normal((*shape[:-1], 2, shape[-1])), np.float32)
    expected = np.broadcast_to(both[:1, ..., 1, :], shape)
    for name in ("cpu", device):
        memory = asarray(both.copy(), name)
        target, source = memory[..., 0, :], memory[:1, ..., 1, :]
        devices.get(name).copy(target, source)
        np.testing.assert_array_equal(asnumpy(target), expected)
        np.testing.assert_array_equal(asnumpy(memory[..., 1, :]), both[..., 1, :])


def test_more_axes_than_a_launch_takes(device, rng):
    shape = (2, 3, 2, 2, 3, 2, 2, 2, 3, 2)
    source = random_array(rng, shape, "float16")
    on = asarray(source, device).transpose(1, 3, 5, 7, 9, 0, 2, 4, 6, 8)
    expected = np.ascontiguousarray(source.transpose(1, 3, 5, 7, 9, 0, 2, 4, 6, 8))
    assert same_bits(asnumpy(concat([on])), expected)


def test_more_units_than_a_launch_counts(device, launched, monkeypatch, rng):
    monkeypatch.setattr(copies, "MAX_UNITS", 10)
    source = random_array(rng, (5, 7, 3), "float32")
    joined = concat([asarray(source, device)[:, ::-1]])
    assert same_bits(asnumpy(joined), np.ascontiguousarray(source[:, ::-1])) and len(launched) > 10
    source = random_array(rng, (40, 50), "float16")
    on = asarray(source, device)
    assert same_bits(asnumpy(concat([on.T])), np.ascontiguousarray(source.T))
    assert same_bits(asnumpy(concat([on[:, :7]])), np.ascontiguousarray(source[:, :7]))
    joined = concat([on[:, :7], on], 1)
    assert same_bits(asnumpy(joined), np.concatenate([source[:, :7], source], 1))


def test_side_by_side_is_one_flat_copy(device, launched, rng):
    """Also in Fortran's order, on both sides."""
    source = random_array(rng, (4, 5, 6), "float32")
    out = asarray(np.zeros((6, 5, 4), np.float32), device)
    concat([asarray(source, device).transpose(2, 1, 0)], out=out.transpose(0, 1, 2)[:, :, :])
    assert len(launched) == 1
    target = devices.get(device).empty((6, 5, 4), np.dtype("float32")).transpose(2, 1, 0)
    concat([asarray(np.ascontiguousarray(source.T), device).T], out=target)
    assert len(launched) == 1 and same_bits(np.ascontiguousarray(asnumpy(target)), source)


def test_division_by_multiplication(rng):
    lengths = [1, 2, 3, 5, 7, 641, 2**16 - 1, 2**30, 2**31 - 257, *rng.integers(1, 2**31, 300)]
    for length in map(int, lengths):
        multiplier, shift = copies.divisor(length)
        assert 0 <= multiplier < 2**32 and shift < 32
        near = [k * length + e for k in (0, 1, 2, (2**31 - 1) // length) for e in (-1, 0, 1)]
        for n in [*near, 2**31 - 1, *map(int, rng.integers(0, 2**31, 50))]:
            if 0 <= n < 2**31:
                high = n * multiplier >> 32
                assert high + n < 2**32 and (high + n) >> shift == n // length


def test_offsets_beyond_32_bits(rng):
    """Strides that reach past 2**32 bytes, as the host hands them to the kernel; nothing is read."""

    calls = []

    class Recorder:
        address = staticmethod(lambda array: array.ctypes.data)
        launch = staticmethod(lambda *arguments: calls.append(arguments))

    item = np.zeros(1, np.float32)
    source = np.lib.stride_tricks.as_strided(item, (3, 2, 5), (2**33, -(2**32), 8))
    target = np.lib.stride_tricks.as_strided(item, (3, 2, 5), (2**34, 2**33, 4))
    copies.copy(Recorder(), target, source)
    ((kernel, n_blocks, (_, _, layout, n_units)),) = calls
    axes = layout["axes"][: layout["n_axes"]]
    assert (kernel.name, n_blocks, n_units) == ("copy_strided<unsigned>", 1, 30)
    assert axes["source_stride"].tolist() == [2, -(2**30), 2**31]
    assert axes["target_stride"].tolist() == [1, 2**31, 2**32]
    assert axes["length"].tolist() == [5, 2, 3]


def rows_far_apart(device, n_bytes):
    """Two rows of bytes, on a GPU more than 2**32 of them apart and at odd addresses."""
    distance = (2**32 if device != "cudasim" else 2**16) + 3
    try:
        memory = devices.get(device).empty((2, distance), np.dtype(np.uint8))
    except MemoryError as reason:  # CuPy's OutOfMemoryError is one
        pytest.skip(str(reason))
    return memory[:, :n_bytes]


def test_rows_far_apart(device, rng):
    """Kernels count bytes in 64 bits: only a GPU shows it, the simulator copies all that lies between."""
    source = random_array(rng, (2, 99), "uint8")
    rows = rows_far_apart(device, 99)
    assert concat([asarray(source, device)], out=rows) is rows
    assert same_bits(asnumpy(concat([rows])), source)


def test_arrays_of_two_devices_are_refused(device, rng):
    a = random_array(rng, (2, 3), "float32")
    with pytest.raises(TypeError, match=r"arrays\[1\]: lies on .*brings either to the other"):
        concat([asarray(a, device), a])
    with pytest.raises(TypeError, match="out: lies on"):
        concat([asarray(a, device)], out=np.empty_like(a))


def test_out_shares_memory_with_an_input(device, rng):
    a = asarray(random_array(rng, (4, 6), "float32"), device)
    with pytest.raises(ValueError, match="out: shares memory"):
        concat([a[:, 1:]], out=a[:, :-1])
    before = asnumpy(a[:, 3:])
    concat([a[:, 3:]], out=a[:, :3])  # one matrix, but no common element
    assert same_bits(np.ascontiguousarray(asnumpy(a[:, :3])), np.ascontiguousarray(before))
