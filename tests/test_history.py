"""The history: what was added is found again, nothing twice or half, and a change is marked where it began."""

import html
import sqlite3
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.cli import main
from reports.history import VERSION, Added, History, HistoryError, summarise
from reports.history_page import write_history
from reports.schema import Outcome, RecordsError
from reports.trends import lines_of, values
from tests.gate_runs import DECODE, PREFILL, MadeRun, a_record

ROOT = Path(__file__).parent.parent
NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False)
RECORDS = st.lists(
    st.builds(
        lambda case, outcome, metrics, bmodel: a_record(case, outcome=outcome, metrics=metrics, bmodel_sha256=bmodel),
        st.text(max_size=5),
        st.sampled_from(Outcome),
        st.dictionaries(st.text(max_size=5), NUMBERS, max_size=4),
        st.text(max_size=3),
    ),
    max_size=6,
)


def made(number, *records, **changes):
    """Run *number*, an hour after the one before."""
    run = {"id": f"r{number}", "started": f"2026-01-01T{number:02}:00:00+0000", **changes.pop("run", {})}
    return MadeRun(records or (a_record(),), run, **changes)


def indexed(tmp_path, *runs):
    """All runs, written and added."""
    with History(tmp_path / "h.sqlite") as history:
        for run in runs:
            run.write(tmp_path / run.run["id"])
            history.add(tmp_path / run.run["id"])
        return history.runs()


def history_command(monkeypatch, *arguments):
    """Run ``rwkv-tpu history``; return the exit code."""
    monkeypatch.setattr(sys, "argv", ["rwkv-tpu", "history", *map(str, arguments)])
    with pytest.raises(SystemExit) as left:
        main()
    return left.value.code


@given(records=RECORDS, complete=st.booleans())
def test_round_trip(tmp_path_factory, records, complete):
    """Every case, outcome and figure is found again, to the last digit, by another connection."""
    folder = tmp_path_factory.mktemp("h")
    made(1, *records, complete=complete).write(folder / "r1") if records else made(1).write(folder / "r1")
    with History(folder / "h.sqlite") as history:
        assert history.add(folder / "r1") is Added.NEW
    with History(folder / "h.sqlite") as history:
        (run,) = history.runs()
    wanted = {case.name: case for case in summarise(records or [a_record()])}
    assert run.cases == wanted
    assert run.interrupted == (bool(records) and not complete)
    assert run.folder == folder / "r1"


def test_the_worst_is_kept(tmp_path):
    """Over the checks of a case; what is not finite is worst of all."""
    records = [
        a_record(metrics={"kl_worst_nats": 1e-5, "top1_share": 1.0, "state_nmse": 1e-6}),
        a_record(check="b", metrics={"kl_worst_nats": 3e-5, "top1_share": 0.9, "state_nmse": None}),
        a_record(check="c", metrics={"kl_worst_nats": 2e-5, "top1_share": 0.95, "state_nmse": 2e-6}),
    ]
    (run,) = indexed(tmp_path, made(1, *records))
    figures = run.cases[DECODE].figures
    assert (figures["kl_worst_nats"], figures["top1_share"], figures["state_nmse"]) == (3e-5, 0.9, None)
    assert figures["bmodel_bytes"] == 6_848_512
    assert run.cases[DECODE].outcomes == {"passed": 3}


def test_adding_twice_changes_nothing(tmp_path):
    """Not a byte of the database."""
    made(1).write(tmp_path / "r1")
    with History(tmp_path / "h.sqlite") as history:
        history.add(tmp_path / "r1")
    before = (tmp_path / "h.sqlite").read_bytes()
    with History(tmp_path / "h.sqlite") as history:
        assert history.add(tmp_path / "r1" / "records.jsonl") is Added.KNOWN
        assert len(history.runs()) == 1
    assert (tmp_path / "h.sqlite").read_bytes() == before


def test_a_run_that_changed(tmp_path):
    """It is reported and left as it was, until its replacement is asked for."""
    (before,) = indexed(tmp_path, made(1))
    path = tmp_path / "r1" / "records.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b"x")  # behind its end: no run goes on from there
    with History(tmp_path / "h.sqlite") as history:
        assert history.add(tmp_path / "r1") is Added.CHANGED
    path.write_bytes(whole.replace(b"7e-6", b"8e-6").replace(b"7e-06", b"8e-06"))
    with History(tmp_path / "h.sqlite") as history:
        assert history.add(tmp_path / "r1") is Added.CHANGED
        assert history.runs() == (before,)
        assert history.add(tmp_path / "r1", replace=True) is Added.REPLACED
        (run,) = history.runs()
    assert run.cases[DECODE].figures["kl_mean_nats"] == 8e-6


def test_an_interrupted_run(tmp_path):
    """It is marked; where it has gone on since, that is no change of what was added."""
    whole, cut = made(1, a_record(), a_record(check="b")), made(1, a_record(), complete=False)
    (run,) = indexed(tmp_path, cut)
    assert run.interrupted
    (tmp_path / "r1" / "records.jsonl").unlink()
    (tmp_path / "r1").rmdir()
    whole.write(tmp_path / "r1")
    with History(tmp_path / "h.sqlite") as history:
        assert history.add(tmp_path / "r1") is Added.WENT_ON
        (run,) = history.runs()
    assert not run.interrupted
    assert run.cases[DECODE].outcomes == {"passed": 2}


def test_a_run_that_moved(tmp_path):
    """Its new folder is kept; a copy beside it changes nothing. Database and runs can move together."""
    indexed(tmp_path, made(1))
    made(1).write(tmp_path / "copy")
    with History(tmp_path / "h.sqlite") as history:
        assert history.add(tmp_path / "copy") is Added.KNOWN
        (tmp_path / "r1").rename(tmp_path / "elsewhere")
        assert history.add(tmp_path / "elsewhere") is Added.MOVED
        assert history.runs()[0].folder == tmp_path / "elsewhere"
    away = tmp_path.rename(tmp_path.with_name(tmp_path.name + "-away"))
    with History(away / "h.sqlite") as history:
        assert history.runs()[0].folder == away / "elsewhere"


def test_a_run_that_cannot_be_trusted(tmp_path, monkeypatch, capsys):
    """File and line are named, nothing of it is added, and the others are."""
    made(1).write(tmp_path / "good")
    made(2, a_record(), mangle=lambda text: text.replace(b"parity", b"p\xff", 1)).write(tmp_path / "bad")
    db = tmp_path / "h.sqlite"
    with History(db) as history, pytest.raises(RecordsError, match=r"records\.jsonl:2"):
        history.add(tmp_path / "bad")
    code = history_command(monkeypatch, "add", tmp_path / "gone", tmp_path / "bad", tmp_path / "good", "--db", db)
    said = capsys.readouterr()
    assert code == 1
    assert "bad/records.jsonl:2" in said.err
    assert "gone" in said.err
    assert "good: added" in said.out
    with History(db) as history:
        assert [run.id for run in history.runs()] == ["r1"]


def test_databases_that_are_not_ours(tmp_path):
    """Text, another program's database, and a later version are refused, with what to do; none is changed."""
    (tmp_path / "text").write_text("no database, but long enough to be looked at as one " * 20)
    with sqlite3.connect(tmp_path / "other") as other:
        other.execute("CREATE TABLE run (id)")
    other.close()
    indexed(tmp_path, made(1))
    with sqlite3.connect(tmp_path / "h.sqlite") as later:
        later.execute(f"PRAGMA user_version = {VERSION + 1}")
    later.close()
    for name, says in [
        ("text", "move it away"),
        ("other", "another program's"),
        ("h.sqlite", f"version {VERSION + 1}"),
    ]:
        before = (tmp_path / name).read_bytes()
        with pytest.raises(HistoryError, match=says):
            History(tmp_path / name)
        assert (tmp_path / name).read_bytes() == before
    with pytest.raises(HistoryError, match="cannot be opened"):
        History(tmp_path / "no" / "such" / "folder")


def test_many_processes_at_once(tmp_path):
    """Processes that make the database and add the same runs together end with each run once."""
    names = [f"r{number:02}" for number in range(20)]
    for number, name in enumerate(names):
        made(number, run={"id": name}).write(tmp_path / name)
    text = """
import sys, time
from pathlib import Path
from reports.history import History
start, db, *runs = map(Path, sys.argv[1:])
while not start.exists():
    time.sleep(0.001)
for run in runs:
    with History(db) as history:
        history.add(run)
"""
    folders = [str(tmp_path / name) for name in names]
    command = [sys.executable, "-c", text, str(tmp_path / "start"), str(tmp_path / "h.sqlite")]
    adding = [subprocess.Popen([*command, *folders], cwd=ROOT) for _ in range(4)]
    time.sleep(1)  # so that all of them wait for the start
    (tmp_path / "start").touch()
    assert [process.wait(120) for process in adding] == [0] * 4
    with History(tmp_path / "h.sqlite") as history:
        assert [run.id for run in history.runs()] == names


def test_a_writer_has_looked_at_what_stays_so(tmp_path):
    """From its first look on no other process can write: what it decides on cannot change under it."""
    with History(tmp_path / "h.sqlite") as history, history._writing():
        other = sqlite3.connect(tmp_path / "h.sqlite", timeout=0, isolation_level=None)
        with pytest.raises(sqlite3.OperationalError, match="locked"):
            other.execute("BEGIN IMMEDIATE")
        other.close()


def test_a_run_is_added_whole_or_not_at_all(tmp_path, monkeypatch):
    """An error in the middle leaves nothing behind."""
    made(1).write(tmp_path / "r1")
    with History(tmp_path / "h.sqlite") as history:
        monkeypatch.setattr("reports.history.summarise", lambda _: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            history.add(tmp_path / "r1")
        assert history.runs() == ()


def test_the_first_run_after_a_change(tmp_path):
    """The change is marked where it began, not after; noise is not marked; an interrupted run is passed over."""
    slow = {"predicted": {"predicted_ms": 0.06}, "compiled": {"compile_seconds": 99.0}, "bmodel_sha256": "b2"}
    (line,) = lines_of(
        indexed(
            tmp_path,
            made(1, a_record(), a_record(PREFILL)),
            made(2, a_record(compiled={"compile_seconds": 9.0}), a_record(PREFILL)),
            made(3, a_record(predicted={"predicted_ms": 1.0}), complete=False),
            made(4, a_record(**slow), run={"toolchain": {"version": "1.31.0"}}),
            made(5, a_record(**slow), run={"toolchain": {"version": "1.31.0"}}),
        )
    )
    changes = [{name: [one.what for one in found] for name, found in step.cases.items()} for step in line.steps]
    assert changes == [{}, {}, {}, {DECODE: ["bmodel", "predicted_ms"], PREFILL: ["case"]}, {}]
    assert [[one.what for one in step.origins] for step in line.steps] == [[], [], [], ["toolchain.version"], []]
    assert values(line, DECODE, "predicted_ms") == [0.0549, 0.0549, None, 0.06, 0.06]


def test_lines_are_of_one_checkpoint_and_target(tmp_path):
    """Another checkpoint, or a board, is no change but another line."""
    runs = indexed(
        tmp_path,
        made(1),
        made(2, run={"target": "0"}),
        made(3, run={"checkpoint": {"sha256": "other"}}),
        made(4),
    )
    lines = lines_of(runs)
    assert [[step.run.id for step in line.steps] for line in lines] == [["r1", "r4"], ["r3"], ["r2"]]
    assert not any(step.cases for line in lines for step in line.steps)


class Links(HTMLParser):
    """What a page links to, and whether it loads anything."""

    def __init__(self, text):
        super().__init__()
        self.links, self.dots, self.loads = [], 0, []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        """Note a link, a mark, or anything that is not in the page itself."""
        found = dict(attrs)
        if tag == "a":
            self.links.append(found["href"])
        self.dots += tag == "circle" and found.get("class") != "only"
        self.loads += [value for name, value in attrs if name == "src" or (tag == "link" and name == "href")]


def test_page(tmp_path, monkeypatch, capsys):
    """Links to runs that are there, marks where a value changed, says what was interrupted, loads nothing."""
    runs = indexed(
        tmp_path,
        made(1, a_record(), run={"checkpoint": {"name": "<b>x</b>"}}),
        made(2, a_record(predicted={"predicted_ms": 0.06}), run={"checkpoint": {"name": "<b>x</b>"}}),
        made(3, a_record(), run={"checkpoint": {"name": "<b>x</b>"}}, complete=False),
    )
    write_history(runs, tmp_path / "index.html", {"r2": "night <2>"})
    text = (tmp_path / "index.html").read_text()
    page = Links(text)
    assert page.links == ["#r3", "r3/records.jsonl", "r2/records.jsonl", "r1/records.jsonl"]
    assert (page.dots, page.loads) == (1, [])
    assert text.count(">interrupted<") == 2
    assert "1 passed" in text.partition("<table>")[0]
    assert html.escape("<b>x</b>") in text
    assert "<b>x</b>" not in text
    assert "night &lt;2&gt;" in text
    assert "predicted_ms 0.0549 → 0.06" in text

    (tmp_path / "h.sqlite").rename(tmp_path / "history.sqlite")
    (tmp_path / "r1" / "records.jsonl").unlink()
    assert history_command(monkeypatch, "page", tmp_path) == 0
    assert Links((tmp_path / "index.html").read_text()).links == ["#r3", "r3/records.jsonl", "r2/records.jsonl"]
    assert "(removed)" in (tmp_path / "index.html").read_text()
    assert history_command(monkeypatch, "show", "--db", tmp_path / "history.sqlite") == 0
    assert "interrupted" in capsys.readouterr().out
    assert not list(tmp_path.glob(".index*"))


def test_a_value_that_is_not_finite_is_shown(tmp_path):
    """A NaN at the end is not hidden behind the last number."""
    write_history(
        indexed(tmp_path, made(1), made(2, a_record(metrics={"kl_mean_nats": None}))), tmp_path / "index.html"
    )
    text = (tmp_path / "index.html").read_text()
    assert "kl_mean_nats 7e-06 → not finite" in text
    assert '<td class="curve">not finite' in text


def test_an_empty_history(tmp_path, monkeypatch):
    """A page without runs says how to add one; a database that is not there is not made by looking."""
    write_history((), tmp_path / "index.html")
    assert "rwkv-tpu history add" in (tmp_path / "index.html").read_text()
    assert history_command(monkeypatch, "show", "--db", tmp_path / "none") != 0
    assert not (tmp_path / "none").exists()
