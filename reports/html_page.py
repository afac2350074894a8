"""Records as one HTML page that opens from disk without a network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import jinja2

from reports.schema import Outcome

if TYPE_CHECKING:
    from reports.schema import RunFile

_TEMPLATE = Path(__file__).with_name("page.html.jinja")


def write_html(run: RunFile, path: Path) -> None:
    """Write the verdict, a row per record, and where it all comes from."""
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    template = environment.from_string(_TEMPLATE.read_text())
    failed, infra = (sum(r.outcome is outcome for r in run.records) for outcome in (Outcome.FAILED, Outcome.INFRA))
    metrics = sorted({name for record in run.records for name in record.metrics})
    path.write_text(
        template.render(run=run.run, end=run.end, records=run.records, failed=failed, infra=infra, metrics=metrics)
    )
