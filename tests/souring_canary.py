"""A pytest plugin that spoils the canary's known answer after each case: as a board that falls sick at the end."""

import json

from harness.run import RUN


def pytest_runtest_teardown(item):
    """Put another hash in place of each known one."""
    file = item.config.stash[RUN].place.state_folder / "canary.json"
    known = {key: entry | {"sha256": "0" * 64} for key, entry in json.loads(file.read_text()).items()}
    file.write_text(json.dumps(known))
