"""The suites are imported here as well, outside a run of theirs."""


def pytest_configure(config):
    """Register the mark that the suites' own conftest registers for them."""
    config.addinivalue_line("markers", "graphs(*kinds): the kinds of graph whose cases a test is given")
    config.addinivalue_line("markers", "extra: as in the suites")
