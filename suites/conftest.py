"""Turns ``pytest suites/`` into a recorded run; see :mod:`harness.suite`."""

import pytest

from harness import fixtures
from harness.suite import SuitePlugin


def pytest_configure(config: pytest.Config) -> None:
    """Register what the suites ask for."""
    config.addinivalue_line("markers", "graphs(*kinds): the kinds of graph whose cases a test is given")
    if not config.option.help:
        config.pluginmanager.register(SuitePlugin(config))
        config.pluginmanager.register(fixtures)
