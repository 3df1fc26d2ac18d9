"""quant.matmul on a GPU: how near the memory's speed, and how many operations a second.

``measure`` is for `kqcap bench --device cuda`; on its own:

    python -m tools.device_matmul [--types Q2_K,IQ4_NL] [--rows 16384] [--columns 4096] [--n 1,8,64,512]
        [--exact] [--rounds 15] [--json FILE]

Every case rotates over several tensors, more of them than the second-level cache holds, and is timed
as the replay of a graph of its launches, so that the host's share of a call is not in it; that share
is measured by itself.
"""

import argparse
import itertools
import json
import statistics
import time

import quant
from lowlevel import Pool, devices
from quant.formats import block_format

# Weights of all tensors of a case together, in bytes: several times any GPU's second-level cache.
ROTATED_BYTES = 400 << 20
_MAX_CALLS = 64
_COPY_BYTES = 1 << 30
TYPES = ("IQ4_NL", "Q2_K", "Q3_K", "Q6_K", "Q8_0", "Q4_K", "Q4_0")


def measure(
    device="cuda:0",
    types=TYPES,
    sizes=(1, 2, 4, 8, 16, 64, 512),
    n_rows=16384,
    columns=4096,
    exact=False,
    rounds=15,
):
    """Time products of `sizes` rows of x with tensors of each type.

    Returns
    -------
    dict
        gpu, copy (bytes a second, read and written, of a copy of 1 GiB on the device), small_copy (of as
        many bytes as an IQ4_NL weight has, in a graph as the products are: what launches leave of it),
        host (seconds that one call takes the host), shape, exact, rows: dicts of type, n, seconds
        (of each round), bytes (of the weights), of_copy (their bandwidth over the copy's), tops (multiply-adds counted as two).
    """
    import cupy

    target = devices.get(device)
    # One stream for everything: a capture cannot wait for what another stream did with the pool.
    stream = cupy.cuda.Stream(non_blocking=True)
    with Pool("256MiB", device=device) as pool, stream:
        cases = {
            (name, n): _case(cupy, pool, name, n, n_rows, columns, exact)
            for name in types
            for n in sizes
        }
        times = {case: [] for case in cases}
        for _ in range(rounds):
            for case, (graph, n_calls, _) in cases.items():
                times[case].append(_seconds(cupy, graph) / n_calls)
        copy = _copy_speed(cupy, target, rounds)
        small_copy = _small_copy_speed(cupy, target, n_rows, columns, rounds)
        host = _host_seconds(cupy, pool, types[0], n_rows, columns)
        rows = [
            _row(name, n, times[name, n], n_bytes, n_rows * columns, copy)
            for (name, n), (_, _, n_bytes) in cases.items()
        ]
        cases.clear()
    properties = cupy.cuda.runtime.getDeviceProperties(0)
    return dict(
        gpu=properties["name"].decode(), copy=copy, small_copy=small_copy, host=host,
        shape=(n_rows, columns), exact=exact, rows=rows,
    )  # fmt: skip


def _row(name, n, seconds, n_bytes, n_weights, copy):
    middle = statistics.median(seconds)
    return dict(
        type=name, n=n, seconds=seconds, bytes=n_bytes,
        of_copy=n_bytes / middle / copy, tops=2 * n * n_weights / middle / 1e12,
    )  # fmt: skip


def _tensors(cupy, name, n_rows, columns, n_bytes):
    """Different tensors of random bytes, together at least `n_bytes`."""
    block = block_format(name)
    size = n_rows * block.row_bytes(columns)
    for seed in range(min(_MAX_CALLS, -(-n_bytes // size))):
        words = cupy.arange(size // 4, dtype=cupy.uint32) + cupy.uint32(seed * 0x9E3779B1 % 2**32)
        words *= cupy.uint32(2654435761)
        words ^= words >> cupy.uint32(15)
        words *= cupy.uint32(2246822519)
        yield quant.QuantTensor(words.view(cupy.uint8), name, (n_rows, columns))


def _case(cupy, pool, name, n, n_rows, columns, exact):
    """(graph, calls in it, bytes of a tensor)."""
    tensors = list(_tensors(cupy, name, n_rows, columns, ROTATED_BYTES if n < 128 else 1))
    x = cupy.random.standard_normal((n, columns), dtype=cupy.float32)
    out = cupy.empty((n, n_rows), cupy.float32)
    quant.matmul(x, tensors[0], pool=pool, out=out, exact=exact)  # compiles
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.get_current_stream()
    stream.begin_capture()
    for t in tensors:
        quant.matmul(x, t, pool=pool, out=out, exact=exact)
    graph = stream.end_capture()
    _ALIVE.append((tensors, x, out))
    return graph, len(tensors), tensors[0].n_bytes


_ALIVE = []  # what the captured launches point to


def _seconds(cupy, graph):
    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    graph.launch(cupy.cuda.get_current_stream())
    stop.record()
    stop.synchronize()
    return cupy.cuda.get_elapsed_time(start, stop) / 1e3


def _copy_speed(cupy, device, rounds):
    source, target = cupy.ones(_COPY_BYTES, cupy.uint8), cupy.empty(_COPY_BYTES, cupy.uint8)
    times = []
    for _ in range(rounds):
        start, stop = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        device.copy_flat(target, source)
        stop.record()
        stop.synchronize()
        times.append(cupy.cuda.get_elapsed_time(start, stop) / 1e3)
    return 2 * _COPY_BYTES / statistics.median(times)


def _small_copy_speed(cupy, device, n_rows, columns, rounds):
    half = block_format("IQ4_NL").row_bytes(columns) * n_rows // 2
    n_copies = max(1, ROTATED_BYTES // (2 * half))
    source, target = (cupy.ones((n_copies, half), cupy.uint8) for _ in range(2))
    cupy.cuda.Device().synchronize()
    stream = cupy.cuda.get_current_stream()
    stream.begin_capture()
    for i in range(n_copies):
        device.copy_flat(target[i], source[i])
    graph = stream.end_capture()
    seconds = statistics.median(_seconds(cupy, graph) for _ in range(rounds))
    return 2 * half * n_copies / seconds


def _host_seconds(cupy, pool, name, n_rows, columns, repeat=200):
    (t,) = itertools.islice(_tensors(cupy, name, n_rows, columns, 1), 1)
    x = cupy.random.standard_normal((1, columns), dtype=cupy.float32)
    out = cupy.empty((1, n_rows), cupy.float32)
    quant.matmul(x, t, pool=pool, out=out)
    cupy.cuda.Device().synchronize()
    start = time.perf_counter()
    for _ in range(repeat):
        quant.matmul(x, t, pool=pool, out=out)
    seconds = (time.perf_counter() - start) / repeat
    cupy.cuda.Device().synchronize()
    return seconds


def print_table(result):
    """The table of a `measure`."""
    print(
        f"{result['gpu']}, weights {result['shape']}: copy {result['copy'] / 1e9:.0f} GB/s, of "
        f"{result['shape']} IQ4_NL {result['small_copy'] / 1e9:.0f}; a call takes the host "
        f"{result['host'] * 1e6:.0f} us{'; exact' if result['exact'] else ''}"
    )
    print(f"{'type':8}{'n':>5}{'us':>10}{'GB/s':>8}{'of copy':>9}{'TOP/s':>8}{'spread':>8}")
    for row in result["rows"]:
        middle = statistics.median(row["seconds"])
        spread = (max(row["seconds"]) - min(row["seconds"])) / middle
        print(
            f"{row['type']:8}{row['n']:5}{middle * 1e6:10.1f}{row['bytes'] / middle / 1e9:8.0f}"
            f"{row['of_copy']:9.2f}{row['tops']:8.1f}{spread:8.1%}"
        )


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--types", default=",".join(TYPES))
    parser.add_argument("--n", default="1,2,4,8,16,64,512")
    parser.add_argument("--rows", type=int, default=16384)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--exact", action="store_true")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args(arguments)
    result = measure(
        types=options.types.split(","), sizes=[int(n) for n in options.n.split(",")],
        n_rows=options.rows, columns=options.columns, exact=options.exact, rounds=options.rounds,
    )  # fmt: skip
    print_table(result)
    if options.json:
        with open(options.json, "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
