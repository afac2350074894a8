"""What the suites ask for, as pytest fixtures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest
import torch

from compile.spec import Quantization
from harness.cases import Case, case_of, prefills_of
from harness.check import CHECK, Check
from harness.device.place import CMODEL
from harness.lambada import documents
from harness.lambada.pair import ON_BOARD, SIMULATED
from harness.lambada.protocol import to_text
from harness.limits import LimitsError, limits_for
from harness.ops.press import Press
from harness.run import RUN, SuiteRun
from harness.throughput.bench import Bench
from harness.throughput.plan import plan_for
from harness.throughput.sample import SampleFile
from reference.state import State
from runtime.libraries import Libraries
from tokenizer.codec import Codec

if TYPE_CHECKING:
    from collections.abc import Generator

    from harness.checkpoints import Model
    from harness.targets.base import StateArrays, Text
    from harness.targets.torch import ReferenceTarget


@pytest.fixture(scope="session")
def device(pytestconfig: pytest.Config) -> Generator[SuiteRun]:
    """Where bmodels are compiled and run."""
    run = pytestconfig.stash[RUN]
    yield run
    run.close()


@pytest.fixture(scope="session")
def model(pytestconfig: pytest.Config) -> Model:
    """The checkpoint under test."""
    return pytestconfig.stash[RUN].model


@pytest.fixture
def oracle(request: pytest.FixtureRequest) -> ReferenceTarget:
    """The reference, with the weights that the case's precision stands for."""
    case = case_of(request.node)
    if case is None:
        pytest.fail("an oracle belongs to a case, whose precision decides its weights")
    return request.config.stash[RUN].oracle(case.quantization, case.options)


@pytest.fixture
def full_precision(request: pytest.FixtureRequest) -> ReferenceTarget:
    """The reference with the checkpoint's own weights, whatever the case's precision makes of them."""
    return request.config.stash[RUN].oracle(Quantization.F32)


@dataclass(frozen=True)
class Hard:
    """A model with extremes planted, and what its bmodels are judged against."""

    model: Model
    oracle: ReferenceTarget


@pytest.fixture
def hard(request: pytest.FixtureRequest) -> Hard:
    """The checkpoint made harder (:mod:`harness.hard`), for the case's precision."""
    run, case = request.config.stash[RUN], case_of(request.node)
    if case is None:
        pytest.fail("a hard model belongs to a case, whose precision decides its oracle")
    if run.port is not None:
        pytest.skip("nobody else's port is made of a model of ours")
    return Hard(run.hard, run.oracle(case.quantization, case.options, run.hard))


@pytest.fixture
def prefills(request: pytest.FixtureRequest) -> list[Case]:
    """The grid's prefill cases that go with a decode case, the shortest chunks first."""
    grid, case = request.config.stash[RUN].grid, case_of(request.node)
    return [] if case is None else prefills_of(case, grid.cases)


@pytest.fixture(scope="session")
def random_state(model: Model) -> StateArrays:
    """A state that is not zero, for any graph to start from."""
    return State.random(model.checkpoint.shape, seed=0, dtype=torch.float32).arrays()


@pytest.fixture(scope="session")
def lambada_texts(pytestconfig: pytest.Config, model: Model) -> dict[str, Text]:
    """Documents of LAMBADA by their hashed ids, always the same: few on the simulator."""
    if model.codec is Codec.PLAIN:
        pytest.skip("plain ids have no text")
    try:
        every = documents.read(documents.find_data(pytestconfig.getoption("--lambada")))
    except documents.DataError as error:
        pytest.skip(str(error))
    count = SIMULATED if pytestconfig.stash[RUN].place.simulated else ON_BOARD
    return {one.id: to_text(one.text, model.codec) for one in documents.subset(every, count)}


@pytest.fixture
def check(request: pytest.FixtureRequest) -> Check:
    """What judges, and remembers for the record."""
    limits, case = request.config.stash[RUN].limits, case_of(request.node)
    try:
        check = Check(limits=None if case is None else limits_for(limits, case))
    except LimitsError as error:
        pytest.fail(str(error))
    request.node.stash[CHECK] = check
    return check


@pytest.fixture(scope="module")
def press(pytestconfig: pytest.Config) -> Generator[Press]:
    """What compiles operations and computes them; its processes last as long as a suite."""
    run = pytestconfig.stash[RUN]
    if run.place.label != CMODEL:
        pytest.skip("operations are judged on the simulator: --device cmodel")
    with Press(run.toolchain, Libraries.cmodel(run.toolchain.libraries)) as press:
        yield press


@pytest.fixture
def bench(request: pytest.FixtureRequest, check: Check) -> Bench:
    """What measures the case."""
    config, case = request.config, case_of(request.node)
    run = config.stash[RUN]
    if case is None or run.folder is None:
        pytest.fail("a bench measures a case of a run")
    plan = plan_for(
        simulated=run.place.simulated,
        longest=max(other.graph.T for other in run.grid.cases),
        depths=config.getoption("--depths"),
        repeats=config.getoption("--repeats"),
    )
    file = SampleFile(run.folder, target=run.place.label, simulated=run.place.simulated)
    return Bench(run, check, case, plan, file)
