"""Makes the pictures of docs/: ``.venv/bin/python tests/report_screenshots.py docs/images``."""

import io
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from harness.nightly.night import PAGE, spend
from reports.html_page import write_html
from reports.lenient import load
from reports.schema import Outcome
from tests.report_runs import open_browser, release_run
from tests.test_nightly import plan

SIZES = {"desktop": (1280, 1450), "phone": (390, 1300)}
NIGHTS = [("desktop", (1280, 900), "light"), ("desktop", (1280, 900), "dark"), ("phone", (390, 900), "dark")]
CASES = [("desktop", (1000, 760), "dark"), ("phone", (390, 900), "light")]


def main(folder):
    """Show two made-up runs of a board at two widths in two themes, and one of its cases."""
    with tempfile.TemporaryDirectory() as made, open_browser() as browser:
        common = {"board": True, "every_options": ("",)}
        release_run(id="20260102T020000Z-0", started="2026-01-02T02:00:00+0000", **common).write(Path(made) / "a")
        other = {"id": "20260103T020000Z-0", "started": "2026-01-03T02:00:00+0000", "size": "rwkv7-g1-0.4b"}
        release_run(seed=3, scale=2.9, **other, **common).write(Path(made) / "b")
        path = Path(made) / "index.html"
        write_html(load([Path(made)]), path)
        for name, (width, height) in SIZES.items():
            for theme in ("light", "dark"):
                page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
                page.goto(path.as_uri())
                page.wait_for_selector("#plot-parity svg")
                take(page, folder / f"report-{name}-{theme}.png")
                page.close()
        for name, (width, height), theme in CASES:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
            page.goto(f"{path.as_uri()}#20260102T020000Z-0%2Fdecode-F16-chunk")
            page.wait_for_selector("#plot-curves svg")
            page.eval_on_selector("dialog", "dialog => dialog.scrollTo(0, dialog.querySelector('.kinds').offsetTop)")
            take(page, folder / f"report-case-{name}-{theme}.png")
            page.close()
        path = a_nightly_folder(Path(made) / "nightly")
        for name, (width, height), theme in NIGHTS:
            page = browser.new_page(viewport={"width": width, "height": height}, color_scheme=theme)
            page.goto(path.as_uri())
            take(page, folder / f"nightly-{name}-{theme}.png")
            page.close()


def a_nightly_folder(folder):
    """Six nights on the simulator, of which one has a slower graph: return their page."""
    for number in range(6):
        run = {"id": f"2026010{number + 1}T020000Z-cmodel", "started": f"2026-01-0{number + 1}T02:00:00+0000"}
        slower = 1.04 if number == 3 else 1.0
        harness = {"version": "0.1.0", "commit": f"{number // 2 * 7 + 1:040x}"}
        made = release_run(scale=slower, every_options=("",), harness=harness, **run)
        # What fails on both sides is no baseline.
        records = tuple(record for record in made.records if record.outcome is not Outcome.FAILED)
        spend(plan(folder, replace(made, records=records), allow=["harness"]))
    return folder / PAGE


def take(page, path):
    """Take a picture, small enough to be kept."""
    picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
    picture.quantize(255, method=Image.Quantize.FASTOCTREE).save(path, optimize=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
