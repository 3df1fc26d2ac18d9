"""On a GPU: attention's time and DRAM bytes against its budget, as JSON and a picture.

    python tests/gpu_results/budget_plot.py [--n 65536] [--heads 32] [--tokens 2048] [--rounds 5]
        [--no-ncu] [--ncu-budgets 8,32,128,2048] [--ncu-seconds 30] [--out FOLDER] [--draw FILE.json]

The kinds of K and V whose plan a budget changes: Q8_0 (chunks of keys decoded for the fused kernel) and
float32 (tiles by cuBLAS). DRAM bytes are ncu's counters over all kernels of one call; it stops at each,
so that a small budget's thousands take it minutes: --ncu-only --n 4096 --heads 8 counts on a small case.
"""

import argparse
import csv
import json
import math
import os
import pathlib
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import lowlevel  # noqa: E402
from lowlevel import devices  # noqa: E402
from tools.bench import device_attention, provenance  # noqa: E402

DEVICE = "cuda:0"
BUDGETS = (8, 12, 16, 24, 32, 48, 64, 128, 256, 512, 1024, 2048)  # MiB
METRICS = ("dram__bytes_read.sum", "dram__bytes_write.sum")
UNITS = {"byte": 1, "Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9}


def shapes(n_head):
    return {
        "Q8_0": device_attention.Shape("Q8_0", n_head, n_head, 192, 128, kv_type="Q8_0"),
        "float32": device_attention.Shape(
            "float32", n_head, n_head, 192, 128, "float32", "float32"
        ),
    }


def main():
    options = parse_options()
    if options.one:
        return one_call(options)
    if options.draw:
        document = json.loads(pathlib.Path(options.draw).read_text())
        draw(document, pathlib.Path(options.draw).with_suffix(".png"))
        return 0
    document = dict(
        **provenance.describe(DEVICE), n=options.n, heads=options.heads, tokens=options.tokens,
        d_k=192, d_v=128, curves={},
    )  # fmt: skip
    for kind, shape in shapes(options.heads).items():
        document["curves"][kind] = (
            [dict(budget=mib, seconds=[]) for mib in BUDGETS]
            if options.ncu_only
            else measure(shape, options)
        )
    path = pathlib.Path(options.out)
    write(path, document)  # what ncu may still cost is not the times' loss
    if not options.no_ncu:
        for kind, curve in document["curves"].items():
            count_bytes(kind, curve, options)
            write(path, document)
    if not options.ncu_only:
        draw(document, path / "budget.png")
    return 0


def parse_options():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=65536)
    parser.add_argument("--heads", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-ncu", action="store_true")
    parser.add_argument("--ncu-only", action="store_true", help="no times, no picture")
    parser.add_argument("--draw", metavar="FILE.json", help="only the picture of such a file")
    parser.add_argument("--ncu-budgets", default="8,32,128,2048")
    parser.add_argument("--ncu-seconds", type=float, default=30, help="of one call under ncu")
    parser.add_argument("--out", default=os.environ.get("OUT", "."))
    parser.add_argument("--one", nargs=2, metavar=("KIND", "MIB"), help="one call, for ncu")
    return parser.parse_args()


def write(path, document):
    (path / "budget.json").write_text(json.dumps(document, indent=1))


def measure(shape, options):
    """The rows of a curve: budget (MiB), scratch (bytes), seconds, flop, error."""
    rows = []
    measured = device_attention.measure(
        DEVICE, [shape], [options.n], [options.tokens], [f"{mib}MiB" for mib in BUDGETS],
        options.rounds, note=lambda text: print(text, flush=True),
    )  # fmt: skip
    for mib, row in zip(BUDGETS, measured, strict=True):
        rows.append({key: row[key] for key in ("scratch", "seconds", "flop", "error")})
        rows[-1]["budget"] = mib
    return rows


def count_bytes(kind, curve, options):
    for mib in map(int, options.ncu_budgets.split(",")):
        row = next(row for row in curve if row["budget"] == mib)
        row["dram"] = found = ncu_bytes(kind, mib, options)
        print(f"{kind} {mib} MiB: {found}", flush=True)


def ncu_bytes(kind, mib, options):
    """{metric: bytes over all kernels of one call, "kernels": how many}, or what went wrong."""
    command = [
        "ncu", "--clock-control", "none", "--metrics", ",".join(METRICS), "--csv",
        "--profile-from-start", "off", "--cache-control", "none",
        sys.executable, __file__, "--one", kind, str(mib),
    ]  # fmt: skip
    for name in ("n", "heads", "tokens"):
        command += [f"--{name}", str(getattr(options, name))]
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=options.ncu_seconds
        )
    except (OSError, subprocess.TimeoutExpired) as reason:
        return dict(failed=str(reason).replace(str(ROOT), "")[:200])
    lines = [line for line in result.stdout.splitlines() if line.startswith('"')]
    totals, launches = dict.fromkeys(METRICS, 0), set()
    for row in csv.DictReader(lines):
        if row["Metric Name"] in totals:
            value = float(row["Metric Value"].replace(",", ""))
            totals[row["Metric Name"]] += value * UNITS[row["Metric Unit"]]
            launches.add(row["ID"])
    if not launches:
        return dict(failed=(result.stdout + result.stderr)[-300:])
    return dict(totals, kernels=len(launches))


def one_call(options):
    import cupy

    kind, mib = options.one
    shape = shapes(options.heads)[kind]
    q, k, v = device_attention._operands(DEVICE, shape, options.tokens, options.n)
    out = devices.get(DEVICE).empty((shape.n_head, options.tokens, shape.d_v), q.dtype)
    with lowlevel.Pool(f"{mib}MiB", device=DEVICE) as pool:
        lowlevel.attention(q, k, v, pool=pool, out=out)
        devices.get(DEVICE).synchronise()
        cupy.cuda.profiler.start()
        lowlevel.attention(q, k, v, pool=pool, out=out)
        devices.get(DEVICE).synchronise()
        cupy.cuda.profiler.stop()
    return 0


def draw(document, path):
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, panels = pyplot.subplots(1, len(document["curves"]), figsize=(13, 5))
    for panel, (kind, curve) in zip(panels, document["curves"].items(), strict=True):
        budgets = [row["budget"] for row in curve]
        panel.plot(
            budgets, [statistics.median(row["seconds"]) * 1e3 for row in curve], "o-", label="time"
        )
        panel.set(xscale="log", xlabel="budget, MiB", ylabel="ms", title=f"{kind} K and V")
        panel.set_xticks(budgets[::2] + budgets[-1:], map(str, budgets[::2] + budgets[-1:]))
        panel.minorticks_off()
        panel.set_ylim(0)
        counted = [row for row in curve if METRICS[0] in row.get("dram", {})]
        if counted:
            other = panel.twinx()
            moved = [sum(row["dram"][metric] for metric in METRICS) / 2**30 for row in counted]
            other.plot([row["budget"] for row in counted], moved, "s--", color="tab:red")
            other.set_ylabel("DRAM GiB, read and written (dashed)", color="tab:red")
            other.set_ylim(0, 1.1 * max(moved) if max(moved) > 0 else math.inf)
    figure.suptitle(
        "attention 192/128, {heads} heads, u {tokens}, n {n}: {gpu}, {date}".format(**document)
    )
    figure.tight_layout()
    figure.savefig(path, dpi=80)


if __name__ == "__main__":
    sys.exit(main())
