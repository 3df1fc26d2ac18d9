"""On a GPU: each kernel once under compute-sanitizer, memcheck and racecheck.

    python tests/gpu_results/sanitize.py [--tools memcheck,racecheck] [--seconds 120]

The tests that launch every instance, and those of a plain call of each path, run in processes side by
side, one a test module and tool. Writes sanitizer.json into $OUT if that is set; 1 if anything was found, or a test
did not run.
"""

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
CUDA = "tests/cuda"
# module -> tests by pytest's -k: those that launch every kernel of the module
JOBS = {
    "test_attention_fused.py": "test_every_instance or test_splits_of_keys",
    "test_attention_tiles.py": "test_every_instance",
    "test_attention_decoded.py": "test_few_tokens_split_the_keys",
    "test_cuda_copies.py": "test_every_instance or test_every_transposed or test_every_join",
    "test_cuda_dequantize.py": "test_every_instance",
    "test_cuda_matmul.py": "test_every_instance",
}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tools", default="memcheck,racecheck")
    parser.add_argument("--seconds", type=float, default=120)
    options = parser.parse_args()
    jobs = [(tool, module) for tool in options.tools.split(",") for module in JOBS]
    with concurrent.futures.ThreadPoolExecutor(len(jobs)) as pool:
        results = list(pool.map(lambda job: run(*job, options.seconds), jobs))
    for result in results:
        print(
            "{tool:10} {module:28} rc {rc} {seconds:.0f} s: {summary}; "
            "{passed} passed, {skipped} skipped".format(**result)
        )
    out = pathlib.Path(os.environ.get("OUT", "."))
    (out / "sanitizer.json").write_text(json.dumps(results, indent=1))
    return int(any(result["rc"] or not result["passed"] or result["skipped"] for result in results))


def run(tool, module, seconds):
    command = [
        "compute-sanitizer", "--tool", tool, "--error-exitcode", "99", "--kernel-name-exclude",
        "kernel_substring=cupy_", sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "-v", "-p",
        "no:cacheprovider", "-k", JOBS[module], f"{CUDA}/{module}",
    ]  # fmt: skip
    start = time.perf_counter()
    try:
        result = subprocess.run(
            command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            timeout=seconds,
        )  # fmt: skip
        text, rc = result.stdout, result.returncode
    except subprocess.TimeoutExpired as reason:
        text, rc = (reason.stdout or b"").decode(errors="replace"), 124
    counts = {word: counted(word, text) for word in ("passed", "skipped")}
    summaries = re.findall(r"=+ (?:ERROR|RACECHECK) SUMMARY: .*", text)
    return dict(
        tool=tool, module=module, rc=rc, **counts, seconds=time.perf_counter() - start,
        summary=summaries[-1].lstrip("= ") if summaries else "no summary",
        tail="" if rc == 0 else text[-6000:],
    )  # fmt: skip


def counted(word, text):
    """Tests of that outcome, by pytest's last line."""
    found = re.findall(rf"\b([0-9]+) {word}\b", text)
    return int(found[-1]) if found else 0


if __name__ == "__main__":
    sys.exit(main())
