"""The timeline: its data against the pool's, its PNG by its pixels, its HTML in a real browser."""

import json
import random
import re
import secrets
import struct
import warnings
import zlib

import chromium
import numpy as np
import pytest
from traces import Lines, record

from lowlevel.inspect import timeline as module
from lowlevel.inspect.run import read_run
from lowlevel.inspect.timeline import html, png, timeline


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run.jsonl"


def new_rng():
    seed = secrets.randbits(32)
    print("seed", seed)
    return random.Random(seed)


def totals(pool):
    return [sum(step) for step in zip(*pool["used"], strict=True)]


# ---------------------------------------------------------------- data


def test_data_is_what_the_pool_says(path):
    said = record(path, new_rng())
    (pool,) = timeline(path)["pools"]
    assert max(totals(pool)) == pool["peak"] == said["peak"]
    assert totals(pool)[-1] == said["snapshot"]["used"]
    assert pool["n_refused"] == len(pool["refused"]) == said["n_refused"]
    assert sum(block["n_bytes"] for block in pool["blocks_at_peak"]) == said["peak"]
    assert pool["t"] == sorted(pool["t"]) and pool["i"] == sorted(pool["i"])
    last = {tag: used[-1] for tag, used in zip(pool["tags"], pool["used"], strict=True) if used[-1]}
    holders = {holder["tag"]: holder["n_bytes"] for holder in said["snapshot"]["holders"]}
    assert last == {tag: n for tag, n in holders.items() if n}
    assert pool["n_calls"] == len(pool["calls"]) > 0
    assert all(call["peak"] == call["planned"] == 1024 and call["ok"] for call in pool["calls"])


def test_many_events_keep_their_peak(path, monkeypatch):
    monkeypatch.setattr(module, "MAX_STEPS", 20)
    monkeypatch.setattr(module, "MAX_CALLS", 3)
    monkeypatch.setattr(module, "MAX_TAGS", 3)
    monkeypatch.setattr(module, "MAX_REFUSED", 2)
    said = record(path, new_rng(), n_steps=600, budget="16KiB")  # small: some are refused
    (pool,) = timeline(path)["pools"]
    assert len(pool["t"]) <= 20 and pool["events_per_step"] > 16
    assert max(totals(pool)) == said["peak"]
    assert len(pool["tags"]) == 3 and pool["tags"][-1] == module.OTHER_TAGS
    assert len(pool["calls"]) <= 6 < pool["n_calls"]
    assert len(pool["refused"]) == 2 < said["n_refused"]


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
    """An RGB PNG without filters, read back; its checksums too."""
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + size]
        assert struct.unpack(">I", data[at + 8 + size : at + 12 + size])[0] == zlib.crc32(
            kind + body
        )
        chunks[kind] = body
        at += 12 + size
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + 3 * width)
    assert not rows[:, 0].any()
    return rows[:, 1:].reshape(height, width, 3)


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
        mask = (inside == p._colour(tag)).all(axis=2)
        columns = mask.sum(axis=0)
        assert abs(np.median(columns[columns > 0]) - p.PLOT_HEIGHT * n_bytes / highest) <= 2
        shown = np.flatnonzero(columns)
        assert shown[0] <= 4 and abs(shown[-1] - p.PLOT_WIDTH / 2) <= 4
    budget_y = round(p.PLOT_HEIGHT * (1 - 65536 / highest))
    dashes = (inside[budget_y - 1 : budget_y + 2] == p.BUDGET).all(axis=2).any(axis=0)
    assert 0.6 < dashes.mean() < 0.8
    assert len(png(timeline(path))) < 100_000


def test_the_font_has_every_character_once():
    from lowlevel.inspect import raster

    glyphs = [raster._COLUMNS[i : i + 5] for i in range(0, len(raster._COLUMNS), 5)]
    assert len(glyphs) == 95 == len(set(glyphs))
    picture = raster.Raster(40, 10)
    picture.text(0, 0, "I\u2603", scale=1)
    expected = raster.Raster(40, 10)
    expected.text(0, 0, "I?", scale=1)
    assert (picture.pixels == expected.pixels).all() and (picture.pixels[0:7, 2] == 0).all()


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


def test_html_in_a_browser(page, path):
    record(path, new_rng(), n_steps=300)
    data = timeline(path)
    file = opened(page, path, data)
    (pool,) = data["pools"]
    assert page.value("document.title") == "run.jsonl – memory timeline"
    assert f"{pool['peak']:,} B" in page.value("document.getElementById('tiles').textContent")
    rows = page.value("[...document.querySelectorAll('#tags tr')].map(r => r.cells[0].textContent)")
    assert rows == pool["tags"]
    box = page.value(
        "(r => [r.left, r.top, r.width, r.height])(document.getElementById('plot').getBoundingClientRect())"
    )
    drawn = page.value(
        "(() => { const c = document.getElementById('plot');"
        " const d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data; const s = new Set();"
        " for (let i = 0; i < d.length; i += 4) s.add(d[i] << 16 | d[i + 1] << 8 | d[i + 2]); return [...s]; })()"
    )
    assert {int(colour[1:], 16) for colour in ("#3b6fb6", "#e58a2e", "#4f9e58")} <= set(drawn)
    # the cursor over the middle: what is held there, to the byte
    x, y = box[0] + 84 + (box[2] - 98) / 2, box[1] + 200
    page.mouse("mouseMoved", x, y)
    tip = page.value("document.getElementById('tip').innerText")
    step = page.value("stepAt(toValue(%f))" % (x - box[0]))
    column_steps = {
        totals(pool)[k] for k in range(max(0, step - 3), step + 4) if k < len(pool["t"])
    }
    assert any(f"{total:,} B" in tip for total in column_steps), tip
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
