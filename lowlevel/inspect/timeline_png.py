"""`lowlevel.inspect.timeline`'s data as a PNG: stacked areas, budget, peak, calls."""

import itertools

import numpy as np

from lowlevel.sizes import format_size

from .raster import CHARACTER_HEIGHT, Raster, text_width

WIDTH, PANEL_HEIGHT = 1200, 420
LEFT, RIGHT, TOP, BOTTOM = 130, 24, 58, 76  # margins of a pool's chart
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, PANEL_HEIGHT - TOP - BOTTOM
MAX_PANELS = 8
MAX_LEGEND = 6
SHOWN_NAME = 28
# Shared with timeline.html: neighbours in the stack differ in hue and in lightness.
PALETTE = (
    "#3b6fb6", "#e58a2e", "#4f9e58", "#c9504f", "#8567b8", "#8a6a4f", "#d47fb5", "#7a7f87",
    "#b3ac35", "#3fb1bd", "#9bbbe3", "#f4c08b", "#a5d3a0", "#efa3a0", "#c6b5e0", "#b9bec6",
)  # fmt: skip
INK, FAINT, GRID = (30, 34, 40), (110, 116, 124), (226, 229, 233)
BUDGET, CALL = (196, 42, 42), (70, 76, 84)


def png(data):
    """The picture as the bytes of a PNG file; of many pools the first eight.

    Parameters
    ----------
    data : dict
        What `lowlevel.inspect.timeline.timeline` returns.
    """
    pools = data["pools"][:MAX_PANELS]
    raster = Raster(WIDTH, max(1, len(pools)) * PANEL_HEIGHT)
    for index, pool in enumerate(pools):
        _draw_pool(raster, index * PANEL_HEIGHT, data, pool)
    if not pools:
        raster.text(20, 20, f"{_printable(data['title'])}: no pools", INK)
    return raster.png()


def _draw_pool(raster, top, data, pool):
    plot_top = top + TOP
    seconds = max(data["seconds"], 1e-9)
    highest = max(pool["peak"], 1) * 1.08
    if pool["budget"] <= 1.6 * highest:
        highest = max(highest, pool["budget"] * 1.03)
    _draw_grid(raster, plot_top, seconds, highest)
    _draw_areas(raster, plot_top, pool, seconds, highest)
    peak_y = plot_top + PLOT_HEIGHT * (1 - pool["peak"] / highest)
    peak_x = LEFT + PLOT_WIDTH * min(pool["peak_t"] / seconds, 1)
    raster.dashes(LEFT, peak_y, PLOT_WIDTH, INK)
    raster.rectangle(peak_x - 3, peak_y - 3, 7, 7, INK)
    if pool["budget"] <= highest:
        y = plot_top + PLOT_HEIGHT * (1 - pool["budget"] / highest)
        raster.dashes(LEFT, y, PLOT_WIDTH, BUDGET, on=10, off=4)
    for refused in pool["refused"]:
        x = LEFT + PLOT_WIDTH * min(refused["t"] / seconds, 1)
        raster.rectangle(x - 2, plot_top - 6, 5, 6, BUDGET)
    _draw_calls(raster, plot_top + PLOT_HEIGHT + 5, pool, seconds)
    title = f"{_printable(data['title'])}  pool {pool['pool']} on {_printable(pool['device'])}"
    raster.text(LEFT, top + 10, title, INK)
    numbers = f"peak {format_size(pool['peak'])} of {format_size(pool['budget'])}"
    raster.text(WIDTH - RIGHT, top + 10, numbers, INK, align="right")
    _draw_legend(raster, top + 34, pool)


def _draw_grid(raster, top, seconds, highest):
    step = _nice_bytes(highest / 5)
    for value in range(0, int(highest) + 1, step):
        y = top + PLOT_HEIGHT * (1 - value / highest)
        raster.rectangle(LEFT, y, PLOT_WIDTH, 1, GRID)
        raster.text(LEFT - 8, y - CHARACTER_HEIGHT, format_size(value), FAINT, align="right")
    for index in range(6):
        x = LEFT + PLOT_WIDTH * index / 5
        raster.rectangle(x, top, 1, PLOT_HEIGHT, GRID)
        label = _format_seconds(seconds * index / 5)
        align = "left" if index == 0 else "right" if index == 5 else "center"
        raster.text(x, top + PLOT_HEIGHT + BOTTOM - 24, label, FAINT, align=align)


def _draw_areas(raster, top, pool, seconds, highest):
    """Each column of pixels shows the fullest of the steps that fall on it."""
    used = np.array(pool["used"], np.float64)
    if not used.size:
        return
    totals = used.sum(axis=0)
    starts = np.clip(np.array(pool["t"]) / seconds * PLOT_WIDTH, 0, PLOT_WIDTH - 1).astype(int)
    step_of = np.searchsorted(starts, np.arange(PLOT_WIDTH), side="right") - 1  # the last to begin
    for step, x in enumerate(starts):
        if step_of[x] < 0 or totals[step] > totals[step_of[x]]:
            step_of[x] = step
    for x in range(PLOT_WIDTH):
        if step_of[x] < 0:
            continue
        edges = PLOT_HEIGHT * (1 - np.concatenate([[0], np.cumsum(used[:, step_of[x]])]) / highest)
        for index, (low, high) in enumerate(itertools.pairwise(edges)):
            if low > high:
                raster.rectangle(
                    LEFT + x, top + round(high), 1, round(low) - round(high), _colour(index)
                )


def _draw_calls(raster, top, pool, seconds):
    for call in pool["calls"]:
        if call["lane"] > 2:
            continue
        end = seconds if call["end"] is None else call["end"]
        left = PLOT_WIDTH * min(call["t"] / seconds, 1)
        width = max(1, PLOT_WIDTH * min(end / seconds, 1) - left - 1)
        colour = CALL if call["ok"] is not False else BUDGET
        raster.rectangle(LEFT + left, top + 14 * call["lane"], width, 10, colour)
    if pool["calls"]:
        raster.text(LEFT - 8, top + 8, "calls", FAINT, align="right")


def _draw_legend(raster, top, pool):
    left = LEFT
    for index, tag in enumerate(pool["tags"][:MAX_LEGEND]):
        name = _printable(tag) or "''"
        if left + 18 + text_width(name) > WIDTH - RIGHT:
            break
        raster.rectangle(left, top, 12, 12, _colour(index))
        raster.text(left + 18, top, name, FAINT)
        left += 18 + text_width(name) + 24


def _colour(index):
    code = PALETTE[index % len(PALETTE)]
    return tuple(int(code[i : i + 2], 16) for i in (1, 3, 5))


def _nice_bytes(n_bytes):
    """A power of two of at least that many bytes."""
    return 1 << max(0, int(np.ceil(np.log2(max(n_bytes, 1)))))


def _format_seconds(seconds):
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds * 1e6:.4g} us"


def _printable(text):
    text = "".join(c if " " <= c <= "~" else "?" for c in text)
    return text if len(text) <= SHOWN_NAME else text[: SHOWN_NAME - 3] + "..."
