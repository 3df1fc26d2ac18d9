"""Accesses to arguments: out of bounds, through const, unwritten, misaligned; crashes and hangs."""

import os
import signal
import threading
import time

import numpy as np
import pytest
from quant_cases import CHECKED
from sim_kernels import ORDERS, line_of

from lowlevel import cudasim


def _run(function, n=200, room=0, **changes):
    x = np.arange(n, dtype=np.float32)
    y = cudasim.empty(n + room)
    function((1,), (64,), (x, y, np.int32(n), np.float32(2)), **changes)
    np.testing.assert_array_equal(y[:n], 2 * x)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("mode", [{}, {"race": True}, {"ub": True}, {"race": True, "ub": True}])
def test_correct_kernel_passes(kernel, order, mode):
    _run(kernel("memory.cu", "scale"), order=order, **mode)


@pytest.mark.parametrize(
    ("bug", "text", "message", "orders"),
    [
        ("BUG_READ_PAST", "x[n] == 0.5f", "read of x[200]", ("fifo", "random")),
        ("BUG_READ_BEFORE", "x[-1] == 0.5f", "read of x[-1]", ("reverse", "lifo")),
        ("BUG_WRITE_PAST", "y[n] = 1", "write to y[200]", ("fifo", "random")),
        ("BUG_WRITE_BEFORE", "y[-1] = 1", "write to y[-1]", ("reverse", "lifo")),
        ("BUG_FAR", "y[1 << 24] = 1", "write to y[16777216]", ORDERS),
        ("BUG_CONST", "const_cast", "declared const", ORDERS),
        ("BUG_NULL", "threadIdx.y + 8", "null pointer", ORDERS),
    ],
)
def test_guard_pages_stop_the_access_itself(kernel, bug, text, message, orders):
    function = kernel("memory.cu", "scale", bug)
    for order in orders:
        with pytest.raises(cudasim.OutOfBoundsError) as caught:
            _run(function, order=order)
        error = caught.value
        assert message in str(error)
        assert error.line == line_of("memory.cu", text) and error.file.endswith("memory.cu")
        assert error.thread == (63, 0, 0) and error.block == (0, 0, 0)


@pytest.mark.parametrize(("bug", "side", "order"), [
    ("BUG_WRITE_PAST", "behind y", "reverse"), ("BUG_WRITE_BEFORE", "before y", "fifo"),
])  # fmt: skip
def test_writes_into_the_slack_on_the_other_side_show_afterwards(kernel, bug, side, order):
    with pytest.raises(cudasim.OutOfBoundsError, match=f"wrote just {side}"):
        _run(kernel("memory.cu", "scale", bug), order=order)


@pytest.mark.parametrize(
    "bug", ["BUG_READ_PAST", "BUG_READ_BEFORE", "BUG_WRITE_PAST", "BUG_WRITE_BEFORE"]
)
@pytest.mark.parametrize("order", ORDERS)
def test_race_mode_sees_both_sides_in_every_order(kernel, bug, order):
    with pytest.raises(cudasim.OutOfBoundsError, match="out of bounds"):
        _run(kernel("memory.cu", "scale", bug), order=order, race=True)


@pytest.mark.parametrize("mode", [{"race": True}, CHECKED], ids=["race", "checked"])
def test_read_of_unwritten_output(kernel, mode):
    function = kernel("memory.cu", "scale", "BUG_READ_OUTPUT")
    x, y = np.ones(200, np.float32), cudasim.empty(204)
    function((1,), (64,), (x, y, np.int32(200), np.float32(2)))
    assert np.isnan(y[201])  # without the access log, poison shows
    with pytest.raises(cudasim.UninitialisedError, match=r"read of y\[200\]") as caught:
        _run(function, room=4, **mode)
    assert caught.value.line == line_of("memory.cu", "y[n + 1] = y[n] + 1")


@pytest.mark.parametrize("mode", [{"ub": True}, CHECKED], ids=["ub", "checked"])
def test_misaligned_vector_load(kernel, mode):
    with pytest.raises(cudasim.MisalignedError, match=r"float4.*multiple of 16.*4 off") as caught:
        _run(kernel("memory.cu", "scale", "BUG_MISALIGNED"), **mode)
    assert caught.value.line == line_of("memory.cu", "threadIdx.x == 3")
    assert caught.value.thread == (3, 0, 0)


@pytest.mark.parametrize(("bug", "mode", "error", "message"), [
    ("BUG_TRAP", {}, cudasim.KernelAssertionError, "__trap"),
    ("BUG_ASSERT", {}, cudasim.KernelAssertionError, "factor != 2"),
    ("BUG_RECURSE", {}, cudasim.KernelError, "stack overflowed"),
    ("BUG_DIVIDE", {}, cudasim.UndefinedBehaviourError, "division by zero"),
    ("BUG_DIVIDE", {"ub": True}, cudasim.UndefinedBehaviourError, "division by zero"),
    ("BUG_DIVIDE", CHECKED, cudasim.UndefinedBehaviourError, "division by zero"),
    ("BUG_SHIFT", {"ub": True}, cudasim.UndefinedBehaviourError, "shift"),
    ("BUG_SHIFT", CHECKED, cudasim.UndefinedBehaviourError, "shift"),
    ("BUG_WILD_CALL", {}, cudasim.KernelError, "200000|0x30d40"),
])  # fmt: skip
def test_crashes_become_exceptions(kernel, bug, mode, error, message):
    with pytest.raises(error, match=message):
        _run(kernel("memory.cu", "scale", bug), **mode)
    _run(kernel("memory.cu", "scale"))  # and the next launch is as good as ever


def test_endless_loop_is_given_up(kernel):
    with pytest.raises(cudasim.HangError, match="endless loop") as caught:
        _run(kernel("memory.cu", "scale", "BUG_SPIN"), hang_seconds=1)
    first = line_of("memory.cu", "while (*(volatile float*)y != -1.0f) {")
    assert first <= caught.value.line <= first + 1


def test_arrays_are_untouched_after_an_error(kernel):
    y = np.full(200, 7, np.float32)
    x = np.zeros(200, np.float32)
    with pytest.raises(cudasim.OutOfBoundsError):
        kernel("memory.cu", "scale", "BUG_WRITE_PAST")(
            (1,), (64,), (x, y, np.int32(200), np.float32(2))
        )
    assert (y == 7).all()


def test_views_are_bounded_by_themselves_not_by_their_array(kernel):
    base = np.zeros(400, np.float32)
    x = np.ones(200, np.float32)
    arguments = (x, base[100:300], np.int32(200), np.float32(3))
    kernel("memory.cu", "scale")((1,), (64,), arguments)
    assert (base[100:300] == 3).all() and (base[:100] == 0).all() and (base[300:] == 0).all()
    for bug, order in (("BUG_WRITE_PAST", "fifo"), ("BUG_WRITE_BEFORE", "lifo")):
        with pytest.raises(cudasim.OutOfBoundsError, match=r"write to y\["):
            kernel("memory.cu", "scale", bug)((1,), (64,), arguments, order=order)


def test_overlapping_arguments_keep_overlapping(kernel):
    base = np.arange(256, dtype=np.float32)
    kernel("memory.cu", "scale")((1,), (64,), (base, base, np.int32(256), np.float32(2)))
    np.testing.assert_array_equal(base, 2 * np.arange(256))


def test_interrupted_python_leaves_no_runner_behind(kernel):
    """A launch that raises KeyboardInterrupt kills its runners and does not confuse the next one."""
    function = kernel("memory.cu", "scale", "BUG_SPIN")
    main = threading.main_thread().ident
    timer = threading.Timer(1.0, signal.pthread_kill, (main, signal.SIGINT))
    timer.start()
    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        _run(function, hang_seconds=60)
    assert time.monotonic() - started < 30
    _run(kernel("memory.cu", "scale"))


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_forked_child_has_runners_of_its_own(kernel):
    function = kernel("memory.cu", "scale")
    _run(function)
    child = os.fork()
    if child == 0:
        try:
            _run(function)
            os._exit(0)
        except BaseException:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == 0
    _run(function)


@pytest.mark.filterwarnings("ignore:.*fork")
def test_a_child_forked_while_other_threads_launch(kernel):
    """Their locks would stay taken for ever in the child."""
    function = kernel("memory.cu", "scale")
    stop = threading.Event()

    def work():
        while not stop.is_set():
            _run(function)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    codes = []
    for _ in range(5):
        child = os.fork()
        if child == 0:
            signal.alarm(60)
            try:
                _run(function)
                os._exit(0)
            except BaseException:
                os._exit(1)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    stop.set()
    for thread in threads:
        thread.join()
    assert codes == [0] * 5
