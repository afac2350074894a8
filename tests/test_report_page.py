"""The page of a report, in a real browser: quiet, quick to filter, and whole without a network."""

import json
import re

import pytest

from reports.html_page import write_html
from reports.lenient import load
from reports.libraries import libraries
from reports.schema import Expected, Outcome
from tests.gate_runs import DECODE, PREFILL, MadeRun, a_record
from tests.report_runs import many_cases, open_browser, release_run

HOSTILE = "</script><script>window.hurt=1</script><img src=x onerror='window.hurt=1'>\"'<!--"
DESKTOP, PHONE = (1280, 900), (390, 844)


@pytest.fixture(scope="module")
def browser():
    """One Chromium for all tests."""
    with open_browser() as opened:
        yield opened


def write_page(folder, *runs):
    """The page of made-up runs, as a file."""
    for number, made in enumerate(runs):
        made.write(folder / "runs" / f"run-{number}")
    path = folder / "index.html"
    write_html(load([folder / "runs"]), path)
    return path


class Shown:
    """A page that is open, and what it complained about."""

    def __init__(self, browser, path, size=DESKTOP, theme="light", fragment=""):
        """Open it, and wait until its script has run."""
        self.page = browser.new_page(viewport=dict(zip(("width", "height"), size, strict=True)), color_scheme=theme)
        self.page.set_default_timeout(10_000)
        self.complaints = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self.asked(request.url, path))
        self.page.goto(path.as_uri() + fragment)
        self.page.wait_for_selector("html[data-ready]")

    def asked(self, url, path):
        """Anything but the page itself would be a network."""
        if not url.startswith((path.as_uri(), "data:", "blob:")):
            self.complaints.append(f"asked for {url}")

    def count(self):
        """The words beside the filter."""
        return self.page.inner_text("#count")

    def table(self):
        """Cases in the table, as shown."""
        return self.page.locator("#cases tbody tr a").all_inner_texts()

    def plots(self):
        """Wait until plots are drawn."""
        self.page.wait_for_selector("#plot-parity svg")

    def __enter__(self):
        """Return itself."""
        return self

    def __exit__(self, kind, *_):
        """Close the page; it must not have complained."""
        self.page.close()
        assert kind or not self.complaints, self.complaints


def data_of(path):
    """What the page's script works with."""
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text(), re.DOTALL)
    return json.loads(found[1])


def test_matrix(browser, tmp_path):
    """Rows of size and quantisation, columns of graph and chunk; a click opens the case with its figures."""
    with Shown(browser, write_page(tmp_path, release_run())) as shown:
        page = shown.page
        assert page.inner_text("h1") == "1 of 169 checks failed"
        assert page.locator("#grid thead th").all_inner_texts()[1:] == [
            "decode",
            *(f"{kind} {T}" for kind in ("prefill", "prefill_all") for T in (16, 32, 64)),
        ]
        assert page.locator("#grid tbody tr").count() == 8
        assert page.locator("#grid td.failed").count() == 1
        page.click("#grid td.failed a")
        assert page.inner_text("#case-title") == "prefill_32-F16-chunk"
        words = page.inner_text("dialog")
        assert "should be <= 1.0e-03" in words
        assert "pytest suites/ --grid release -k '[prefill_32-F16-chunk]'" in words
        headings = [heading.split("\n")[0] for heading in page.locator("dialog .kinds h3").all_inner_texts()]
        assert headings[:2] == ["Predicted by the compiler's cycle profile", "Compile"]
        assert set(headings[2:]) == {"Measured", "The simulator's own process", "Wall time of the check"}
        page.keyboard.press("Escape")
        assert page.locator("dialog[open]").count() == 0
        assert "#" not in page.url


def test_filters(browser, tmp_path):
    """Words and choices leave the same cases in the count, the table and the grid."""
    runs = release_run(), release_run(board=True, id="r1", started="2026-01-02T00:00:00+0000", size="other")
    with Shown(browser, write_page(tmp_path, *runs)) as shown:
        page = shown.page
        assert shown.count() == "114 cases"
        page.fill("#find", "w4f16 prefill_all")
        assert shown.count() == "12 of 114 cases"
        assert len(shown.table()) == 12
        assert page.locator("#grid td a").count() == 12
        assert {"W4F16" in case and "prefill_all" in case for case in shown.table()} == {True}
        page.select_option("#by-run", "1")
        assert shown.count() == "6 of 114 cases"
        page.fill("#find", "no such words")
        assert shown.count() == "0 of 114 cases"
        assert "No case matches" in page.inner_text("#cases tbody")
        page.click("#filters button[type=reset]")
        page.wait_for_function("document.getElementById('count').textContent === '114 cases'")
        page.select_option("#by-outcome", "expected-failure")
        assert shown.table() == ["prefill_all_64-BF16-chunk"] * 2
        page.select_option("#by-outcome", "")
        page.select_option("#by-graph", "decode")
        assert set(shown.table()) == {
            f"decode-{p}-chunk{o}" for p in ("F16", "BF16", "W8F16", "W4F16") for o in ("", "+opt1")
        }


def test_sorting(browser, tmp_path):
    """By any column, numbers as numbers: what is not finite is the worst."""
    records = [a_record(f"prefill_{n}-F16-chunk", metrics={"kl_worst_nats": n * 1e-4}) for n in (20, 100, 3)]
    records.append(a_record("prefill_7-F16-chunk", metrics={"kl_worst_nats": float("nan")}))
    with Shown(browser, write_page(tmp_path, MadeRun(tuple(records)))) as shown:
        heading = shown.page.locator("#cases thead tr:last-child th", has_text="KL worst")
        for direction, order in (("ascending", (3, 20, 100, 7)), ("descending", (7, 100, 20, 3))):
            heading.click()
            # The table is drawn a moment after the click.
            shown.page.wait_for_selector(f"#cases thead th[aria-sort={direction}]")
            first = f"document.querySelector('#cases tbody tr a').textContent === 'prefill_{order[0]}-F16-chunk'"
            shown.page.wait_for_function(first)
            assert shown.table() == [f"prefill_{n}-F16-chunk" for n in order]
        assert "not finite" in shown.page.inner_text("#cases tbody")


def test_link_to_a_case(browser, tmp_path):
    """A fragment opens its case, again after another one; one that names nothing opens nothing."""
    path = write_page(tmp_path, release_run())
    with Shown(browser, path, fragment=f"#r0%2F{DECODE}") as shown:
        assert shown.page.inner_text("#case-title") == DECODE
        shown.page.evaluate("location.hash = '#r0%2Fdecode-BF16-chunk'")
        shown.page.wait_for_function("document.getElementById('case-title').textContent === 'decode-BF16-chunk'")
    for nothing in ("#nothing", "#%E0%A4%A"):
        with Shown(browser, path, fragment=nothing) as shown:
            assert shown.page.locator("dialog[open]").count() == 0


def test_plots_keep_predicted_and_measured_apart(browser, tmp_path):
    """On a board there are two plots; of a simulator's run the measured one says that there is nothing."""
    with Shown(browser, write_page(tmp_path / "board", release_run(board=True))) as shown:
        shown.plots()
        assert "ms a token, predicted" in shown.page.inner_text("#plot-predicted")
        assert "ms a token, measured" in shown.page.inner_text("#plot-measured")
        assert shown.page.locator("#plot-measured svg .mark-symbol path").count() == 56
        shown.page.locator("#plot-predicted svg .mark-symbol path").first.click()
        assert shown.page.inner_text("#case-title") == DECODE
    with Shown(browser, write_page(tmp_path / "simulator", release_run())) as shown:
        shown.plots()
        assert "Nothing here was measured on a board" in shown.page.inner_text("#plot-measured")
        headings = shown.page.inner_text("#cases thead")
        assert "predicted" in headings
        assert "measured" not in headings


def test_choosing_by_lambada(browser, tmp_path):
    """Where a run has it, it can be plotted against speed, as a share or a perplexity, and has columns."""
    records = tuple(
        a_record(f"prefill_{n}-F16-chunk", metrics={"lambada_accuracy": 0.3 + n / 100, "lambada_perplexity": 90.0 - n})
        for n in (16, 32)
    )
    with Shown(browser, write_page(tmp_path / "with", MadeRun(records))) as shown:
        shown.plots()
        page = shown.page
        page.select_option("#distance", "lambada_accuracy")
        page.wait_for_function("document.querySelector('#plot-predicted')?.textContent.includes('share of words')")
        assert page.locator("#plot-predicted svg .mark-symbol path").count() == 2
        assert "high is better" in page.inner_text("#against-note")
        page.select_option("#distance", "lambada_perplexity")
        page.wait_for_function("document.querySelector('#plot-predicted')?.textContent.includes('perplexity')")
        assert "LAMBADA accuracy" in page.inner_text("#cases thead")
        assert "0.4600" in page.inner_text("#cases tbody")
    with Shown(browser, write_page(tmp_path / "without", MadeRun((a_record(),)))) as shown:
        assert "LAMBADA" not in shown.page.inner_text("#cases thead")
        assert "lambada_accuracy" not in shown.page.inner_html("#distance")


CURVE = {position: 1e-6 * 1.1**position for position in range(64)}


@pytest.mark.parametrize(("size", "theme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def test_divergence_by_position(browser, tmp_path, size, theme):
    """An address opens a case with a line for each check that has a curve; it breaks where that is not finite."""
    gap = CURVE | dict.fromkeys((20, 21, 40), float("nan"))
    records = (
        a_record(kl_by_position=gap),
        a_record(check="from_random_state", kl_by_position={15: 1e-5, 31: 0.0}),
        a_record(check="prefill_equals_decode"),
    )
    with Shown(browser, write_page(tmp_path, MadeRun(records)), size, theme, f"#r0%2F{DECODE}") as shown:
        page = shown.page
        page.wait_for_selector("#plot-curves svg")
        words = page.inner_text("dialog")
        assert "parity/from_zero_state: not finite at 3 of 64 positions, the first is 20." in words
        assert "What is below 1e-12 nats is drawn there." in words
        assert page.locator("dialog .legend span").all_inner_texts() == [
            "● parity/from_zero_state",
            "● parity/from_random_state",
        ]
        assert page.locator("#plot-curves svg .mark-symbol path").count() == 61 + 2
        lines = [line.get_attribute("d") for line in page.locator("#plot-curves svg .mark-line path").all()]
        assert [line.count("M") for line in lines] == [3, 1]
        assert page.evaluate("(e => e.scrollWidth <= e.clientWidth)(document.querySelector('dialog'))")
        point = page.locator("#plot-curves svg .mark-symbol path").nth(1)
        point.scroll_into_view_if_needed()
        point.hover(force=True)
        tooltip = page.locator("dialog #curve-tooltip.visible")
        assert "1.10e-6" in tooltip.inner_text()
        colour = tooltip.evaluate("e => getComputedStyle(e).color")
        assert (max(map(int, re.findall(r"\d+", colour))) > 128) == (theme == "dark")


def test_cases_with_and_without_curves(browser, tmp_path):
    """The plot is of the open case; one without a finite position says so, one without a curve has none."""
    records = (
        a_record(kl_by_position={0: 1e-5, 1: 2e-5}),
        a_record(PREFILL, kl_by_position={15: float("nan")}),
        a_record("prefill_32-F16-chunk"),
    )
    with Shown(browser, write_page(tmp_path, MadeRun(records)), fragment=f"#r0%2F{DECODE}") as shown:
        page = shown.page
        page.wait_for_selector("#plot-curves svg")
        page.evaluate(f"location.hash = '#r0%2F{PREFILL}'")
        page.wait_for_selector("#plot-curves.empty")
        assert "No position has a finite divergence." in page.inner_text("dialog")
        assert "not finite at 1 of 1 positions, the first is 15." in page.inner_text("dialog")
        page.evaluate("location.hash = '#r0%2Fprefill_32-F16-chunk'")
        page.wait_for_selector("#plot-curves", state="detached")
        assert "by position" not in page.inner_text("dialog")


def test_expected_failures(browser, tmp_path):
    """Reason, since when, and how old that was when the run began."""
    with Shown(browser, write_page(tmp_path, release_run())) as shown:
        words = shown.page.inner_text("#expected")
        for word in ("prefill_all_64-BF16-chunk", "the allocator aborts on chunks of 64", "2025-10-02", "91 days"):
            assert word in words


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_sizes_and_themes(browser, tmp_path, size, theme):
    """Nothing is wider than the window; the theme is the system's until it is switched."""
    path = write_page(tmp_path, release_run(board=True))
    with Shown(browser, path, size, theme) as shown:
        shown.plots()
        page = shown.page
        assert page.evaluate("document.documentElement.scrollWidth") <= size[0]

        def is_dark():
            return (
                sum(map(int, re.findall(r"\d+", page.evaluate("getComputedStyle(document.body).backgroundColor"))))
                < 200
            )

        assert is_dark() == (theme == "dark")
        other = {"light": "dark", "dark": "light"}[theme]
        page.select_option("#theme", other)
        assert is_dark() == (other == "dark")


def test_printing(browser, tmp_path):
    """On paper it is light, has no controls, and scrolls nowhere; the table has more than one page of rows."""
    with Shown(browser, write_page(tmp_path, release_run()), theme="dark") as shown:
        page = shown.page
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        page.emulate_media(media="print")
        assert not page.is_visible("#filters")
        assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert page.evaluate("getComputedStyle(document.querySelector('.tall')).overflow") == "visible"
        assert len(shown.table()) == 57
        page.set_viewport_size({"width": 1030, "height": 700})  # A4, landscape
        assert page.evaluate("document.documentElement.scrollWidth") <= 1030
        assert page.pdf().startswith(b"%PDF")


def test_interrupted_and_broken(browser, tmp_path):
    """Both are said before everything else, with file and line."""

    def mangle(text):
        lines = text.splitlines(keepends=True)
        return b"".join([*lines[:2], b"nonsense\n", *lines[2:]])

    path = write_page(tmp_path, MadeRun((a_record(), a_record(PREFILL)), complete=False, mangle=mangle))
    with Shown(browser, path) as shown:
        assert shown.page.inner_text("h1") == "Cannot be trusted: 1 fault in the records"
        assert "run-0/records.jsonl:3: " in shown.page.inner_text("#faults")
        assert "Interrupted: run r0 ended after 2 checks" in shown.page.inner_text(".notice.doubtful")


def test_empty(browser, tmp_path):
    """A run without a record has a page, which says so."""
    with Shown(browser, write_page(tmp_path, MadeRun(()))) as shown:
        assert shown.page.inner_text("h1") == "Nothing measured"
        assert shown.count() == "0 cases"


def test_hostile_text(browser, tmp_path):
    """Whatever stands in a record is shown as text, wherever it is shown, and does nothing."""
    expected = Expected(reason=HOSTILE, link="javascript:window.hurt=1", since=HOSTILE)
    words = {"suite": HOSTILE, "message": HOSTILE, "metrics": {HOSTILE: 1.0}, "expected": expected}
    words["kl_by_position"] = {0: 1e-5, 10**30: -1.0}
    records = tuple(a_record(HOSTILE + str(n), HOSTILE, outcome=outcome, **words) for n, outcome in enumerate(Outcome))
    run = {"id": HOSTILE, "checkpoint": {"name": HOSTILE}, "command": (HOSTILE,), "packages": {HOSTILE: HOSTILE}}
    with Shown(browser, write_page(tmp_path, MadeRun(records, run))) as shown:
        page = shown.page
        page.click("#cases tbody a >> nth=0")
        assert HOSTILE in page.inner_text("dialog")
        page.wait_for_selector("#plot-curves svg")
        page.locator("#plot-curves svg .mark-symbol path").first.hover(force=True)
        page.wait_for_timeout(600)
        assert page.evaluate("window.hurt") is None
        assert page.locator("img").count() == 0
        assert page.locator('a[href^="javascript"]').count() == 0


def test_the_library_is_made_once(tmp_path):
    """Pages are the same with what was kept; what was damaged is made again."""
    path = write_page(tmp_path, MadeRun((a_record(),)))
    page, cache = path.read_text(), tmp_path / "cache"
    for damage in ("", "cut", "spoilt"):
        for kept in cache.glob("*"):
            text = kept.read_text()
            kept.write_text({"": text, "cut": text[:-100], "spoilt": text.replace("e", "é", 1)}[damage])
        libraries.cache_clear()
        write_html(load([tmp_path / "runs"]), path, cache)
        assert path.read_text() == page
        assert [kept.suffix for kept in cache.iterdir()] == [".js"]


def test_size_of_a_release(tmp_path):
    """Runs of some 200 cases make a page under 3 MB."""
    runs = [release_run(seed=n, id=f"r{n}") for n in range(4)]
    path = write_page(tmp_path, *runs)
    assert len(data_of(path)["cases"]) >= 200
    assert path.stat().st_size < 3e6


def test_size_of_many_failures(tmp_path):
    """Long messages of thousands of failures are cut, and say so; one alone is whole."""
    long = "AssertionError: " + "x" * 5000
    records = tuple(
        a_record(f"prefill_{n}-F16-chunk", outcome=Outcome.FAILED, message=f"{n} {long}") for n in range(2, 4002)
    )
    path = write_page(tmp_path / "many", MadeRun(records))
    assert path.stat().st_size < 15e6
    assert "more characters in records.jsonl" in path.read_text()
    assert long in write_page(tmp_path / "one", MadeRun(records[:1])).read_text()


def test_ten_thousand_cases(browser, tmp_path):
    """Under 15 MB; the grid shows a part and says so; a filter finds the one."""
    path = write_page(tmp_path, many_cases(10_000))
    assert path.stat().st_size < 15e6
    with Shown(browser, path) as shown:
        assert shown.count() == "10,000 cases"
        assert "The first 40 of " in shown.page.inner_text("#grid-note")
        shown.page.fill("#find", "case 9700 is wrong")
        assert shown.count() == "1 of 10,000 cases"


# Of each point of a plot what it stands for, as the library keeps it with the mark.
POINTS = """id => [...document.querySelectorAll(`#${id} svg .mark-symbol path`)]
  .map(path => path.__data__.datum).map(({ at, x, y, case: name, number }) => [at, x, y ?? 0, name, number ?? 1])"""


def test_many_points_are_merged(browser, tmp_path):
    """At most 400 a plot: all are counted, the worst is there, so is one that stands alone, and the page says so."""
    made = many_cases(3_000)
    figures = {"kl_mean_nats": 1e-9, "kl_worst_nats": 1e-9, "decode_ms_at_0": 1e-3}
    alone = a_record("prefill_9999-F16-chunk", metrics=figures, predicted={"predicted_ms": 1e9})
    records = (*made.records, alone)
    with Shown(browser, write_page(tmp_path, MadeRun(records, {"target": "0"}))) as shown:
        shown.plots()
        drawn = 0
        for plot, all_points, axis, of in (
            ("plot-predicted", 3001, 2, "kl_mean_nats"),
            ("plot-measured", 3001, 2, "kl_mean_nats"),
            ("plot-parity", 6002, 1, "kl_worst_nats"),
        ):
            points = shown.page.evaluate(POINTS, plot)
            drawn += len(points)
            assert len(points) <= 400
            assert sum(point[-1] for point in points) == all_points
            assert max(point[axis] for point in points) == pytest.approx(max(r.metrics[of] for r in records), rel=1e-5)
            assert alone.case in [name for *_, name, number in points if number == 1]
            names = [name for *_, name, number in points if number > 1]
            assert names
            assert all(re.search(r", the worst of [\d,]+ close together$", name) for name in names)
        told = f"Plots draw {drawn:,} of 12,004 points: where several of one look are close together"
        assert told in shown.page.inner_text("#plot-note")
        shown.page.fill("#find", "prefill_9")
        shown.page.wait_for_function("document.getElementById('plot-note').textContent === ''")


def test_few_points_are_not_merged(browser, tmp_path):
    """Every one is drawn, and the page says nothing of merging."""
    with Shown(browser, write_page(tmp_path, release_run(board=True))) as shown:
        shown.plots()
        assert {point[-1] for point in shown.page.evaluate(POINTS, "plot-parity")} == {1}
        assert shown.page.inner_text("#plot-note") == ""


def test_points_that_have_no_place(browser, tmp_path):
    """A distance of 0 and one that is not finite are left out of the plots, and the note says how many."""
    records = (
        a_record(),
        a_record(PREFILL, metrics={"kl_mean_nats": 0.0, "kl_worst_nats": float("nan")}),
        a_record("prefill_32-F16-chunk", metrics={"kl_mean_nats": "absent"}),
    )
    with Shown(browser, write_page(tmp_path, MadeRun(records))) as shown:
        shown.plots()
        # The mean of 0 in both plots, the worst that is not finite in one; what was not told is not left out.
        words = "Plots leave out 2 points at 0, for which a logarithmic scale has no place, and 1 point not finite."
        assert shown.page.inner_text("#plot-note") == words
        shown.page.fill("#find", "decode")
        shown.page.wait_for_function("document.getElementById('plot-note').textContent === ''")


def test_expected_failures_are_told_in_full(browser, tmp_path):
    """How many the list leaves out, and ages that count from the run of the case, not from the first of the page."""

    def failing(cases, started):
        expected = Expected(reason="known", since="2026-01-01")
        records = [
            a_record(f"prefill_{n}-F16-chunk", outcome=Outcome.EXPECTED_FAILURE, expected=expected) for n in cases
        ]
        return MadeRun(tuple(records), {"id": started, "started": f"{started}T00:00:00+0000"})

    runs = failing([2], "2026-01-11"), failing(range(2, 504), "2026-02-10")
    with Shown(browser, write_page(tmp_path, *runs)) as shown:
        rows = [row.split("\t") for row in shown.page.inner_text("#expected").splitlines() if row.strip()]
        assert len(rows) == 501
        assert [row[4] for row in rows[:2]] == ["10 days", "40 days"]
        assert "3 more are not listed here" in rows[-1][0]
