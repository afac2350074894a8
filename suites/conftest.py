"""Turns ``pytest suites/`` into a recorded run; see :mod:`harness.suite`."""

import pytest

from harness import fixtures
from harness.suite import SuitePlugin


def pytest_configure(config: pytest.Config) -> None:
    """Register what the suites ask for."""
    config.addinivalue_line(
        "markers",
        "graphs(*kinds, only=...): whose cases a test is given; of all chunk lengths the shortest or longest alone",
    )
    config.addinivalue_line("markers", "boards: a check that means nothing on the simulator, and is left out there")
    config.addinivalue_line("markers", "extra: a check that is made where the grid asks for it (also = ...)")
    if not config.option.help:
        config.pluginmanager.register(SuitePlugin(config))
        config.pluginmanager.register(fixtures)
