"""`lowlevel.inspect.timeline`'s data as a PNG, drawn by matplotlib: stacked areas, budget, peak, calls.

matplotlib comes with the extra "plot" and is imported when a picture is drawn.
"""

from __future__ import annotations

import functools
import io
import itertools
from typing import TYPE_CHECKING

import numpy as np

from lowlevel.extras import pip_install
from lowlevel.sizes import format_size

if TYPE_CHECKING:
    from typing import Any


WIDTH, PANEL_HEIGHT, DPI = 1200, 420, 100  # pixels; a panel is a pool's chart
LEFT, RIGHT, TOP, BOTTOM = 96, 232, 44, 76  # margins of a chart
PLOT_WIDTH, PLOT_HEIGHT = WIDTH - LEFT - RIGHT, PANEL_HEIGHT - TOP - BOTTOM
MAX_PANELS = 8
MAX_LANES = 3
LANE_HEIGHT = 13
SHOWN_NAME = 28
# Shared with the HTML. Petroff's sequence of eight (arXiv:2107.02270), found by search for colours that stay apart with any
# colour vision; a second round of them is hatched.
PALETTE = (
    "#1845fb", "#ff5e02", "#c91f16", "#c849a9", "#adad7d", "#86c8dd", "#578dff", "#656364",
)  # fmt: skip
HATCH = "////"
INK, FAINT, GRID = "#1e2228", "#6e747c", "#e2e5e9"
BUDGET, CALL = "#000000", "#464c54"


def png(data: dict[str, Any]) -> bytes:
    """The picture as the bytes of a PNG file; of many pools the first eight.

    Parameters
    ----------
    data : dict
        What `lowlevel.inspect.timeline.timeline` returns.

    Raises
    ------
    ImportError
        matplotlib is not installed, or cannot be loaded.
    """
    backend = _load_matplotlib()
    import matplotlib.figure
    import matplotlib.style

    pools = data["pools"][:MAX_PANELS]
    n_panels = max(1, len(pools))
    out = io.BytesIO()
    # as matplotlib draws by itself, whatever the user has set for pictures of his own (TeX, say)
    with matplotlib.style.context("default"):
        figure = matplotlib.figure.Figure((WIDTH / DPI, n_panels * PANEL_HEIGHT / DPI), dpi=DPI)
        backend.FigureCanvasAgg(figure)
        for index, pool in enumerate(pools):
            _draw_pool(_Panel(figure, index, n_panels), data, pool)
        note = f"and {len(data['pools']) - len(pools)} pool(s) more"
        if not pools:
            note = f"{_printable(data['title'])}: no pools"
        if len(pools) != len(data["pools"]) or not pools:
            _text(figure, 0.5, 6 / (n_panels * PANEL_HEIGHT), note, INK, ha="center")
        figure.savefig(out, format="png", dpi=DPI, metadata={"Software": None})
    return out.getvalue()


def _load_matplotlib():
    try:
        from matplotlib.backends import backend_agg
    except ImportError as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "matplotlib"
        what = "it is not installed" if missing else f"it cannot be loaded ({error})"
        raise ImportError(f"a PNG needs matplotlib: {what}; {pip_install('plot')}") from error
    return backend_agg


class _Panel:
    """The room of one pool: its axes, in which x is pixels from the left and y is bytes, and its texts.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
    index, n_panels : int
    """

    def __init__(self, figure, index, n_panels):
        self.figure = figure
        self._height = n_panels * PANEL_HEIGHT
        self._top = index * PANEL_HEIGHT
        self.axes = self._add_axes(TOP, PLOT_HEIGHT)
        self.lanes = self._add_axes(TOP + PLOT_HEIGHT + 5, LANE_HEIGHT * MAX_LANES)
        self.lanes.set_ylim(LANE_HEIGHT * MAX_LANES, 0)

    def _add_axes(self, top, height):
        bottom = self._height - self._top - top - height
        place = LEFT / WIDTH, bottom / self._height, PLOT_WIDTH / WIDTH, height / self._height
        axes = self.figure.add_axes(place, frameon=False)
        axes.set_xlim(0, PLOT_WIDTH)
        axes.set_xticks([])
        axes.set_yticks([])
        return axes

    def place(self, x, y):
        """Where in the figure a place in pixels from the panel's upper left is."""
        return x / WIDTH, 1 - (self._top + y) / self._height

    def text(self, x, y, text, colour, **how):
        return _text(self.figure, *self.place(x, y), text, colour, **how)


def _text(figure, x, y, text, colour, **how):
    made = figure.text(x, y, text, color=colour, fontsize=9, **how)
    made.set_parse_math(False)  # "$" in a name is a dollar
    return made


def _draw_pool(panel, data, pool):
    seconds = max(data["seconds"], 1e-9)
    highest = max(pool["peak"], 1) * 1.08
    if pool["budget"] <= 1.6 * highest:
        highest = max(highest, pool["budget"] * 1.03)
    axes = panel.axes
    axes.set_ylim(0, highest)
    _draw_grid(panel, seconds, highest)
    _draw_areas(axes, pool, seconds)
    axes.axhline(pool["peak"], color=INK, lw=1, ls=(0, (1, 3)))
    peak_x = PLOT_WIDTH * min(pool["peak_t"] / seconds, 1)
    axes.plot([peak_x], [pool["peak"]], "s", color=INK, ms=5, clip_on=False)
    if pool["budget"] <= highest:
        axes.axhline(pool["budget"], color=BUDGET, lw=1.5, ls=(0, (10, 4)))
    refused = [PLOT_WIDTH * min(one["t"] / seconds, 1) for one in pool["refused"]]
    axes.plot(refused, [highest] * len(refused), "v", color=BUDGET, ms=6, clip_on=False)
    _draw_calls(panel, pool, seconds)
    title = f"{_printable(data['title'])}  pool {pool['pool']} on {_printable(pool['device'])}"
    panel.text(LEFT, 22, title, INK)
    numbers = f"peak {format_size(pool['peak'])} of {format_size(pool['budget'])}"
    if pool["n_refused"]:
        numbers += f", {pool['n_refused']:,} refused (▼)"
    panel.text(LEFT + PLOT_WIDTH, 22, numbers, INK, ha="right")
    _draw_legend(panel, pool["bands"]["tag"]["names"])


def _draw_grid(panel, seconds, highest):
    step = _nice_bytes(highest / 5)
    for value in range(0, int(highest) + 1, step):
        panel.axes.axhline(value, color=GRID, lw=1, zorder=0)
        y = TOP + PLOT_HEIGHT * (1 - value / highest)
        panel.text(LEFT - 8, y, format_size(value), FAINT, ha="right", va="center")
    for index in range(6):
        x = PLOT_WIDTH * index / 5
        panel.axes.axvline(x, color=GRID, lw=1, zorder=0)
        align = "left" if index == 0 else "right" if index == 5 else "center"
        label = _format_seconds(seconds * index / 5)
        panel.text(LEFT + x, PANEL_HEIGHT - 14, label, FAINT, ha=align)


def _draw_areas(axes, pool, seconds):
    """Each column of pixels shows the fullest of the steps that fall on it."""
    used = np.array(pool["bands"]["tag"]["used"], np.float64)
    if not used.size:
        return
    totals = used.sum(axis=0)
    starts = np.clip(np.array(pool["t"]) / seconds * PLOT_WIDTH, 0, PLOT_WIDTH - 1).astype(int)
    step_of = np.searchsorted(starts, np.arange(PLOT_WIDTH), side="right") - 1  # the last to begin
    for step, x in enumerate(starts):
        if step_of[x] < 0 or totals[step] > totals[step_of[x]]:
            step_of[x] = step
    columns = np.where(step_of >= 0, used[:, step_of], 0)
    edges = np.cumsum(np.vstack([np.zeros(PLOT_WIDTH), columns]), axis=0)
    x = np.arange(PLOT_WIDTH + 1)
    for index, (low, high) in enumerate(itertools.pairwise(edges)):
        low, high = (np.append(edge, edge[-1]) for edge in (low, high))
        style = {"step": "post", "lw": 0, "antialiased": False, **_style(index)}
        axes.fill_between(x, low, high, where=high > low, **style)


def _draw_calls(panel, pool, seconds):
    shown = [call for call in pool["calls"] if call["lane"] < MAX_LANES]
    for call in shown:
        end = seconds if call["end"] is None else call["end"]
        left = PLOT_WIDTH * min(call["t"] / seconds, 1)
        width = max(1, PLOT_WIDTH * min(end / seconds, 1) - left - 1)
        colour = CALL if call["ok"] is not False else PALETTE[2]
        lane = call["lane"] * LANE_HEIGHT
        panel.lanes.broken_barh([(left, width)], (lane, LANE_HEIGHT - 4), color=colour, lw=0)
    if pool["calls"]:
        n_more = pool["n_calls"] - len(shown)
        top = TOP + PLOT_HEIGHT + 5
        panel.text(LEFT - 8, top, "calls", FAINT, ha="right", va="top")
        if n_more:
            panel.text(LEFT - 8, top + 14, f"(+ {n_more:,})", FAINT, ha="right", va="top")


def _draw_legend(panel, names):
    """The names from the top of the stack down; the last may be that of the rest, which says of how many."""
    from matplotlib.legend import Legend
    from matplotlib.patches import Patch

    shown = list(range(len(names)))[::-1]
    patches = [Patch(lw=0, **_style(index)) for index in shown]
    place = panel.place(WIDTH - RIGHT + 12, TOP)
    legend = Legend(
        panel.figure, patches, [str(index) for index in shown], loc="upper left",
        bbox_to_anchor=place, bbox_transform=panel.figure.transFigure, frameon=False, fontsize=9,
        borderpad=0, borderaxespad=0, handlelength=1.2, labelspacing=0.35, labelcolor=FAINT,
    )  # fmt: skip
    for text, index in zip(legend.get_texts(), shown, strict=True):
        text.set_parse_math(False)
        text.set_text(_printable(names[index]) or "''")
    panel.figure.add_artist(legend)


def _style(index):
    colour = PALETTE[index % len(PALETTE)]
    if index < len(PALETTE):
        return {"facecolor": colour}
    return {"facecolor": colour, "hatch": HATCH, "edgecolor": "white"}


def _nice_bytes(n_bytes):
    """A power of two of at least that many bytes."""
    return 1 << max(0, int(np.ceil(np.log2(max(n_bytes, 1)))))


def _format_seconds(seconds):
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.4g} {unit}"
    return f"{seconds * 1e6:.4g} µs"


def _printable(text):
    """What the font has, of bounded length: names that begin alike often end differently."""
    if len(text) > SHOWN_NAME:
        half = SHOWN_NAME // 2
        text = f"{text[: half - 1]}...{text[2 - half :]}"
    has = _font().get_char_index
    return "".join(c if c.isprintable() and has(ord(c)) else "?" for c in text)


@functools.cache
def _font():
    from matplotlib import font_manager

    return font_manager.get_font(font_manager.findfont("DejaVu Sans"))
