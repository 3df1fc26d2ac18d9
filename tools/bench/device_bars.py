"""What ``kqcap bench --device`` is held against."""

from __future__ import annotations

import functools
import math
import statistics
from typing import Any

from . import device_attention, device_matmul
from .bars import verdict

# Of attention over the largest output, by the type of the queries.
ERRORS = {"float32": 5e-6, "float16": 2e-3}
# What CUDA loads when a shape's kernels are first called; a workspace would take more.
CODE_BYTES = 4 << 20
_TYPES = {shape.name: shape.q_type for shape in device_attention.SHAPES}
_must_hold = functools.partial(verdict, at_most=True, must_hold=True)
_LONG = dict(shape="192/128 128 heads", n_tokens=2048, n_kv=163840, budget="64MiB")


def judge(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The bars that the measured rows allow to judge.

    Returns
    -------
    list of dict
        As `bars.verdict` makes them.
    """
    bars = _errors(document)
    if document["device"].startswith("cuda:"):
        bars += _speeds(document)
    return bars


def _errors(document):
    bars = []
    for section in ("dequantize", "concat"):
        for row in _worst(document, section, lambda row: row["wrong"]):
            bars.append(_must_hold(f"{section}: wrong values, {row['what']}", row["wrong"], 0))
    for section in ("matmul", "experts"):
        for row in _worst(document, section, _error):
            name = f"{section}: error, {row['type']}"
            bars.append(_must_hold(name, row["error"], device_matmul.BOUND))
    for q_type, bound in ERRORS.items():
        rows = [row for row in document.get("attention", ()) if _TYPES[row["shape"]] == q_type]
        if rows:
            row = max(rows, key=_error)
            name = f"attention: error, {row['shape']}, u {row['n_tokens']}, n {row['n_kv']}"
            bars.append(_must_hold(name, row["error"], bound))
    return bars


def _error(row):
    return math.inf if math.isnan(row["error"]) else row["error"]


def _speeds(document):
    bars = []
    for row in _worst(document, "dequantize", lambda row: -row["of_copy"]):
        name = f"dequantize: share of copy, slowest: {row['what']} to {row['to']}"
        bars.append(verdict(name, row["of_copy"], 0.85))
    for row in document.get("matmul", ()):
        if row["type"] == "IQ4_NL" and row["n"] == 1:
            bars.append(verdict("matvec IQ4_NL: share of copy", row["of_copy"], 0.7))
    for row in document.get("attention", ()):
        if all(row[key] == value for key, value in _LONG.items()):
            bars += _attention_speeds(row, document["ceilings"])
    grown = [row["grown"] for row in document.get("attention", ())]
    if grown:
        bars.append(verdict("attention: bytes grown outside the pool", max(grown), 0, at_most=True))
        first = max(row["first_grown"] for row in document["attention"])
        name = "attention: bytes that first calls took outside the pool (kernels' code)"
        bars.append(verdict(name, first, CODE_BYTES, at_most=True))
    return bars


def _attention_speeds(row, ceilings):
    bars = []
    name = "attention 192/128, 128 heads, n 163840, u 2048, 64 MiB: "
    if "product" in ceilings:
        share = row["tflops"] * 1e12 / ceilings["product"]
        bars.append(verdict(name + "share of the bfloat16 product", share, 0.4))
    split = row["peers"].get("head split")
    if isinstance(split, list):
        times = statistics.median(split) / statistics.median(row["seconds"])
        bars.append(verdict(name + "times the head-split speed", times, 2))
    return bars


def _worst(document, section, key):
    rows = document.get(section)
    return [max(rows, key=key)] if rows else []
