"""Makes the pictures of docs/reports.md: ``.venv/bin/python tests/report_screenshots.py docs/images``."""

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))

from reports.html_page import write_html
from reports.lenient import load
from tests.report_runs import open_browser, release_run

SIZES = {"desktop": (1280, 1450), "phone": (390, 1300)}


def main(folder):
    """Show two made-up runs of a board at two widths in two themes."""
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
                picture = Image.open(io.BytesIO(page.screenshot())).convert("RGB")
                small = picture.quantize(255, method=Image.Quantize.FASTOCTREE)
                small.save(folder / f"report-{name}-{theme}.png", optimize=True)
                page.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
