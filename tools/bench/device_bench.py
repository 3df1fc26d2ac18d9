"""``kqcap bench --device``: everything that has a kernel, on a GPU, or tiny on the simulator."""

from __future__ import annotations

import argparse
import importlib.util
import sys

from lowlevel import devices
from lowlevel.cudasim.errors import CompilerNotFoundError

from .. import tables
from ..options import UsageError
from . import (
    bars,
    device_attention,
    device_bars,
    device_matmul,
    device_memory,
    provenance,
    selection,
    timing,
)
from . import device_arrays as arrays
from .growing_table import GrowingTable
from .peers import INSTALL as PEERS

_DEFAULTS = dict(n_prompt=[16384, 163840], ubatch_size=[2048], attn_max_batch=[64], repetitions=5)
_LOG2_WEIGHTS = {True: 30, False: 13}  # on a GPU, on the simulator
_COPY_BYTES = {True: 1 << 30, False: 1 << 16}
_MOE = dict(n_expert=32, n_rows=2048, columns=7168)
_MOE_SIZES = (8, 512, 4096)
CASES = {
    "ceilings": ("ceilings",),
    "dequantize": device_memory.TYPES,
    "concat": ("concat",),
    "matmul": device_matmul.TYPES,
    "experts": ("IQ4_NL", "Q2_K", "Q6_K"),
    "attention": tuple(shape.name for shape in device_attention.SHAPES),
}


def run(args: argparse.Namespace) -> int:
    """Measure and print; 1 if a result is wrong or, with --check, a bar is missed."""
    try:
        return _run(args)
    except CompilerNotFoundError as error:  # known only when the first kernel is compiled
        raise UsageError(str(error)) from None


def _run(args):
    if args.vs not in (None, ["torch"]):
        raise UsageError("--vs: on a device torch alone is compared with")
    chosen = _chosen(args.only)
    device = devices.canonical_name(args.device)
    try:
        devices.get(device)
    except ImportError as error:  # no CuPy; the message says how to get it
        raise UsageError(str(error)) from None
    if args.vs and not importlib.util.find_spec("torch"):
        raise UsageError(f"--vs torch: it is not installed; {PEERS['torch']}")
    # With --json the tables go where they do not disturb.
    note = (lambda text: print(text, file=sys.stderr, flush=True)) if args.json else tables.note
    document = dict(device=device, **provenance.describe(device))
    note(f"{device}: {provenance.line(document)}")
    document["ceilings"] = _ceilings(device, note, "ceilings" in chosen and bool(args.vs))
    bench = _Bench(args, device, document["ceilings"]["copy"], note)
    for section, cases in chosen.items():
        if section != "ceilings":
            document[section] = getattr(bench, section)(cases)
    document.update(bench.facts)
    document["bars"] = device_bars.judge(document)
    note("")
    missed = bars.missed(document["bars"])
    shown = document["bars"] if args.check else [bar for bar in missed if bar["must_hold"]]
    if shown:
        bars.print_bars(shown, note)
    if args.json:
        tables.print_json(document)
    return int(any(args.check or bar["must_hold"] for bar in missed))


def _chosen(only):
    """{section: cases} that ``--only`` names; None: all."""
    named = {
        case if case == section else f"{section} {case}": (section, case)
        for section, cases in CASES.items()
        for case in cases
    }
    chosen = {}
    for section, case in map(named.__getitem__, selection.select(named, only)):
        chosen.setdefault(section, []).append(case)
    return chosen


def _ceilings(device, note, product):
    """Bytes a second of a copy, and with torch operations a second of its largest 16-bit product."""
    gpu = timing.is_gpu(device)
    ceilings = dict(copy=arrays.copy_speed(device, _COPY_BYTES[gpu], 15 if gpu else 1))
    note(f"copy {ceilings['copy'] / 1e9:.1f} GB/s, read and written")
    if gpu and product:
        from . import device_peers

        ceilings["product"] = device_peers.product_flops()
        note(f"largest bfloat16 product {ceilings['product'] / 1e12:.0f} TFLOP/s")
    return ceilings


class _Bench:
    """The sections; each returns its rows."""

    def __init__(self, args, device, copy_speed, note):
        self._args, self._device, self._copy, self._note = args, device, copy_speed, note
        self.facts = {}  # what sections find besides their rows
        self._gpu = timing.is_gpu(device)
        self._n_weights = 1 << (args.log2_weights or _LOG2_WEIGHTS[self._gpu])
        self._rounds = args.repetitions or (15 if self._gpu else 1)

    def _noted(self, module, rows):
        self._note("")
        table = GrowingTable(module.columns(rows), self._note)
        for row in rows:
            table.add(row)
        return rows

    def dequantize(self, types):
        columns = 4096 if self._n_weights >= 1 << 16 else 256
        rows = device_memory.measure_dequantize(
            self._device, types, self._n_weights, self._rounds, self._copy, columns,
            peers=bool(self._args.vs),
        )  # fmt: skip
        return self._noted(device_memory, rows)

    def concat(self, _):
        n_values = max(self._n_weights // 2, 1 << 14)
        rows = device_memory.measure_concat(self._device, n_values, self._rounds, self._copy)
        return self._noted(device_memory, rows)

    def matmul(self, types):
        big = dict(sizes=device_matmul.SIZES, n_rows=16384, columns=4096)
        small = dict(sizes=(1, 5), n_rows=40, columns=256)
        rows = device_matmul.measure(
            self._device, types, copy_speed=self._copy, rounds=self._rounds,
            **(big if self._gpu else small),
        )  # fmt: skip
        self._noted(device_matmul, rows)
        if self._gpu:
            n_bytes = rows[0]["bytes"]
            small = device_matmul.small_copy_speed(self._device, n_bytes, self._rounds)
            host = device_matmul.host_seconds(self._device, types[0])
            self.facts.update(small_copy=small, small_copy_bytes=n_bytes, matmul_host_seconds=host)
            self._note(f"copies of {n_bytes} bytes {small / 1e9:.0f} GB/s, read and written")
            self._note(f"one call takes the host {host * 1e6:.0f} us")
        return rows

    def experts(self, types):
        small = dict(n_expert=3, n_rows=40, columns=256)
        rows = device_matmul.measure(
            self._device, types, _MOE_SIZES if self._gpu else (5,), copy_speed=self._copy,
            rounds=self._rounds, **(_MOE if self._gpu else small),
        )  # fmt: skip
        return self._noted(device_matmul, rows)

    def attention(self, names):
        n_kvs, n_tokens, budgets, rounds = (
            getattr(self._args, name) or default for name, default in _DEFAULTS.items()
        )
        self._note("")
        table = GrowingTable(device_attention.columns(bool(self._args.vs)), self._note)
        return device_attention.measure(
            self._device,
            [shape for shape in device_attention.SHAPES if shape.name in names],
            n_kvs,
            n_tokens,
            [f"{n}MiB" if n else "64GiB" for n in budgets],
            rounds,
            peers=bool(self._args.vs),
            show=table.add,
        )
