"""One rule for what bad arguments raise, whichever call they are given to."""

import numpy as np
import pytest

import lowlevel
import quant
from lowlevel import checks, devices

CPU = devices.get("cpu")
X = np.zeros((2, 32), np.float32)
T = quant.QuantTensor(np.zeros((4, 34), np.uint8), "Q8_0", (4, 32))


def calls(**changed):
    """Every call with an output, its arguments changed: {name: function without arguments}."""
    q = X[None]
    out = dict(out=changed["out"]) if "out" in changed else {}
    pool = dict(pool=changed["pool"]) if "pool" in changed else {}
    return {
        "attention": lambda: lowlevel.attention(q, q, q, **_shaped(out, (1, 2, 32)), **pool),
        "matmul": lambda: quant.matmul(X, T, **_shaped(out, (2, 4)), **pool),
        "dequantize": lambda: quant.dequantize(T, **_shaped(out, (4, 32))),
        "embed": lambda: quant.embed(T, np.zeros(2, np.int32), **_shaped(out, (2, 32))),
        "rms_norm": lambda: lowlevel.ops.rms_norm(X.copy(), **_shaped(out, (2, 32))),
        "scatter_add": lambda: lowlevel.ops.scatter_add(X, **_shaped(out, (2, 32)), **pool),
        "concat": lambda: lowlevel.concat([X], **_shaped(out, (2, 32))),
        "merge_states": lambda: lowlevel.merge_states([q], [X[None, :, 0]], **_shaped(out, (1, 2, 32))),
    }  # fmt: skip


def _shaped(out, shape):
    return {name: make(shape) for name, make in out.items()}


ALL_WITH_OUT = sorted(calls())
WITH_POOL = ("attention", "matmul", "scatter_add")


def read_only(shape):
    array = np.zeros(shape, np.float32)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("call", ALL_WITH_OUT)
@pytest.mark.parametrize(
    "make, error, text",
    [
        (lambda shape: np.zeros(shape).tolist(), TypeError, "out: expected a NumPy array, got list"),
        (lambda shape: np.zeros(shape, int), TypeError, "out: expected float32.*got int64"),
        (lambda shape: np.zeros(shape, ">f4"), TypeError, "out: expected float32.*got >f4"),
        (lambda shape: lowlevel.asarray(np.zeros(shape, "f4"), "cudasim"), TypeError, "out: lies on cudasim, .* on cpu"),
        (lambda shape: np.zeros((*shape[:-1], shape[-1] + 1), "f4"), ValueError, "out: expected"),
        (read_only, ValueError, "out: the array is read-only"),
        (lambda shape: np.broadcast_to(np.zeros(shape[-1], "f4"), shape), ValueError, "out: "),
    ],
)  # fmt: skip
def test_an_output_that_does_not_fit(call, make, error, text):
    with pytest.raises(error, match=text):
        calls(out=make)[call]()


@pytest.mark.parametrize("call", WITH_POOL)
def test_a_pool_that_does_not_fit(call):
    def make(shape):
        return np.zeros(shape, np.float32)

    with pytest.raises(TypeError, match=r"pool: expected a lowlevel.Pool or None, got str"):
        calls(pool="1MiB", out=make)[call]()
    with lowlevel.Pool("1MiB", device="cudasim") as pool:
        with pytest.raises(TypeError, match=r"pool: expected one on cpu.*got one on cudasim"):
            calls(pool=pool, out=make)[call]()
    pool = lowlevel.Pool("1MiB")
    pool.close()
    with pytest.raises(ValueError, match="pool: it is closed"):
        calls(pool=pool, out=make)[call]()


@pytest.mark.parametrize(
    "check, error",
    [
        (lambda: checks.whole_number(True, "n", 0), TypeError),
        (lambda: checks.whole_number(1.0, "n", 0), TypeError),
        (lambda: checks.whole_number(-1, "n", 0), ValueError),
        (lambda: checks.whole_number(np.int64(8), "n", 0, 7), ValueError),
        (lambda: checks.real_number(np.True_, "n"), TypeError),
        (lambda: checks.real_number("1", "n"), TypeError),
        (lambda: checks.real_number(1e39, "n"), ValueError),
        (lambda: checks.real_number(10**400, "n"), ValueError),
        (lambda: checks.real_number(-checks._TOO_LARGE["float32"], "n"), ValueError),
        (lambda: checks.real_number(float("nan"), "n", dtype="float64"), ValueError),
        (lambda: checks.real_number(-0.1, "n", 0.0), ValueError),
        (lambda: checks.choice(None, "n", ("a", "b")), TypeError),
        (lambda: checks.choice(["a"], "n", ("a", "b")), TypeError),
        (lambda: checks.choice("c", "n", ("a", "b")), ValueError),
        (lambda: checks.flag(1, "n"), TypeError),
    ],
)
def test_plain_values(check, error):
    with pytest.raises(error, match=r"^n: expected"):
        check()


def test_plain_values_that_fit():
    assert checks.whole_number(np.int32(7), "n", 0, 7) == 7
    assert type(checks.whole_number(np.int32(7), "n", 0, 7)) is int
    assert checks.real_number(np.float32(0.5), "n", 0.5) == 0.5
    below = np.nextafter(checks._TOO_LARGE["float32"], 0)
    assert np.float32(checks.real_number(below, "n")) == np.finfo(np.float32).max
    assert checks.real_number(1e300, "n", dtype="float64") == 1e300
    assert checks.choice("b", "n", ("a", "b")) == "b"
    assert checks.flag(np.True_, "n") is True


def test_strides_of_axes_with_one_item_do_not_matter():
    odd = np.lib.stride_tricks.as_strided(X, (1, 32), (3, 4))
    checks.check_alignment(odd, "x", CPU)
    with pytest.raises(ValueError, match="x: the array is not aligned to its 4-byte items"):
        checks.check_alignment(np.zeros(9, np.uint8)[1:].view("f4"), "x", CPU)
