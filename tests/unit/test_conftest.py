"""That the watchers over all tests (conftest.py) really bite."""

import os
import pathlib
import subprocess
import sys
import textwrap

TESTS = pathlib.Path(__file__).resolve().parents[1]
BAD = """
    from lowlevel.pool import Pool

    def call(pool, planned, taken):
        with pool.call("attention", scratch_bytes=planned), pool.scope("attention"):
            for n_bytes in taken:
                pool.empty(n_bytes, "uint8")

    library = {"__name__": "lowlevel.attention"}
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
    assert "5 passed, 3 errors" in summary, done.stdout
    for name in ("too_much", "too_little", "a_leak"):
        assert f"ERROR test_bad.py::test_{name}" in summary
    assert "took 768, kept 0 bytes" in done.stdout and "left in a pool" in done.stdout
    assert "4 calls were measured" in done.stdout
