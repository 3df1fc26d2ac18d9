"""Dequantisation and concat on a device: what share they reach of a copy's bandwidth.

Times are the device's own, without the host's share of a call.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

import quant
from lowlevel import asnumpy, concat, devices
from lowlevel.shapes import resolve_dtype
from quant.formats import FORMATS

from . import device_arrays as arrays
from . import timing
from .growing_table import Column

TYPES = tuple(block.name for block in FORMATS.values())
DTYPES = ("float32", "float16", "bfloat16")
_N_HEAD, _D = 16, 128
_CHECKED_ROWS = 8


def measure_dequantize(
    device: str,
    types: Sequence[str],
    n_weights: int,
    rounds: int,
    copy_speed: float,
    columns: int = 4096,
    peers: bool = False,
) -> list[dict[str, Any]]:
    """Decode `n_weights` of each type.

    Returns
    -------
    list of dict
        what, to, bytes (read and written), seconds (of each round), of_copy, wrong (values of sampled
        rows that differ from the gguf package's), peers ({"torch": seconds}, where there is a formula).
    """
    rows = []
    largest = devices.get(device).empty((4 * n_weights,), np.dtype(np.uint8))
    for name in types:
        tensor = arrays.blocks(device, name, (n_weights // columns, columns), 1)
        calls, outputs, others = {}, {}, {}
        for to in DTYPES:
            dtype = resolve_dtype(to)
            out = largest[: dtype.itemsize * n_weights].view(dtype).reshape(tensor.shape)
            outputs[to] = out
            calls[to] = lambda out=out, tensor=tensor: quant.dequantize(tensor, out=out)
            if peers and to == "float16":
                from . import device_peers

                others[to] = device_peers.dequantize(tensor, out)
        times = timing.queued(calls, rounds, device)
        for to, call in calls.items():
            call()
            n_bytes = tensor.n_bytes + outputs[to].nbytes
            row = _row(f"dequantize {name}", to, n_bytes, times[to], copy_speed)
            row["wrong"] = _wrong_values(tensor, outputs[to])
            row["peers"] = {}
            if others.get(to):
                row["peers"] = timing.interleaved({"torch": others[to]}, 3, device)
            rows.append(row)
    return rows


def _row(what, to, n_bytes, seconds, copy_speed):
    speed = n_bytes / statistics.median(seconds)
    return dict(what=what, to=to, bytes=n_bytes, seconds=seconds, of_copy=speed / copy_speed)


def _wrong_values(tensor, out):
    wrong = 0
    for part in (slice(0, _CHECKED_ROWS), slice(tensor.n_rows - _CHECKED_ROWS, tensor.n_rows)):
        expected = arrays.host_values(tensor[part]).astype(out.dtype).astype(np.float32)
        actual = asnumpy(out[part]).astype(np.float32)
        wrong += int((~((actual == expected) | np.isnan(actual) & np.isnan(expected))).sum())
    return wrong


def measure_concat(
    device: str, n_values: int, rounds: int, copy_speed: float
) -> list[dict[str, Any]]:
    """concat along the slow, a middle and the fast axis, and of two transposed arrays.

    Returns
    -------
    list of dict
        As `measure_dequantize`.
    """
    n_keys = n_values // (_N_HEAD * _D)
    shape = _N_HEAD, n_keys, _D
    whole = arrays.normal(device, shape, np.float16, 2)
    out = devices.get(device).empty(shape, np.dtype(np.float16))
    cut = n_keys // 3
    tokens = whole.reshape(n_keys, _N_HEAD, _D).transpose(1, 0, 2)
    flipped = whole.reshape(_N_HEAD, _D, n_keys).transpose(0, 2, 1)
    cases = {
        "axis 0": ([whole[:5], whole[5:]], 0, whole),
        "axis 1": ([whole[:, :cut], whole[:, cut:]], 1, whole),
        "axis 2": ([whole[..., :40], whole[..., 40:]], 2, whole),
        "odd": ([whole[..., :39], whole[..., 39:]], 2, whole),
        "heads": ([tokens], 0, tokens),
        "transposed": ([flipped], 0, flipped),
    }
    calls = {
        name: lambda arrays=arrays, axis=axis: concat(arrays, axis, out=out)
        for name, (arrays, axis, _) in cases.items()
    }
    times = timing.queued(calls, rounds, device)
    rows = []
    for name, (_, _, expected) in cases.items():
        calls[name]()
        row = _row(f"concat {name}", "float16", 2 * whole.nbytes, times[name], copy_speed)
        row["wrong"] = sum(
            int(
                (
                    asnumpy(out[:, start : start + 64]) != asnumpy(expected[:, start : start + 64])
                ).sum()
            )
            for start in (0, max(0, cut - 32), max(0, n_keys - 64))
        )
        rows.append(row)
    return rows


def columns(rows: list[dict[str, Any]]) -> list[Column]:
    """Of the table of some rows."""
    found = [
        Column("memory", lambda row: row["what"], 22, "left"),
        Column("to", lambda row: row["to"], 8),
        Column("ms", lambda row: f"{statistics.median(row['seconds']) * 1e3:.3f}", 8),
        Column(
            "GB/s", lambda row: f"{row['bytes'] / statistics.median(row['seconds']) / 1e9:.0f}", 5
        ),
        Column("of copy", lambda row: f"{row['of_copy']:.2f}"),
        Column("wrong", lambda row: str(row["wrong"]), 6),
    ]
    has_peers = any(row.get("peers") for row in rows)
    return [*found, Column("peers, ms", peers_text, 14, "left")] if has_peers else found


def peers_text(row: dict[str, Any]) -> str:
    """Median milliseconds of each peer, or why it has none."""
    return ", ".join(
        f"{name}: {seconds[:60]}"
        if isinstance(seconds, str)
        else f"{name} {statistics.median(seconds) * 1e3:.3f}"
        for name, seconds in row.get("peers", {}).items()
    )
