"""The timeline: its data against the pool's, its PNG by its pixels, its HTML in a real browser."""

import io
import json
import random
import re
import secrets
import sys
import time
import warnings

import chromium
import numpy as np
import pytest
from traces import Lines, record

from lowlevel.inspect import timeline as module
from lowlevel.inspect import timeline_bands
from lowlevel.inspect.run import read_run
from lowlevel.inspect.timeline import html, png, timeline
from lowlevel.inspect.timeline_png import PALETTE


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


def new_rng():
    seed = secrets.randbits(32)
    print("seed", seed)
    return random.Random(seed)


def totals(pool, kind="tag"):
    return [sum(step) for step in zip(*pool["bands"][kind]["used"], strict=True)]


def live_at(pool, step):
    """{(offset, bytes)} of the blocks that the picture has at a step."""
    blocks = pool["blocks"]
    columns = (blocks[name] for name in ("first", "after", "offset", "n_bytes"))
    return {
        tuple(block) for first, after, *block in zip(*columns, strict=True) if first <= step < after
    }


# ---------------------------------------------------------------- data


def test_data_is_what_the_pool_says(path):
    said = record(path, new_rng())
    (pool,) = timeline(path)["pools"]
    assert max(totals(pool)) == pool["peak"] == said["peak"]
    assert totals(pool)[-1] == said["snapshot"]["used"]
    assert pool["n_refused"] == len(pool["refused"]) == said["n_refused"]
    assert pool["t"] == sorted(pool["t"]) and pool["i"] == sorted(pool["i"])
    bands = pool["bands"]["tag"]
    last = {tag: used[-1] for tag, used in zip(*bands.values(), strict=True) if used[-1]}
    holders = {holder["tag"]: holder["n_bytes"] for holder in said["snapshot"]["holders"]}
    assert last == {tag: n for tag, n in holders.items() if n}
    assert pool["n_calls"] == len(pool["calls"]) > 0
    assert all(call["peak"] == call["planned"] == 1024 and call["ok"] for call in pool["calls"])


def test_many_events_keep_their_peak(path, monkeypatch):
    monkeypatch.setattr(module, "MAX_STEPS", 20)
    monkeypatch.setattr(module, "MAX_CALLS", 3)
    monkeypatch.setattr(timeline_bands, "MAX_BANDS", 3)
    monkeypatch.setattr(module, "MAX_REFUSED", 2)
    said = record(path, new_rng(), n_steps=600, budget="16KiB")  # small: some are refused
    (pool,) = timeline(path)["pools"]
    assert len(pool["t"]) <= 20 and pool["events_per_step"] > 16
    assert max(totals(pool)) == said["peak"]
    tags = pool["bands"]["tag"]["names"]
    assert len(tags) == 3 and tags[-1] == "(4 other tags)"
    for step, total in enumerate(
        totals(pool)
    ):  # of several events, the blocks of the one that is shown
        assert sum(n_bytes for _, n_bytes in live_at(pool, step)) == total
    assert len(pool["calls"]) <= 6 < pool["n_calls"]
    assert len(pool["refused"]) == 2 < said["n_refused"]


def test_the_arena_at_every_moment(path):
    """The blocks at each step are those of the pool itself after that event, and tell the same bytes in all bands."""
    record(path, new_rng(), debug=True)
    (pool,) = timeline(path)["pools"]
    expected = {}

    def remember(run, event, state, call):
        if state is not None:
            live = {(block.offset, block.n_bytes) for block in state.blocks() if block.n_bytes}
            expected[run.n_events] = live

    read_run(path, remember)
    assert pool["events_per_step"] == 1
    for step, i in enumerate(pool["i"]):
        assert live_at(pool, step) == expected[i]
    assert list(pool["bands"]) == ["tag", "scope", "site", "left", "age"]
    assert all(totals(pool, kind) == totals(pool) for kind in pool["bands"])
    assert any("traces.py" in name for name in pool["bands"]["site"]["names"])
    assert "layer 0/x" in pool["bands"]["scope"]["names"]


def test_of_many_blocks_the_largest_are_listed(path, monkeypatch):
    monkeypatch.setattr(timeline_bands, "MAX_BLOCKS", 3)
    lines = Lines()
    for n in range(20):
        lines.alloc(2 * n, 0, 256 * (n + 1)).free(2 * n, 0, 256 * (n + 1))
    lines.alloc(99, 0, 256).write(path)  # never freed, so it is kept
    (pool,) = timeline(path)["pools"]
    blocks = pool["blocks"]
    assert sorted(blocks["n_bytes"]) == [256, 19 * 256, 20 * 256]
    assert (blocks["n_left_out"], blocks["highest"]) == (18, 20 * 256)


def test_what_was_never_freed(path):
    lines = Lines(used=256).alloc(1, 0, 256, "early", used=256)
    lines.used = 256
    for n in range(2, 5):
        lines.alloc(n, 256 * (n - 1), 256, "a", scope="layer 0", site="x.py:1 f")
    lines.free(3, 512, 256).write(path)
    (pool,) = timeline(path)["pools"]
    assert pool["left"] == {"n_blocks": 3, "n_bytes": 768, "n_groups": 2, "groups": [
        {"tag": "a", "scope": "layer 0", "site": "x.py:1 f", "n_bytes": 512, "n_blocks": 2, "since": 0.003},
        {"tag": "early", "scope": "", "site": "", "n_bytes": 256, "n_blocks": 1, "since": None},
    ]}  # fmt: skip
    bands = pool["bands"]["left"]
    assert bands["names"] == ["a", "early", "(freed later)"]
    at_peak = totals(pool).index(1024)
    assert [used[at_peak] for used in bands["used"]] == [512, 256, 256]
    assert [used[-1] for used in bands["used"]] == [512, 256, 0]


def test_bands_by_age(path):
    lines = Lines(used=256).alloc(1, 0, 256, used=256)
    lines.used = 256
    lines.alloc(2, 256, 512)
    lines.t = 0.05
    lines.alloc(3, 768, 1024)
    lines.t = 1.0
    lines.add("reset_peak").write(path)
    (pool,) = timeline(path)["pools"]
    bands = pool["bands"]["age"]
    assert bands["names"] == [
        "from before the recording", "1 s and more", "100 ms to 1 s", "10 ms to 100 ms", "1 ms to 10 ms", "under 1 ms",
    ]  # fmt: skip
    assert bands["least"] == pytest.approx([None, 1, 0.1, 0.01, 0.001, 0], nan_ok=True)

    def at(t):  # also where nothing happened
        step = np.searchsorted(pool["t"], t, side="right") - 1
        return [used[step] for used in bands["used"]]

    assert at(0.0505) == [256, 0, 0, 512, 0, 0]
    assert at(0.0511) == [256, 0, 0, 512, 0, 1024]
    assert at(0.09) == [256, 0, 0, 1536, 0, 0]
    assert at(0.13) == [256, 0, 512, 1024, 0, 0]
    assert at(0.5) == [256, 0, 1536, 0, 0, 0]
    assert len(pool["t"]) <= 4 + module.TICK_SHARE * module.MAX_STEPS


def test_calls_at_once_have_lanes_of_their_own(path):
    lines = Lines()
    for number in range(40):
        lines.add("begin", call=number, name="x", thread=str(number), details={})
    lines.add("end", call=7, name="x", thread="7", ok=False)
    lines.add("begin", call=99, name="x", thread="7", details={}).write(path)
    (pool,) = timeline(path)["pools"]
    lanes = [call["lane"] for call in pool["calls"]]
    assert lanes[:32] == list(range(32)) and set(lanes[32:]) <= {7, 31}
    assert [call["end"] is None for call in pool["calls"]].count(False) == 1


def test_a_trace_without_pools_or_blocks(path):
    lines = Lines()
    lines.write(path)
    data = timeline(path)
    assert totals(data["pools"][0]) == [0]
    assert png(data) and html(data)
    lines.lines = lines.lines[:1]
    lines.write(path)
    assert timeline(path)["pools"] == [] and png(timeline(path)) and html(timeline(path))


def test_a_snapshot_has_no_history(path, tmp_path):
    said = record(path, random.Random(5))
    (tmp_path / "s.json").write_text(json.dumps(said["snapshot"]))
    with pytest.raises(ValueError, match="has a history"):
        timeline(tmp_path / "s.json")


NASTY = ["</script><script>alert(1)</script>", "<img src=x onerror=alert(1)>", "\u2028", "&lt;", "\ud800", "__proto__", "🦙"]  # fmt: skip


def nasty(path):
    lines = Lines(budget=65536, program=NASTY[0])
    for n, tag in enumerate(NASTY, start=1):
        lines.alloc(n, 1024 * n, 1024, tag, scope=NASTY[1])
    lines.add("begin", call=1, name=NASTY[0], thread=NASTY[1], details={"scratch_bytes": 0})
    lines.add("refuse", size=2**20, tag=NASTY[1], error={})
    lines.add("end", call=1, name=NASTY[0], thread=NASTY[1], ok=True)
    return lines.write(path)


def test_names_cannot_end_the_script(path):
    data = timeline(nasty(path))
    text = html(data).decode("ascii", "replace")
    assert text.count("</script>") == 1 and "<img" not in text
    literal = re.search(r"^const DATA = (.*);$", text, re.MULTILINE).group(1)
    assert json.loads(literal) == data


# ---------------------------------------------------------------- PNG


def pixels(data):
    """A PNG read back: height x width x (red, green, blue), 0 to 255."""
    import matplotlib.image

    return np.rint(matplotlib.image.imread(io.BytesIO(data))[..., :3] * 255).astype(np.uint8)


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def test_png_shows_areas_of_the_right_height(path):
    from lowlevel.inspect import timeline_png as p

    # half of the time 3/4 of the budget, by two tags, then nothing
    lines = Lines(budget=65536)
    lines.alloc(1, 0, 16384, "a").alloc(2, 16384, 32768, "b")
    lines.t = 0.5
    lines.free(1, 0, 16384, "a").free(2, 16384, 32768, "b")
    lines.t = 1.0
    lines.add("reset_peak").write(path)
    picture = pixels(png(timeline(path)))
    assert picture.shape == (p.PANEL_HEIGHT, p.WIDTH, 3)
    inside = picture[p.TOP : p.TOP + p.PLOT_HEIGHT, p.LEFT : p.LEFT + p.PLOT_WIDTH]
    highest = max(49152 * 1.08, 65536 * 1.03)
    for tag, n_bytes in ((0, 32768), (1, 16384)):  # the larger below
        mask = (inside == rgb(p.PALETTE[tag])).all(axis=2)
        columns = mask.sum(axis=0)
        assert abs(np.median(columns[columns > 0]) - p.PLOT_HEIGHT * n_bytes / highest) <= 2
        shown = np.flatnonzero(columns)
        assert shown[0] <= 4 and abs(shown[-1] - p.PLOT_WIDTH / 2) <= 4
    budget_y = round(p.PLOT_HEIGHT * (1 - 65536 / highest))
    dashes = (inside[budget_y - 1 : budget_y + 2] == rgb(p.BUDGET)).all(axis=2).any(axis=0)
    assert 0.6 < dashes.mean() < 0.8
    assert len(png(timeline(path))) < 100_000


def test_png_names_everything_or_says_how_much_it_leaves_out(path, monkeypatch):
    from lowlevel.inspect import timeline_png as p

    texts = []
    monkeypatch.setattr(
        p, "_printable", lambda text, real=p._printable: texts.append(real(text)) or texts[-1]
    )
    lines = Lines()
    names = ["$x$", "_hidden", "<b>", "\ud800", "a" * 60, "Schlüssel", "\n", *map(str, range(13))]
    for n, name in enumerate(names):
        lines.alloc(n + 1, 256 * n, 256, name)
    for number in range(5):
        lines.add("begin", call=number, name="x", thread=str(number), details={})
    lines.write(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no glyph is missing, nothing is taken for a formula
        picture = pixels(png(timeline(path)))
    assert len(texts) == 2 + 16 and "(5 other tags)" in texts and "$x$" in texts and "?" in texts
    assert not (picture == 255).all()


def test_png_without_matplotlib(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setitem(sys.modules, "matplotlib.backends", None)
    data = timeline(Lines().write(path))
    with pytest.raises(
        ImportError, match=r"needs matplotlib.*pip install '.*(\[plot\]|matplotlib)"
    ):
        png(data)
    assert html(data)


# How a dichromat sees linear RGB: Machado, Oliveira, Fernandes 2009, severity 1.
DICHROMATS = {
    "normal": np.eye(3),
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}  # fmt: skip


@pytest.mark.parametrize("eyes", DICHROMATS)
def test_colours_stay_apart_for_any_eyes(eyes):
    """By CIELAB's distance; the old palette had pairs 0.7 apart."""
    from lowlevel.inspect.timeline_png import PALETTE

    values = np.array([rgb(colour) for colour in PALETTE]) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = np.clip(linear @ np.array(DICHROMATS[eyes]).T, 0, 1)
    to_xyz = np.array([[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]])  # fmt: skip
    xyz = seen @ to_xyz.T / [0.95047, 1, 1.08883]
    f = np.where(xyz > 216 / 24389, np.cbrt(xyz), (24389 / 27 * xyz + 16) / 116)
    lab = np.stack([116 * f[:, 1], 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
    distance = np.linalg.norm(lab[:, None] - lab[None], axis=2)
    assert distance[~np.eye(len(lab), dtype=bool)].min() > 15


# ---------------------------------------------------------------- HTML


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    if chromium.find() is None:
        warnings.warn(
            "no Chromium here: the timeline's HTML is NOT tested (apt-get install chromium)"
        )
        pytest.skip("no Chromium (apt-get install chromium)")
    with chromium.Page(tmp_path_factory.mktemp("profile")) as page:
        yield page


def opened(page, path, data):
    """Open the data's HTML: no word in the console, no request but for the file itself."""
    page.console.clear()
    page.requests.clear()
    path = path.with_suffix(".html")
    path.write_bytes(html(data))
    page.open(path)
    page.screenshot()
    quiet(page, path)
    return path


def quiet(page, path):
    page.value("1")
    assert page.console == []
    # the empty icon is written out in the page itself
    assert [url for url in page.requests if not url.startswith("data:")] == [path.as_uri()]


def point(page, x, y):
    """Move the cursor into the plot; a page may drop what comes before it was first drawn."""
    for _ in range(200):
        page.mouse("mouseMoved", x, y)
        if page.value("state.cursor !== null"):
            return
        time.sleep(0.02)
    raise AssertionError("the page does not follow the mouse")


def test_html_in_a_browser(page, path):
    record(path, new_rng(), n_steps=300)
    data = timeline(path)
    file = opened(page, path, data)
    (pool,) = data["pools"]
    assert page.value("document.title") == "run.jsonl – memory timeline"
    assert f"{pool['peak']:,} B" in page.value("document.getElementById('tiles').textContent")
    rows = page.value("[...document.querySelectorAll('#tags tr')].map(r => r.cells[0].textContent)")
    assert rows == [name or "''" for name in pool["bands"]["tag"]["names"]]
    box = page.value(
        "(r => [r.left, r.top, r.width, r.height])(document.getElementById('plot').getBoundingClientRect())"
    )
    drawn = page.value(
        "(() => { const c = document.getElementById('plot');"
        " const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; const s = new Set();"
        " for (let i = 0; i < d.length; i += 4) s.add(d[i] << 16 | d[i + 1] << 8 | d[i + 2]); return [...s]; })()"
    )
    assert {int(colour[1:], 16) for colour in PALETTE[:3]} <= set(drawn)
    # the cursor over a step in the middle (the recording may begin late in the run): what is held there, to the byte
    x = box[0] + page.value(f"toPixel(steps()[{len(pool['t']) // 2}])") + 1
    y = box[1] + 200
    point(page, x, y)
    tip = page.value("document.getElementById('tip').innerText")
    step = page.value("state.arena.step")  # the fullest of those in a column of pixels
    assert abs(page.value(f"toPixel(steps()[{step}])") - (x - box[0])) <= 2
    assert f"{totals(pool)[step]:,} B" in tip, tip
    # wheel, drag, double click
    span = page.value("[state.x0, state.x1]")
    page.mouse("mouseWheel", x, y, deltaX=0, deltaY=-400)
    zoomed = page.value("[state.x0, state.x1]")
    assert zoomed[1] - zoomed[0] < 0.5 * (span[1] - span[0])
    page.mouse("mousePressed", x, y, button="left", clickCount=1)
    page.mouse("mouseMoved", x - 100, y, button="left", buttons=1)
    page.mouse("mouseReleased", x - 100, y, button="left", clickCount=1)
    assert page.value("state.x0") > zoomed[0]
    page.value("document.getElementById('all').click()")
    assert page.value("[state.x0, state.x1]") == span
    for across in ("i", "t"):
        page.value(
            f"(e => {{ e.value = '{across}'; e.dispatchEvent(new Event('change')); }})(document.getElementById('across'))"
        )
        page.screenshot()
    page.value("document.querySelector('#tags tr').click()")
    assert (
        page.value("Math.max(...totals)") <= pool["peak"] and page.value("state.hidden.size") == 1
    )
    quiet(page, file)


def test_the_arena_at_the_cursor_in_a_browser(page, path):
    record(path, new_rng(), debug=True)
    data = timeline(path)
    file = opened(page, path, data)
    (pool,) = data["pools"]
    held = "document.getElementById('unseen').textContent"
    when = "document.getElementById('when').textContent"
    assert "at the peak" in page.value(when) and f"({pool['peak']:,} B)" in page.value(held)
    assert page.value("state.arena.live.length") == len(live_at(pool, page.value("fullest()")))
    left, top = page.value(
        "(r => [r.left, r.top])(document.getElementById('plot').getBoundingClientRect())"
    )
    # A step's place, for the recording may have begun late in the run; in whole pixels: presses have no others, moves do.
    x = round(left + page.value(f"toPixel(steps()[{len(pool['t']) // 2}])")) + 1
    y = round(top + 200)
    point(page, x, y)
    step = page.value("state.arena.step")
    total = totals(pool)[step]
    assert (f"({total:,} B)" if total >= 1024 else f"{total} B") in page.value(held)
    page.mouse("mousePressed", x, y, button="left", clickCount=1)
    page.mouse("mouseReleased", x, y, button="left", clickCount=1)
    page.mouse("mouseMoved", left + 5, top + 5)
    assert page.value("[state.kept, state.arena.step]") == [step, step]
    assert "kept" in page.value(when)
    page.value("keep(null)")
    assert "at the peak" in page.value(when)
    for kind in ("scope", "site", "left", "age"):
        page.value(
            f"(e => {{ e.value = '{kind}'; e.dispatchEvent(new Event('change')); }})(document.getElementById('bands'))"
        )
        names = page.value(
            "[...document.querySelectorAll('#tags tr')].map(r => r.cells[0].textContent)"
        )
        assert names == [name or "(none)" for name in pool["bands"][kind]["names"]]
        assert page.value("Math.max(...totals)") == pool["peak"]
        assert page.value("state.arena.live.every(k => bandOf(k, state.arena.step) >= 0)")
    assert f"{pool['left']['n_blocks']:,} block" in page.value(
        "document.getElementById('leftTitle').textContent"
    )
    assert page.value("document.getElementById('leftRows').rows.length") == pool["left"]["n_groups"]
    quiet(page, file)


def test_nasty_names_in_a_browser(page, path):
    data = timeline(nasty(path))
    file = opened(page, path, data)
    rows = page.value("[...document.querySelectorAll('#tags tr')].map(r => r.cells[0].textContent)")
    assert set(NASTY[:2]) <= set(rows) and "🦙" in rows
    assert page.value("document.images.length") == 0
    quiet(page, file)


def test_traces_without_anything_in_a_browser(page, path):
    lines = Lines(budget=0)
    lines.write(path)
    opened(page, path, timeline(path))
    lines.lines = lines.lines[:1]
    lines.write(path)
    opened(page, path, timeline(path))
    assert "no pools" in page.value("document.getElementById('note').textContent")


def test_damaged_traces_pictures_do_not_trip_the_browser(page, path):
    """Sizes and times at the ends of their ranges."""
    lines = Lines(budget=2**62, started=1e300)
    lines.alloc(1, 0, 2**62 - 256).alloc(2, 0, 0)
    lines.lines[-1]["t"] = 2**62
    lines.write(path)
    opened(page, path, timeline(path))
    assert read_run(path).pools[1].peak == 2**62 - 256
    assert png(timeline(path))
