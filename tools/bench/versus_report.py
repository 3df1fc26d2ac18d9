"""Ratios, rooflines and verdicts of ``kqcap bench --vs``, and their tables."""

from __future__ import annotations

import statistics
from typing import Any

from ..options import MIB
from . import bars, provenance, timing
from .versus_cases import kept_pairs

__all__ = ["is_missed", "judge", "print_tables"]

# Shown as one table column, the fastest of its forms.
_GROUPED = ("torch", "numpy")
_UNITS = {"fill": "GB/s", "read": "GB/s", "fma": "GFLOP/s", "int8 dot": "GOP/s"}
_TITLES = {
    "dequantize": "Dequantise to float32, 64 MiB out; GB/s of output",
    "matvec": "Matrix times vector, 16384 x 4096; GB/s of blocks, read from copies that no cache holds",
    "gemm": "512 rows times a 2048 x 2048 weight",
    "attention": "Causal attention, heads/KV heads d_k/d_v, u tokens, n keys; FLOPs of what the mask "
    "keeps; decode: GB/s of K and V; ggml, ours f16: f16 K and V",
    "import": "Import, in a fresh process",
    "compile": "First calls with an empty kernel cache",
}


# ---------------------------------------------------------------- verdicts


def judge(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Add to each case its ``rows``: one a number of threads, with ratios, rates and verdicts."""
    for result in results:
        if result["kind"] == "startup":
            for row in result["rows"]:
                row["bars"] = [] if row.get("is_extra") else _startup_verdicts(result, row)
        else:
            threads = dict.fromkeys(t for c in result["columns"] for t in c["seconds"])
            result["rows"] = [_row(result, n_threads) for n_threads in threads]
    return results


def is_missed(document: dict[str, Any]) -> bool:
    """Whether any bar was missed, or any result was wrong."""
    rows = [row for case in document["cases"] for row in case["rows"]]
    return any(bars.missed(row["bars"]) for row in rows) or any(
        column["wrong"] for case in document["cases"] for column in case["columns"]
    )


def _row(result, n_threads):
    columns = {
        column["name"]: column
        for column in result["columns"]
        if column["seconds"].get(n_threads) and not column["wrong"]
    }
    ours = columns.get("ours")
    row = dict(
        threads=n_threads,
        seconds={name: _median(c, n_threads) for name, c in columns.items()},
        limits=_limits(columns, n_threads),
    )
    row["ratios"] = {
        name: _ratio(column, ours, n_threads)
        for name, column in columns.items()
        if ours and name != "ours" and "limit" not in column["info"]
    }
    row["rate"] = result["work"] / row["seconds"]["ours"] if ours else None
    row["roofline"] = {
        limit: _share(result, columns, found, "ours", n_threads)
        for limit, found in row["limits"].items()
        if ours
    }
    row["bars"] = [
        _verdict(result, columns, row, bar)
        for bar in result["bars"]
        if bar["threads"] is None or n_threads in bar["threads"]
    ]
    return row


def _limits(columns, n_threads):
    """{limit: its fastest way}: column and rate."""
    found = {}
    for name, column in columns.items():
        limit = column["info"].get("limit")
        if limit is not None:
            rate = column["info"]["work"] / _median(column, n_threads)
            if limit not in found or rate > found[limit]["rate"]:
                found[limit] = dict(column=name, rate=rate)
    return found


def _median(column, n_threads):
    return statistics.median(column["seconds"][n_threads])


def _ratio(theirs, ours, n_threads):
    return timing.ratio(theirs["seconds"][n_threads], ours["seconds"][n_threads])


def _share(result, columns, found, name, n_threads):
    """Our rate over a limit's, round by round."""
    ratio = _ratio(columns[found["column"]], columns[name], n_threads)
    work = result["work"] / columns[found["column"]]["info"]["work"]
    return {key: work * ratio[key] for key in ("median", "least", "most")}


def _verdict(result, columns, row, bar):
    """As `bars.verdict` makes it; where the case has a floor, also ``most``: the value that work at that floor would have."""
    value, text = _VALUES[bar["what"]](result, columns, row, bar)
    at_most = bar["what"] in ("scratch", "seconds", "imports")
    verdict = _against(bar, value, text, at_most)
    floor = row["roofline"].get(result["floor"])
    if floor and value is not None and not at_most and bar["ours"] == "ours":
        verdict["most"] = value / floor["median"]
    return verdict


def _against(bar, value, text, at_most=False):
    return bars.verdict(text, value, bar["bound"], at_most=at_most, goal=bar["goal"])


def _speed(result, columns, row, bar):
    candidates = [name for name in bar["of"] if name in columns]
    ours = columns.get(bar["ours"])
    label = f"x {bar['of'][0].split()[0]}"
    if not candidates or ours is None:
        return None, label
    fastest = min(candidates, key=lambda name: row["seconds"][name])
    text = f"x {fastest}" + ("" if bar["ours"] == "ours" else f" ({bar['ours']})")
    return _ratio(columns[fastest], ours, row["threads"])["median"], text


def _limit(result, columns, row, bar):
    (limit,) = bar["of"]
    share = row["roofline"].get(limit)
    return (share["median"] if share else None), f"of {limit}"


def _scratch(result, columns, row, bar):
    ours = columns.get("ours")
    return (ours["info"].get("scratch_bytes") if ours else None), "scratch"


_VALUES = {"speed": _speed, "limit": _limit, "scratch": _scratch}


def _startup_verdicts(result, row):
    verdicts = []
    for bar in result["bars"]:
        if bar["what"] == "seconds":
            verdicts.append(_against(bar, row["seconds"], "s", at_most=True))
        else:
            found = [name for name in bar["of"] if name in row["modules"]]
            text = f"imported: {', '.join(found)}" if found else "imported"
            verdicts.append(_against(bar, len(found), text, at_most=True))
    return verdicts


# ---------------------------------------------------------------- tables


def print_tables(document: dict[str, Any], with_bars: bool = True) -> None:
    """Print everything; what this project set itself to reach only with `with_bars`."""
    from .. import tables

    _print_machine(document)
    for text in document["missing"]:
        tables.note(text)
    by_kind: dict[str, list[dict[str, Any]]] = {}
    for case in document["cases"]:
        key = case["sizes"]["what"] if case["kind"] == "startup" else case["kind"]
        by_kind.setdefault(key, []).append(case)
    for key, cases in by_kind.items():
        tables.note(f"\n{_TITLES[key]}")
        _PRINT.get(key, _print_measured)(cases, with_bars)
        for case in cases:
            for text in case["notes"]:
                tables.note(f"{case['name']}: {text}")
    _print_growth(document)
    _print_summary(document, with_bars)


def _print_machine(document):
    from .. import tables

    tables.note(provenance.line(document["machine"]))
    for name, about in document["peers"].items():
        tables.note(f"{name}: " + ", ".join(f"{key} {value}" for key, value in about.items()))
    tables.note(
        "Medians of interleaved rounds, and of a round's calls; a peer's column: its time over ours "
        "in the same round (above 1: ours is faster), median (least-most)"
    )


def _print_measured(cases, with_bars):
    from .. import tables

    groups = list(
        dict.fromkeys(
            _group(name) for case in cases for row in case["rows"] for name in row["ratios"]
        )
    )
    has_scratch = cases[0]["kind"] == "attention"
    columns = [("case", "left"), ("t", "right"), ("ours ms", "right"), ("rate", "right")]
    columns += [("roofline", "right"), *((group, "right") for group in groups)]
    columns += [("scratch", "right")] * has_scratch + [("bar", "left")] * with_bars
    rows = []
    for case in cases:
        for row in case["rows"]:
            cells = [
                case["name"].removeprefix(case["kind"] + " "),
                str(row["threads"]),
                *_own_cells(case, row),
            ]
            cells += [_ratio_cell(row, group) for group in groups]
            if has_scratch:
                cells.append(_scratch_cell(case))
            rows.append([*cells, *_bar_cells(row, with_bars)])
    tables.print_table(columns, rows)


def _group(name):
    first = name.split()[0]
    return first if first in _GROUPED else name


def _own_cells(case, row):
    if "ours" not in row["seconds"]:
        return ["-", "-", "-"]
    shares = ", ".join(f"{share['median']:.2f} {limit}" for limit, share in row["roofline"].items())
    unit = _UNITS[case["limits"][0]]
    return [f"{row['seconds']['ours'] * 1e3:.2f}", f"{row['rate'] / 1e9:.1f} {unit}", shares or "-"]


def _ratio_cell(row, group):
    members = [name for name in row["ratios"] if _group(name) == group]
    if not members:
        return "-"
    fastest = min(members, key=lambda name: row["seconds"][name])
    return timing.ratio_text(row["ratios"][fastest]) + fastest.removeprefix(group)


def _scratch_cell(case):
    found = [c["info"].get("scratch_bytes") for c in case["columns"] if c["name"] == "ours"]
    return f"{found[0] / MIB:.2f}" if found and found[0] is not None else "-"


def _bar_cells(row, with_bars):
    return [_bar_cell(row["bars"])] if with_bars else []


def _bar_cell(verdicts):
    if not verdicts:
        return "-"
    missed = [_verdict_text(v) for v in bars.missed(verdicts)]
    unknown = [v["text"] for v in verdicts if v["met"] is None]
    parts = [f"MISSED {', '.join(missed)}"] if missed else []
    parts += [f"not measured: {', '.join(unknown)}"] if unknown else []
    if not parts:
        goals = [v["reaches_goal"] for v in verdicts if v["goal"] is not None]
        return "met, goal too" if goals and all(goals) else "met"
    return "; ".join(parts)


def _verdict_text(verdict):
    value, bound = verdict["value"], verdict["bound"]
    if verdict["text"] == "scratch":
        value, bound = value / MIB, bound / MIB
    sign = ">" if verdict["at_most"] else "<"
    most = f" (floor: {verdict['most']:.2f})" if "most" in verdict else ""
    return f"{value:.2f} {verdict['text']} {sign} {bound:g}{most}"


def _print_import(cases, with_bars):
    from .. import tables

    tables.print_table(
        [("what", "left"), ("s", "right"), ("loads", "left"), *[("bar", "left")] * with_bars],
        [
            [
                row["name"],
                f"{row['seconds']:.2f}",
                ", ".join(row["modules"]) or "-",
                *_bar_cells(row, with_bars),
            ]
            for case in cases
            for row in case["rows"]
        ],
    )


def _print_compile(cases, with_bars):
    from .. import tables

    headings = [("first call", "left"), ("s", "right"), ("kernels", "right")]
    tables.print_table(
        [*headings, ("slowest kernel", "left"), ("s", "right"), *[("bar", "left")] * with_bars],
        [
            [
                row["name"],
                f"{row['first_call_seconds']:.2f}",
                str(len(row["kernels"])),
                row["slowest"],
                f"{row['seconds']:.2f}",
                *_bar_cells(row, with_bars),
            ]
            for case in cases
            for row in case["rows"]
            if row["kernels"]
        ],
    )


_PRINT = {"import": _print_import, "compile": _print_compile}


def _print_growth(document):
    """What a kept pair of query and key costs in a long context against a short one."""
    from .. import tables

    by_sizes = {}
    for case in document["cases"]:
        if case["kind"] == "attention" and case["sizes"]["n_tokens"] > 1:
            sizes = {key: value for key, value in case["sizes"].items() if key != "n_kv"}
            by_sizes.setdefault(str(sizes), []).append(case)
    for cases in by_sizes.values():
        cases.sort(key=lambda case: case["sizes"]["n_kv"])
        short, long = cases[0], cases[-1]
        for a, b in zip(short["rows"], long["rows"], strict=False):
            if len(cases) == 1 or not all("ours" in row["seconds"] for row in (a, b)):
                continue
            cost = [
                row["seconds"]["ours"] / kept_pairs(c["sizes"]["n_tokens"], c["sizes"]["n_kv"])
                for row, c in ((a, short), (b, long))
            ]
            tables.note(
                f"u{short['sizes']['n_tokens']}, {a['threads']} thread(s): a pair of query and key "
                f"costs {cost[1] / cost[0]:.2f} times as much at n {long['sizes']['n_kv']} as at "
                f"n {short['sizes']['n_kv']}"
            )


def _print_summary(document, with_bars):
    from .. import tables

    verdicts = [v for case in document["cases"] for row in case["rows"] for v in row["bars"]]
    said = f"{bars.summary(verdicts)}; " if with_bars else ""
    tables.note(f"\n{said}took {document['seconds']:.0f} s")
