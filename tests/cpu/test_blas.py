"""blas_threads: the process's own setting comes back, whoever leaves last, and however."""

import os
import threading

import numpy as np
import pytest
import threadpoolctl

import lowlevel
from lowlevel.cpu import blas
from lowlevel.cpu.blas import blas_threads

CONTROLLER = threadpoolctl.ThreadpoolController().select(user_api="blas")


def blas_setting():
    """Threads of each BLAS that was there at the start (SciPy's may come with Numba)."""
    return [library.num_threads for library in CONTROLLER.lib_controllers]


def set_blas(n):
    """As a program does that sets it once and for all; returns what it was."""
    before = blas_setting()
    for library in CONTROLLER.lib_controllers:
        getattr(library, "_real_set_num_threads", library.set_num_threads)(n)
    return before


def all_are(n):
    """Whether every BLAS here uses `n` threads."""
    return set(blas_setting()) == {n}


@pytest.fixture(params=[1, 2])
def callers_setting(request):
    """The calling program has set its own number of threads."""
    if not blas_setting():
        pytest.skip("NumPy's BLAS here is none that threadpoolctl knows")
    (before,) = set(set_blas(request.param)) or {None}
    yield blas_setting()
    set_blas(before)


def test_the_callers_setting_comes_back(callers_setting):
    for n in (1, 2, 1):
        with blas_threads(n):
            assert all_are(n)
        assert blas_setting() == callers_setting


def test_it_comes_back_after_an_exception(callers_setting):
    with pytest.raises(RuntimeError), blas_threads(1):
        raise RuntimeError
    assert blas_setting() == callers_setting


def test_nested(callers_setting):
    with blas_threads(2):
        with blas_threads(1):
            assert all_are(2)  # the first one's holds
        assert all_are(2)
    assert blas_setting() == callers_setting


def test_overlapping_threads_may_leave_in_any_order(callers_setting):
    first_in, second_in, first_left = (threading.Event() for _ in range(3))

    def second():
        first_in.wait(60)
        with blas_threads(1):
            second_in.set()
            first_left.wait(60)

    thread = threading.Thread(target=second)
    thread.start()
    with blas_threads(2):
        first_in.set()
        second_in.wait(60)
    assert all_are(2)  # the second is still inside
    first_left.set()
    thread.join()
    assert blas_setting() == callers_setting


def test_many_threads(callers_setting):
    def enter_and_leave(n):
        for _ in range(50):
            with blas_threads(n):
                pass

    threads = [threading.Thread(target=enter_and_leave, args=(1 + i % 2,)) for i in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert blas_setting() == callers_setting


def test_method_steps_leaves_the_setting_alone(callers_setting):
    q = np.ones((4, 10, 16), np.float32)
    lowlevel.attention(q, q, q, method="steps", n_threads=2)
    assert blas_setting() == callers_setting
    with pytest.raises(ValueError):
        lowlevel.attention(q, q[:3], q, method="steps")
    assert blas_setting() == callers_setting


def test_other_threads_keep_their_say(callers_setting):
    """threadpoolctl gives the setting to the first thread that asks; a call here must not take it."""
    in_thread, leave = threading.Event(), threading.Event()

    def use_and_stay_alive():
        with blas_threads(1):
            pass
        in_thread.set()
        leave.wait(60)

    thread = threading.Thread(target=use_and_stay_alive)
    thread.start()
    in_thread.wait(60)
    try:
        for n in (1, 2):
            with threadpoolctl.threadpool_limits(n, user_api="blas"):
                assert all_are(n)
        assert blas_setting() == callers_setting
    finally:
        leave.set()
        thread.join()


def test_a_limit_of_the_main_thread_does_not_stop_others(callers_setting):
    seen = []

    def use(n):
        with blas_threads(n):
            seen.append(all_are(n))

    for n in (1, 2):
        with threadpoolctl.threadpool_limits(3 - n, user_api="blas"):
            thread = threading.Thread(target=use, args=(n,))
            thread.start()
            thread.join()
            assert all_are(3 - n)
    assert seen == [True, True]


class InterruptedLibrary:
    """A BLAS during whose calls Ctrl-C is pressed: it is seen once the `at`-th has done its work."""

    def __init__(self, at):
        self.n = 8
        self.calls_left = at

    def _call(self):
        self.calls_left -= 1
        if self.calls_left == 0:
            raise KeyboardInterrupt

    @property
    def num_threads(self):
        n = self.n
        self._call()
        return n

    def set_num_threads(self, n):
        self.n = n
        self._call()


@pytest.mark.parametrize("at", [1, 2, 3])
def test_the_callers_setting_comes_back_after_ctrl_c(monkeypatch, at):
    """While it is read, while the limit is set, while it is put back; and so for the next call."""
    library = InterruptedLibrary(at)
    monkeypatch.setattr(blas, "_libraries", lambda: ([library], []))
    with pytest.raises(KeyboardInterrupt), blas_threads(3):
        assert library.n == 3
    assert library.n == 8
    with blas_threads(5):
        assert library.n == 5
    assert library.n == 8


class PerThreadLibrary:
    """A BLAS over OpenMP as threadpoolctl shows it: every thread has a setting of its own."""

    threading_layer = "openmp"

    def __init__(self):
        self._own = threading.local()

    @property
    def num_threads(self):
        return getattr(self._own, "n", 8)

    def set_num_threads(self, n):
        self._own.n = n


def test_a_setting_per_thread(monkeypatch):
    """Each thread gets its own limit and its own setting back."""
    library = PerThreadLibrary()
    monkeypatch.setattr(blas, "_libraries", lambda: ([], [library]))
    inside, first_left = threading.Barrier(2), threading.Event()
    seen = {}

    def use(n):
        library.set_num_threads(10 * n)
        with blas_threads(n):
            inside.wait(60)
            seen[n] = library.num_threads
            if n == 1:
                first_left.wait(60)
        first_left.set()
        seen[10 * n] = library.num_threads

    threads = [threading.Thread(target=use, args=(n,)) for n in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == {1: 1, 2: 2, 10: 10, 20: 20}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # Python 3.12+: forks beside threads
def test_a_child_gets_the_callers_setting(callers_setting):
    """Forked while another thread is inside, or by the thread inside."""
    inside, leave = threading.Event(), threading.Event()

    def stay():
        with blas_threads(1 if all_are(2) else 2):
            inside.set()
            leave.wait(60)

    def right_in_child():
        child = os.fork()
        if not child:
            status = 1
            try:
                status = 2 if blas_setting() != callers_setting else 3
                with blas_threads(1):
                    status = status if all_are(1) else 4
                status = 0 if status == 3 and blas_setting() == callers_setting else status
            finally:
                os._exit(status)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    thread = threading.Thread(target=stay)
    thread.start()
    inside.wait(60)
    try:
        assert right_in_child() == 0
    finally:
        leave.set()
        thread.join()
    with blas_threads(2):
        child = os.fork()
        if child:
            assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    if not child:
        os._exit(int(blas_setting() != callers_setting))
    assert blas_setting() == callers_setting
