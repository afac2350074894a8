"""A pytest plugin that cuts the connection to a distant board in the middle of a case: as often as CUTS says."""

import os

from harness.targets.bmodel import BmodelTarget
from runtime.session import Session

_AFTER_CALLS = 4

_judge, _call = BmodelTarget.run, Session.run
_left = {"cuts": int(os.environ["CUTS"])}


def _run(self, tokens, state=None):
    calls = []

    def call_and_cut(session, *arguments):
        calls.append(1)
        if len(calls) == _AFTER_CALLS and _left["cuts"]:
            _left["cuts"] -= 1
            self._engine.connection._keeper.process.kill()
        return _call(session, *arguments)

    Session.run = call_and_cut
    try:
        return _judge(self, tokens, state)
    finally:
        Session.run = _call


BmodelTarget.run = _run
