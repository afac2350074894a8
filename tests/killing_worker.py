"""A pytest plugin that kills the worker in the middle of the first case, as a bmodel that crashes would."""

import os
import signal

from harness.targets.bmodel import BmodelTarget

_run = BmodelTarget.run


def _run_and_die(self, tokens, state=None):
    BmodelTarget.run = _run
    os.kill(self._engine._worker.pid, signal.SIGKILL)
    return _run(self, tokens, state)


BmodelTarget.run = _run_and_die
