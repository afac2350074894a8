"""The simulator, with its threads as we arrange them and as the libraries start them: speed, and the same bits."""

import os
import sys

import numpy as np
import pytest

from compile.compiler import Job, compile_graph
from compile.graphs.model import Rwkv7
from compile.release import DEFAULT_RELEASE
from compile.spec import GraphKind, GraphSpec, Quantization
from compile.toolchain import ToolchainError, find
from harness.checkpoints import open_model
from harness.paths import cache_folder
from runtime.engine import Engine
from runtime.libraries import Libraries
from runtime.session import Session

FASTER_ON_TWO_CORES = 5
STEPS = 10

# The worker as it is, except that it leaves the simulator's threads alone.
AS_IT_COMES = "from runtime import cmodel, worker; cmodel.calm_threads = lambda: None; worker.main()"


@pytest.fixture(scope="module")
def sessions():
    """Open the default synthetic checkpoint's decode net twice: ours, and as it comes. Whichever rests is stopped."""
    try:
        toolchain = find(DEFAULT_RELEASE, cache_folder())
    except ToolchainError as error:
        pytest.skip(str(error))
    model = open_model(None)
    job = Job(
        arrays=model.arrays,
        arrays_sha256=model.arrays_sha256,
        variant=Rwkv7,
        spec=GraphSpec(kind=GraphKind.DECODE, T=1),
        quantization=Quantization.F16,
        toolchain=toolchain,
    )
    bmodel = compile_graph(job, cache_folder()).path
    libraries = Libraries.cmodel(toolchain.libraries)
    with (
        Engine.open(libraries, [bmodel]) as ours,
        Engine.open(libraries, [bmodel], command=[sys.executable, "-c", AS_IT_COMES]) as theirs,
        Session(ours) as our_session,
        Session(theirs) as their_session,
    ):
        yield our_session, their_session


def test_decode_step(compare, sessions):
    """A step of a model of two layers; the launch alone is what differs."""
    ours, theirs = sessions
    for token in (5, 77):
        np.testing.assert_array_equal(ours.feed([token]), theirs.feed([token]))
    for one, other in zip(ours.get_state(), theirs.get_state(), strict=True):
        np.testing.assert_array_equal(one, other)
    ratio = compare(lambda: ours.feed([5]), lambda: theirs.feed([5]), rounds=STEPS)
    if len(os.sched_getaffinity(0)) == 2:  # the more cores, the less they starve each other
        assert ratio.value >= FASTER_ON_TWO_CORES, ratio
