"""A canary for the fake libsophon: its known answer is what the fake net computes."""

from compile.spec import Quantization
from harness.device.canary import Canary
from harness.device.place import place_of
from harness.limits import load_limits
from harness.targets.bmodel import BmodelTarget
from tests.fake_libsophon.build import FakeModel, write_bmodel


class FakeBmodel:
    """Enough of a compiled graph for whatever runs it."""

    def __init__(self, path, sha256="0" * 64):
        self.path = path
        self.result = type("Result", (), {"bmodel_sha256": sha256})


def fake_canary(board, folder):
    """A canary for *board*, its bmodel in *folder*."""
    path = write_bmodel(folder / "canary.bmodel", FakeModel().whole())
    tokens = list(range(16))
    with place_of(board).open([path]) as engine:
        want = BmodelTarget(engine, engine.nets[0].name).run(tokens)
    limits = load_limits()[0][Quantization.F16]
    return Canary(FakeBmodel(path), tokens, want, limits)
