"""For every test: what it takes from a pool it gives back, and calls take what they planned, to the byte."""

import functools
import gc
import signal

import pytest
from hypothesis import HealthCheck, settings
from measured_calls import MeasuredCalls

from lowlevel.cpu import compile_notice
from lowlevel.pool import Pool

_n_calls = 0
compile_notice.stream = None  # tests look at what is written to standard error

# Kernels' compilers make objects by the million, most of which live on: looking for garbage among them, and among what
# was imported, took a tenth of the tests' time.
gc.freeze()
gc.set_threshold(50_000, 20, 100)

# Other processes may have the CPUs for a while: how long an example took says nothing.
settings.register_profile("kqcap", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("kqcap")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell's background job ignores Ctrl-C, and so would the tests of it and their children.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_terminal(monkeypatch):
    """Tables are as wide as they are: pytest's workers say a width of 80, which is nobody's terminal."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def no_leaked_blocks(monkeypatch):
    """Fails a test that leaves a block in a pool, even if the pool itself is gone by then."""
    live_of_pools = []
    init = Pool.__init__

    @functools.wraps(init)
    def recording_init(pool, *args, **kwargs):
        init(pool, *args, **kwargs)
        live_of_pools.append(pool._live)

    monkeypatch.setattr(Pool, "__init__", recording_init)
    yield
    leaked = [str(block) for live in live_of_pools for _, block, _ in live.values()]
    if leaked:
        pytest.fail("left in a pool:\n" + "\n".join(leaked[:10]), pytrace=False)


@pytest.fixture(autouse=True)
def measured_calls(monkeypatch):
    """Fails a test in which a call of attention or matmul, on any device, does not take what it planned."""
    global _n_calls
    calls = MeasuredCalls()
    calls.install(monkeypatch)
    yield calls
    _n_calls += calls.n_calls
    if calls.wrong:
        pytest.fail("not as planned:\n" + "\n".join(calls.wrong[:10]), pytrace=False)


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # under pytest-xdist
        session.config.workeroutput["n_measured_calls"] = _n_calls


def pytest_collection_modifyitems(config, items):
    """With -n, tests of minutes begin first: the last one left would have a worker to itself, and the others none."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.get_closest_marker("long") is None)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With -n, whoever is done takes over tests from the others: some compile for seconds, side by side in one file."""
    from xdist.scheduler import WorkStealingScheduling

    return WorkStealingScheduling(config, log) if config.getoption("dist") == "load" else None


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    global _n_calls
    _n_calls += getattr(node, "workeroutput", {}).get("n_measured_calls", 0)


def pytest_terminal_summary(terminalreporter):
    if _n_calls:
        terminalreporter.write_line(
            f"{_n_calls} calls were measured against their plan, to the byte"
        )
