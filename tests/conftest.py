"""Fixtures that several test files share."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from compile.compiler import Bmodel, Job, compile_graph
from compile.graphs.model import Rwkv7
from compile.release import DEFAULT_RELEASE
from compile.spec import GraphKind, GraphSpec, Quantization
from compile.toolchain import Toolchain, ToolchainError, find
from harness.checkpoints import Model, open_model
from harness.paths import cache_folder

ROOT = Path(__file__).parent.parent


def pytest_configure() -> None:
    """Hear Ctrl-C, which some tests press and a shell has its background ignore; let property tests take their time."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("untimed")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of public checkpoints and texts beside the repository; without it tests skip, and in CI they fail."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        message = f"no data folder {folder}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return folder


@pytest.fixture(scope="session")
def toolchain() -> Toolchain:
    """The default release, as ``make`` installs it; without it tests skip, and in CI they fail."""
    try:
        return find(DEFAULT_RELEASE, cache_folder())
    except ToolchainError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


@dataclass(frozen=True)
class RwkvBmodels:
    """The model that ships, compiled."""

    model: Model
    libraries: Path
    decode: Path
    prefill: Path
    prefill_all: Path


@pytest.fixture(scope="session")
def rwkv_bmodels(toolchain: Toolchain) -> RwkvBmodels:
    """Decode, prefill of 16 and prefill_all of 16, compiled once and then found in the cache."""
    model = open_model(None)

    def compiled(kind: GraphKind, T: int = 1) -> Bmodel:
        job = Job(
            arrays=model.arrays,
            arrays_sha256=model.arrays_sha256,
            variant=Rwkv7,
            spec=GraphSpec(kind=kind, T=T),
            quantization=Quantization.F16,
            toolchain=toolchain,
        )
        return compile_graph(job, cache_folder())

    return RwkvBmodels(
        model=model,
        libraries=toolchain.libraries,
        decode=compiled(GraphKind.DECODE).path,
        prefill=compiled(GraphKind.PREFILL, 16).path,
        prefill_all=compiled(GraphKind.PREFILL_ALL, 16).path,
    )
