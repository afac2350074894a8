"""A pytest plugin of ``pytest suites/``: bmodels are computed in torch, and nothing is compiled. ``-p torch_device``.

What it is told in the environment, it does to the run, tests and records counted from 0. KILL_AT: a test in which the
process is killed; CTRL_C_AT: one in which Ctrl-C is pressed; FULL_AT: a record of which the kernel takes a part alone.
"""

import os
import resource
import signal

import pytest

from compile.spec import GraphKind
from harness.records import RunWriter
from harness.run import SuiteRun
from reference.fast import Fast
from tests.detection.engine import TorchDevice, TorchEngine

_counted = {"tests": 0, "records": 0}


def _engine(self, check, *cases, model=None):
    checkpoint = (model or self.model).checkpoint
    return TorchDevice(TorchEngine, checkpoint.shape, dict.fromkeys(GraphKind, Fast(checkpoint))).engine(check, *cases)


SuiteRun.engine = _engine


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call():
    """Die or be interrupted in the middle of a test, behind its fixtures."""
    number = str(_counted["tests"])
    _counted["tests"] += 1
    if os.environ.get("KILL_AT") == number:
        os.kill(os.getpid(), signal.SIGKILL)
    if os.environ.get("CTRL_C_AT") == number:
        raise KeyboardInterrupt
    return (yield)


_add = RunWriter.add


def _add_to_full_disk(self, record):
    number = str(_counted["records"])
    _counted["records"] += 1
    if os.environ.get("FULL_AT") == number:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.path.stat().st_size + 100,) * 2)
    _add(self, record)


RunWriter.add = _add_to_full_disk
