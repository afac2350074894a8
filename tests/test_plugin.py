"""The options of ``pytest suites/``, as a run's first line tells them."""

from harness.plugin import chosen_options, pytest_addoption


class Parser:
    """In place of pytest's: remembers the names of options."""

    def __init__(self):
        self.names = []

    def getgroup(self, *_):
        """Everything is one group."""
        return self

    def addoption(self, name, **_):
        """Remember one."""
        self.names.append(name)


def test_a_run_tells_every_option():
    """But for where its folder is made or found, which is where it lies."""
    parser = Parser()
    pytest_addoption(parser)
    asked = []
    chosen_options(asked.append)
    assert sorted(asked) == sorted({*parser.names} - {"--runs", "--resume"})


def test_a_time_limit_is_told_in_seconds():
    """As every option, as it would be typed."""
    assert chosen_options({"--stage-timeout": 7200.0}.get) == {"stage-timeout": "7200.0"}
