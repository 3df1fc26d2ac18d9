"""That the watchers over all tests (conftest.py) really bite."""

import os
import pathlib
import subprocess
import sys
import textwrap

TESTS = pathlib.Path(__file__).resolve().parents[1]
BAD = """
    import threading
    import lowlevel
    from lowlevel.pool import Pool

    def call(pool, planned, taken, other=None):
        with pool.call("attention", scratch_bytes=planned), pool.scope("attention"):
            for n_bytes in taken:
                pool.empty(n_bytes, "uint8")
            if other:
                take(other)

    def take(pool):
        pool.free(pool.empty(256, "uint8"))

    library = {"__name__": "lowlevel.attention.call"}
    exec(compile(SOURCE, "attention.py", "exec"), library)

    def test_as_planned():
        with Pool("64KiB") as pool:
            library["call"](pool, 768, [256, 300])
            library["call"](pool, 512, [512])

    def test_too_much():
        with Pool("64KiB") as pool:
            library["call"](pool, 512, [256, 300])

    def test_too_little():
        with Pool("64KiB") as pool:
            library["call"](pool, 512, [256])

    def test_in_another_thread():
        with Pool("64KiB") as pool:
            worker = threading.Thread(target=library["take"], args=(pool,))
            worker.start()
            worker.join()

    def test_from_another_pool():
        with Pool("64KiB") as pool, Pool("64KiB") as other:
            library["call"](pool, 256, [256], other)

    def test_without_a_mark(monkeypatch):
        import numpy as np

        monkeypatch.setattr(lowlevel.Pool, "call", lambda pool, name, **details: pool.scope(name))
        x = np.ones((1, 1, 16), "f4")
        lowlevel.attention(x, x, x)

    def test_a_leak():
        Pool("64KiB").empty(10)

    def test_what_tests_mark_themselves():
        with Pool("64KiB") as pool:
            call(pool, 10**6, [256])
"""


def test_leaks_and_broken_plans_fail_a_test(tmp_path):
    text = textwrap.dedent(BAD)
    source = text[text.index("def call") : text.index("library =")]
    (tmp_path / "test_bad.py").write_text(text.replace("SOURCE", repr(source)))
    environment = {**os.environ, "PYTHONPATH": f"{TESTS.parent}{os.pathsep}{TESTS}"}
    command = [sys.executable, "-m", "pytest", "-rA", "-p", "conftest", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "test_bad.py"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    summary = done.stdout[done.stdout.index("short test summary") :]
    assert "8 passed, 6 errors" in summary, done.stdout
    names = ("too_much", "too_little", "in_another_thread", "from_another_pool", "without_a_mark")
    for name in (*names, "a_leak"):
        assert f"ERROR test_bad.py::test_{name}" in summary
    assert "took 768, kept 0 bytes" in done.stdout and "left in a pool" in done.stdout
    assert "5 calls were measured" in done.stdout
