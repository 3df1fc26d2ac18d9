"""Figures of pools and traces: what taking, freeing and recording cost.

    PYTHONPATH=. python tests/pool_figures.py [--pairs 40] [--json FILE]

Times are CPU time of the whole process (the trace's writer included: all is in the file), one thread at work, medians
of interleaved rounds, the fastest in brackets: load on the core's other half slows both, but not the fastest much.
"""

import argparse
import json
import pathlib
import random
import statistics
import sys
import tempfile
import time

import numpy as np

import lowlevel
from lowlevel.pool.trace import Trace

LIVE = (10, 100, 1000, 10_000)
TENSOR = dict(n_head=4, n_tokens=512, n_kv=4096, d_k=192, d_v=128)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=40, help="rounds of attention (default: 40)")
    parser.add_argument("--json", metavar="FILE")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "trace.jsonl")
        figures = {
            "alloc_free_us": alloc_free(path),
            "million": million(),
            "attention": attention(path, options.pairs),
        }
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def alloc_free(path, rounds=25, n=2000):
    """Microseconds for taking and freeing a block, untraced and traced, by the number of live blocks."""
    result = {}
    for n_live in LIVE:
        times = {"untraced": [], "traced": []}
        with lowlevel.Pool(n_live * 8192 + 2**20) as pool, pool.scope("held"):
            rng = random.Random(n_live)
            live = [pool.empty(rng.randrange(1, 4096), "uint8", tag="held") for _ in range(n_live)]
            sizes = [rng.randrange(1, 4096) for _ in range(n)]
            places = [rng.randrange(n_live) for _ in range(n)]

            def once(pool=pool, live=live, sizes=sizes, places=places):
                for place, size in zip(places, sizes, strict=True):
                    pool.free(live[place])
                    live[place] = pool.empty(size, "uint8", tag="held")

            for _ in range(rounds):
                times["untraced"].append(cpu_seconds(once) / n)
                with Trace(path) as trace:
                    trace.attach(pool)
                    trace.flush()

                    def recorded(trace=trace):
                        once()
                        trace.flush()

                    times["traced"].append(cpu_seconds(recorded) / n)
        result[n_live] = {
            kind: {"median": statistics.median(s) * 1e6, "fastest": min(s) * 1e6}
            for kind, s in times.items()
        }
        texts = [
            f"{kind} {t['median']:.2f} us ({t['fastest']:.2f})"
            for kind, t in result[n_live].items()
        ]
        print(f"{n_live:6} live blocks: alloc + free {', '.join(texts)}", flush=True)
    return result


def million(n=1_000_000):
    """A million random operations: seconds, and what is left."""
    rng = random.Random(1)
    with lowlevel.Pool("4MiB") as pool:
        live, n_refused = [], 0
        start = time.process_time()
        for _ in range(n):
            if live and (len(live) > 400 or rng.random() < 0.5):
                index = rng.randrange(len(live))
                live[index], live[-1] = live[-1], live[index]
                pool.free(live.pop())
                continue
            try:
                live.append(pool.empty(rng.randrange(24_000), "uint8"))
            except lowlevel.BudgetError:
                n_refused += 1
                for array in live[::2]:
                    pool.free(array)
                del live[::2]
        seconds = time.process_time() - start
        for array in live:
            pool.free(array)
        left = {"used": pool.used, "largest_free": pool.largest_free, "n_live": len(pool.live)}
    print(f"{n:,} random operations ({n_refused} refused) in {seconds:.2f} s; left: {left}")
    return {"n": n, "seconds": seconds, "n_refused": n_refused, **left}


def attention(path, n_pairs):
    """What tracing adds to an attention call."""
    rng = np.random.default_rng(0)
    sizes = TENSOR
    q, k, v = (
        rng.standard_normal((sizes["n_head"], n, d), dtype="f4")
        for n, d in (
            (sizes["n_tokens"], sizes["d_k"]),
            (sizes["n_kv"], sizes["d_k"]),
            (sizes["n_kv"], sizes["d_v"]),
        )
    )
    out = np.empty((sizes["n_head"], sizes["n_tokens"], sizes["d_v"]), np.float32)
    with lowlevel.Pool("64MiB") as pool:

        def call():
            lowlevel.attention(q, k, v, pool=pool, out=out, n_threads=1)

        call()
        call()
        traced, again, plain = [], [], []
        for number in range(n_pairs):
            order = ["plain", "traced", "again"]
            random.Random(number).shuffle(order)
            for kind in order:
                if kind == "traced":
                    with Trace(path) as trace:
                        trace.attach(pool)
                        trace.flush()

                        def recorded(trace=trace):
                            call()
                            trace.flush()

                        traced.append(cpu_seconds(recorded))
                else:
                    (plain if kind == "plain" else again).append(cpu_seconds(call))
        hooks = hook_seconds(pool)
    base = statistics.median(plain)
    ratios = {
        "on": statistics.median(t / p for t, p in zip(traced, plain, strict=True)) - 1,
        "off": statistics.median(t / p for t, p in zip(again, plain, strict=True)) - 1,
    }
    print(
        f"attention u 512 n 4096, {sizes['n_head']} heads, {base * 1e3:.1f} ms: tracing on {ratios['on']:+.3%}; "
        f"two untraced calls differ by {ratios['off']:+.3%} (median of {n_pairs}); "
        f"what tracing off costs: {hooks * 1e6:.2f} us a call, {hooks / base:.5%}"
    )
    return {"seconds": base, **ratios, "hook_seconds": hooks, "hook": hooks / base}


def hook_seconds(pool, n=20_000):
    """What an untraced call pays for being traceable: one `Pool.call`."""

    def hooks():
        for _ in range(n):
            with pool.call("attention", n_head=1, n_tokens=1, n_kv=1, scratch_bytes=1):
                pass

    return statistics.median(cpu_seconds(hooks) / n for _ in range(5))


def cpu_seconds(function):
    start = time.process_time()
    function()
    return time.process_time() - start


if __name__ == "__main__":
    sys.exit(main())
