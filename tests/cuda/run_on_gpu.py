"""On a machine with a GPU: the gpu tests, then how near the memory's speed dequantisation comes.

    python tests/cuda/run_on_gpu.py [--no-tests] [--no-bench] [--log2-weights 29] [--rounds 15]
        [--json FILE]

Needs NumPy, CuPy, ml_dtypes, pytest, hypothesis and gguf; with pytest-xdist tests run side by side.
Writes gpu_tests.txt and gpu_bench.json into the folder $OUT if that is set.
"""

import argparse
import importlib.util
import json
import multiprocessing
import os
import pathlib
import statistics
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))


def main():
    options = parse_options()
    out = pathlib.Path(os.environ.get("OUT", "."))
    compile_all()
    status = 0 if options.no_tests else run_tests(out / "gpu_tests.txt")
    if options.no_bench:
        return status
    rows = bench(options)
    path = pathlib.Path(options.json or out / "gpu_bench.json")
    path.write_text(json.dumps({"tests": status, **rows}, indent=1))
    return status


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--no-tests", action="store_true")
    parser.add_argument("--no-bench", action="store_true")
    parser.add_argument("--log2-weights", type=int, default=29, metavar="N")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", metavar="FILE")
    return parser.parse_args()


def compile_all():
    """Every kernel into CuPy's disk cache, a process a source."""
    from lowlevel.cuda import instances

    sources = sorted({kernel.source for kernel in instances.all_kernels()})
    start = time.perf_counter()
    with multiprocessing.get_context("spawn").Pool(min(len(sources), os.cpu_count())) as pool:
        pool.map(compile_source, sources, chunksize=1)
    print(f"compiled {len(sources)} sources in {time.perf_counter() - start:.0f} s", flush=True)


def compile_source(source):
    from lowlevel import devices
    from lowlevel.cuda import instances

    for kernel in instances.of_source(source):
        with devices.get("cuda:0")._current():
            devices.get("cuda:0")._library.function(kernel)


def run_tests(log):
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-rs", "-p", "no:cacheprovider"]
    command += ["tests/cuda", "tests/cudasim", "--durations=5"]
    if importlib.util.find_spec("xdist"):
        command += ["-n", str(min(8, os.cpu_count()))]
    result = subprocess.run(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    log.write_text(result.stdout)
    print(result.stdout[-6000:], flush=True)
    return result.returncode


def bench(options):
    import cupy

    import quant
    from lowlevel import concat, devices
    from lowlevel.shapes import resolve_dtype
    from quant.cuda.instances import DEQUANTIZE

    device = devices.get("cuda:0")
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    name = properties["name"].decode()
    n_weights = 1 << options.log2_weights
    cases = {}  # (what, to) -> (bytes read and written, call)

    source = noise(cupy, 4 * n_weights)
    target = cupy.empty(4 * n_weights, cupy.uint8)
    half = 2 * n_weights
    cases["copy", "memcpy"] = (
        2 * half,
        lambda: device.copy_flat(target[:half], source[:half]),
    )
    for block in quant.FORMATS.values():
        columns = 4096
        data = source[: n_weights // columns * block.row_bytes(columns)]
        tensor = quant.QuantTensor(data, block.qtype, (n_weights // columns, columns))
        for dtype in ("float32", "float16", "bfloat16"):
            item = resolve_dtype(dtype).itemsize
            result = target[: item * n_weights].view(resolve_dtype(dtype)).reshape(tensor.shape)
            cases[block.name, dtype] = (
                data.nbytes + result.nbytes,
                lambda tensor=tensor, result=result: quant.dequantize(tensor, out=result),
            )
    add_copies(cases, source.view(cupy.float16), target.view(cupy.float16), n_weights, concat)

    times = {case: [] for case in cases}
    for call_of in (cases.values(),) * 2:  # compile, then warm
        for _, call in call_of:
            call()
    for _ in range(options.rounds):
        for case, (_, call) in cases.items():
            times[case].append(time_on_gpu(cupy, call))
    copy_speed = cases["copy", "memcpy"][0] / statistics.median(times["copy", "memcpy"])

    print(f"\n{name}, CuPy {cupy.__version__}, 2**{options.log2_weights} weights, ", end="")
    print(f"median of {options.rounds} interleaved rounds; copy {copy_speed / 1e9:.0f} GB/s")
    print(f"{'from':18}{'to':>10}{'ms':>9}{'GB/s':>8}{'of copy':>9}{'spread':>8}")
    rows = []
    for (what, to), (n_bytes, _) in cases.items():
        seconds = times[what, to]
        middle = statistics.median(seconds)
        speed = n_bytes / middle
        spread = (max(seconds) - min(seconds)) / middle
        rows.append(
            dict(what=what, to=to, bytes=n_bytes, seconds=seconds, of_copy=speed / copy_speed)
        )
        print(
            f"{what:18}{to:>10}{middle * 1e3:9.3f}{speed / 1e9:8.0f}{speed / copy_speed:9.2f}"
            f"{spread:8.1%}"
        )
    small = quant.QuantTensor(source[: 84 * 16], "Q2_K", (1, 4096))
    overhead = host_seconds(cupy, lambda: quant.dequantize(small))
    print(f"one call on 4096 weights takes the host {overhead * 1e6:.0f} us")
    registers = {
        f"{kernel.file} {kernel.name}": [function.num_regs, function.local_size_bytes]
        for kernel in DEQUANTIZE.values()
        for function in [device._library.function(kernel)]
    }
    return dict(
        gpu=name, cupy=cupy.__version__, copy_speed=copy_speed, rows=rows,
        call_overhead=overhead, registers_and_local_bytes=registers,
    )  # fmt: skip


def add_copies(cases, source, target, n_weights, concat):
    """concat along the slow, a middle and the fast axis, and of a transposed array."""
    n_heads, d = 16, 128
    n_keys = n_weights // (n_heads * d)
    whole = source[: n_heads * n_keys * d].reshape(n_heads, n_keys, d)
    out = target[: n_heads * n_keys * d].reshape(n_heads, n_keys, d)
    n_bytes = 2 * whole.nbytes
    cut = n_keys // 3
    pairs = {
        "concat axis 0": ([whole[:5], whole[5:]], 0),
        "concat axis 1": ([whole[:, :cut], whole[:, cut:]], 1),
        "concat axis 2": ([whole[..., :40], whole[..., 40:]], 2),
        "concat odd": ([whole[..., :39], whole[..., 39:]], 2),
    }
    for name, (arrays, axis) in pairs.items():
        cases[name, "float16"] = (
            n_bytes,
            lambda arrays=arrays, axis=axis: concat(arrays, axis, out=out),
        )
    tokens = source[: n_heads * n_keys * d].reshape(n_keys, n_heads, d).transpose(1, 0, 2)
    cases["concat heads", "float16"] = n_bytes, lambda: concat([tokens], 0, out=out)
    flipped = source[: n_heads * n_keys * d].reshape(n_heads, d, n_keys).transpose(0, 2, 1)
    cases["concat transposed", "float16"] = n_bytes, lambda: concat([flipped], 0, out=out)


def noise(cupy, n_bytes):
    """Bytes without a pattern."""
    words = cupy.arange(n_bytes // 4, dtype=cupy.uint32)
    words *= cupy.uint32(2654435761)
    words ^= words >> cupy.uint32(15)
    words *= cupy.uint32(2246822519)
    return words.view(cupy.uint8)


def time_on_gpu(cupy, call, repeat=3):
    """Seconds of one call, by events around several."""
    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    for _ in range(repeat):
        call()
    stop.record()
    stop.synchronize()
    return cupy.cuda.get_elapsed_time(start, stop) / 1e3 / repeat


def host_seconds(cupy, call, repeat=300):
    cupy.cuda.Device().synchronize()
    start = time.perf_counter()
    for _ in range(repeat):
        call()
    seconds = (time.perf_counter() - start) / repeat
    cupy.cuda.Device().synchronize()
    return seconds


if __name__ == "__main__":
    sys.exit(main())
