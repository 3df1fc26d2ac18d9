"""What ``kqcap bench --device`` is held against."""

from __future__ import annotations

import math
import statistics
from typing import Any

from . import device_attention, device_matmul

# Of attention over the largest output, by the type of the queries.
ERRORS = {"float32": 5e-6, "float16": 2e-3}
# What CUDA loads when a shape's kernels are first called; a workspace would take more.
CODE_BYTES = 4 << 20
_TYPES = {shape.name: shape.q_type for shape in device_attention.SHAPES}
_LONG = dict(shape="192/128 128 heads", n_tokens=2048, n_kv=163840, budget="64MiB")


def judge(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The bars that the measured rows allow to judge.

    Returns
    -------
    list of dict
        name, value, bar, met, must_hold (right or wrong, not fast or slow).
    """
    bars = _errors(document)
    if document["device"].startswith("cuda:"):
        bars += _speeds(document)
    return bars


def _errors(document):
    bars = []
    for section in ("dequantize", "concat"):
        for row in _worst(document, section, lambda row: row["wrong"]):
            bars.append(_at_most(f"{section}: wrong values, {row['what']}", row["wrong"], 0, True))
    for section in ("matmul", "experts"):
        for row in _worst(document, section, _error):
            name = f"{section}: error, {row['type']}"
            bars.append(_at_most(name, row["error"], device_matmul.BOUND, True))
    for q_type, bound in ERRORS.items():
        rows = [row for row in document.get("attention", ()) if _TYPES[row["shape"]] == q_type]
        if rows:
            row = max(rows, key=_error)
            name = f"attention: error, {row['shape']}, u {row['n_tokens']}, n {row['n_kv']}"
            bars.append(_at_most(name, row["error"], bound, True))
    return bars


def _error(row):
    return math.inf if math.isnan(row["error"]) else row["error"]


def _speeds(document):
    bars = []
    for row in _worst(document, "dequantize", lambda row: -row["of_copy"]):
        name = f"dequantize: share of copy, slowest: {row['what']} to {row['to']}"
        bars.append(_at_least(name, row["of_copy"], 0.85))
    for row in document.get("matmul", ()):
        if row["type"] == "IQ4_NL" and row["n"] == 1:
            bars.append(_at_least("matvec IQ4_NL: share of copy", row["of_copy"], 0.7))
    for row in document.get("attention", ()):
        if all(row[key] == value for key, value in _LONG.items()):
            bars += _attention_speeds(row, document["ceilings"])
    grown = [row["grown"] for row in document.get("attention", ())]
    if grown:
        bars.append(_at_most("attention: bytes grown outside the pool", max(grown), 0))
        first = max(row["first_grown"] for row in document["attention"])
        name = "attention: bytes that first calls took outside the pool (kernels' code)"
        bars.append(_at_most(name, first, CODE_BYTES))
    return bars


def _attention_speeds(row, ceilings):
    bars = []
    name = "attention 192/128, 128 heads, n 163840, u 2048, 64 MiB: "
    if "product" in ceilings:
        share = row["tflops"] * 1e12 / ceilings["product"]
        bars.append(_at_least(name + "share of the bfloat16 product", share, 0.4))
    split = row["peers"].get("head split")
    if isinstance(split, list):
        times = statistics.median(split) / statistics.median(row["seconds"])
        bars.append(_at_least(name + "times the head-split speed", times, 2))
    return bars


def _worst(document, section, key):
    rows = document.get(section)
    return [max(rows, key=key)] if rows else []


def _at_least(name, value, bar, must_hold=False):
    return dict(name=name, value=value, bar=bar, met=bool(value >= bar), must_hold=must_hold)


def _at_most(name, value, bar, must_hold=False):
    return dict(name=name, value=value, bar=bar, met=bool(value <= bar), must_hold=must_hold)


def format_bar(bar: dict[str, Any]) -> str:
    word = "met   " if bar["met"] else "MISSED"
    return f"{word} {bar['name']}: {bar['value']:.4g} (bar {bar['bar']:g})"
