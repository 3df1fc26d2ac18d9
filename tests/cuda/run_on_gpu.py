"""On a machine with a GPU: the gpu tests, all kernels compiled before, side by side.

    python tests/cuda/run_on_gpu.py [--compile-only]

Needs NumPy, CuPy, ml_dtypes, pytest, hypothesis and gguf; with pytest-xdist tests run side by side.
Writes gpu_tests.txt into the folder $OUT if that is set. Measurements: kqcap bench --device cuda.
"""

import argparse
import importlib.util
import multiprocessing
import os
import pathlib
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--compile-only", action="store_true")
    options = parser.parse_args()
    compile_all()
    if options.compile_only:
        return 0
    return run_tests(pathlib.Path(os.environ.get("OUT", ".")) / "gpu_tests.txt")


def compile_all():
    """Every kernel into CuPy's disk cache, a process a source."""
    import quant.gpu  # noqa: F401  (its kernels are registered)
    from lowlevel.gpu import instances

    sources = sorted({kernel.source for kernel in instances.all_kernels()})
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(min(len(sources), os.cpu_count())) as pool:
        pool.map(compile_source, sources, chunksize=1)
    print(f"compiled {len(sources)} sources in {time.perf_counter() - start:.0f} s", flush=True)


def compile_source(source):
    import quant.gpu  # noqa: F401
    from lowlevel import devices
    from lowlevel.gpu import instances

    for kernel in instances.of_source(source):
        with devices.get("cuda:0")._current():
            devices.get("cuda:0")._library.function(kernel)


def run_tests(log):
    """Side by side, and then what must have the GPU to itself; 0: all passed."""
    workers = ["-n", str(min(8, os.cpu_count()))] if importlib.util.find_spec("xdist") else []
    texts, codes = zip(pytest("gpu and not alone", *workers), pytest("gpu and alone"), strict=True)
    log.write_text("".join(texts))
    for text in texts:
        print(text[-6000:], flush=True)
    return max(codes)


def pytest(marked, *options):
    """(output, exit code)."""
    command = [sys.executable, "-m", "pytest", "-m", marked, "-rfs", "-p", "no:cacheprovider"]
    command += ["tests/cuda", "tests/cudasim", "--durations=5", *options]
    result = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    return result.stdout, result.returncode


if __name__ == "__main__":
    sys.exit(main())
