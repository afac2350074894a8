"""The page of predicted timelines: whole in one file, honest in its words, alive in a browser."""

import json
import re
import shutil
import subprocess

import pytest

from reports.timeline_page import Bar, Row, TimelineView, write_timeline_page, write_trace


def a_view(title="decode-F16-chunk", cycles=1000, **changes):
    """A profile of a load beside a product."""
    common = {"layer": 3, "group": "blocks.*.ffn.key.weight", "name": "blocks.3.ffn.key.weight"}
    bars = (
        Bar(lane="GDMA", start=0, cycles=cycles, operation="Load", detail="GDMA_TENSOR, read", bytes=4096, **common),
        Bar(lane="TIU", start=10, cycles=50, operation="MatMul", detail="MM2", bytes=0, **common),
    )
    row = Row(
        operation="Load",
        group="blocks.*.ffn.key.weight",
        count=1,
        tiu_cycles=0,
        gdma_cycles=cycles,
        alone_cycles=cycles - 50,
        bytes=4096,
    )
    fields = {
        "title": title,
        "facts": (("predicted time of a call", "0.0010 ms"), ("floor", "0.0005 ms")),
        "total_cycles": cycles,
        "floor_ns": 500.0,
        "lanes": ("TIU", "GDMA"),
        "bars": bars,
        "by_name": (row,),
        "by_kind": (row,),
    }
    return TimelineView(**(fields | changes))


def data_of(page):
    """What the page's script works with."""
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)[1])


def test_page(tmp_path):
    """Every instruction is in the data, the figures in the tables, and nothing is called measured."""
    write_timeline_page([a_view()], tmp_path / "t.html")
    page = (tmp_path / "t.html").read_text()
    (view,) = data_of(page)
    texts = view["texts"]
    assert (view["total"], view["floor"], [texts[i] for i in view["lanes"]]) == (1000, 500.0, ["TIU", "GDMA"])
    lane, start, cycles, operation, name, group, detail, layer, size = view["bars"][0]
    assert (start, cycles, layer, size) == (0, 1000, 3, 4096)
    assert [texts[i] for i in (lane, operation, name, detail)] == [
        "GDMA",
        "Load",
        "blocks.3.ffn.key.weight",
        "GDMA_TENSOR, read",
    ]
    assert texts[group] == "blocks.*.ffn.key.weight"
    assert "<b>predictions</b>" in page
    assert "nothing here was measured" in page
    assert '<td class="number">950</td>' in page
    assert "difference" not in page.partition("<script")[0]


def test_nothing_from_outside(tmp_path):
    """The page opens from disk: no address, no other file."""
    write_timeline_page([a_view()], tmp_path / "t.html")
    page = (tmp_path / "t.html").read_text()
    assert not re.search(r"https?://|<link|\bsrc=|@import|fetch\(", page)


def test_two_profiles(tmp_path):
    """Side by side: each row has both figures and their difference; a row that one lacks stays empty there."""
    other = a_view("decode-W4F16-chunk", cycles=400, by_kind=())
    write_timeline_page([a_view(), other], tmp_path / "t.html")
    page = (tmp_path / "t.html").read_text()
    assert [view["title"] for view in data_of(page)] == ["decode-F16-chunk", "decode-W4F16-chunk"]
    assert '<td class="number">-600</td>' in page
    assert '<td class="number">-1,000</td>' in page
    assert page.count("<td></td><td></td><td></td><td></td><td></td><td></td><td></td>") == 1


def test_hostile_names(tmp_path):
    """A name can neither end the script nor become markup."""
    name = "</script><img src=x onerror=alert(1)>"
    row = Row(operation=name, group=name, count=1, tiu_cycles=1, gdma_cycles=0, alone_cycles=1, bytes=0)
    write_timeline_page([a_view(name, by_name=(row,))], tmp_path / "t.html")
    page = (tmp_path / "t.html").read_text()
    assert name not in page
    assert data_of(page)[0]["title"] == name


def test_no_view(tmp_path):
    """Nothing to show is an error, not an empty page."""
    with pytest.raises(ValueError, match="at least one"):
        write_timeline_page([], tmp_path / "t.html")


def test_trace(tmp_path):
    """Trace events: a process a profile, a thread an engine, microseconds."""
    write_trace([a_view(), a_view()], tmp_path / "t.json")
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    threads = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    assert set(threads) == {(1, 0), (1, 1), (2, 0), (2, 1)}
    load, product = (next(e for e in events if e.get("cat") == cat) for cat in ("Load", "MatMul"))
    assert (threads[load["pid"], load["tid"]], load["ts"], load["dur"]) == ("GDMA", 0.0, 1.0)
    assert (threads[product["pid"], product["tid"]], product["ts"], product["dur"]) == ("TIU", 0.01, 0.05)
    assert next(e for e in events if e["name"] == "process_name")["args"]["name"].startswith("predicted: ")


def test_in_a_browser(tmp_path):
    """The script runs: canvases are there and the shown stretch of time is told; skipped without a browser."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        pytest.skip("no chromium on this machine")
    write_timeline_page([a_view(), a_view(cycles=2_000_000)], tmp_path / "t.html")
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    options += ["--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run(
        [browser, *options, (tmp_path / "t.html").as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.count("<canvas") == 2
    assert '<span id="window">0 ns to 2.040 ms (predicted)</span>' in done.stdout
