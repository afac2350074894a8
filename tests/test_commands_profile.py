"""``rwkv-tpu profile`` and the ids that it takes, on a cache that holds the compile already."""

import json
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.compiler import Compiled, compile_graph
from compile.graphs.model import Rwkv7
from compile.options import Option, conflict, in_order
from compile.profile import read_profile
from compile.spec import GraphKind, GraphSpec, Quantization
from compile.toolchain import RECEIPT, Toolchain
from harness.cases import VARIANTS, Case, CaseError, parse_case
from harness.checkpoints import open_model
from harness.cli import main
from harness.jobs import job_of
from harness.rates import read_rates
from tests.a_receipt import a_receipt

PROFILE = Path(__file__).parent / "profiles" / "tiny" / "compiler_profile_0.txt"
EMPTY_SHA256 = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
RECEIPT_VALUE = a_receipt()


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache with a toolchain that has no tools, so that nothing can be compiled."""
    monkeypatch.setenv("RWKV_TPU_CACHE", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    root = tmp_path / "toolchains" / "1.30.2-0"
    root.mkdir(parents=True)
    (root / RECEIPT).write_bytes(msgspec.json.encode(RECEIPT_VALUE))
    return tmp_path


@pytest.fixture
def compiled(cache):
    """The decode graph of the default checkpoint as if compiled; its profile is of something tiny."""
    model = open_model(None)
    toolchain = Toolchain(cache / "toolchains" / "1.30.2-0", RECEIPT_VALUE)
    job = job_of(parse_case("decode-F16-chunk"), model, toolchain)
    folder = cache / "bmodels" / job.key
    folder.mkdir(parents=True)
    (folder / "model.bmodel").touch()
    for file in PROFILE.parent.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    result = Compiled(
        key=job.key,
        bmodel_sha256=EMPTY_SHA256,
        bmodel_bytes=0,
        profile=read_profile(PROFILE),
        costs={},
        toolchain=job.toolchain.identity,
        f32_operations=(),
    )
    (folder / "result.json").write_bytes(msgspec.json.encode(result))
    return folder


@pytest.fixture
def rwkv_tpu(monkeypatch, capsys):
    """Run the command; its output, its errors."""

    def run(*arguments, status=0):
        monkeypatch.setattr(sys, "argv", ["rwkv-tpu", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            main()
        out, errors = capsys.readouterr()
        assert (end.value.code or 0) == status, errors
        return out, errors

    return run


@pytest.mark.usefixtures("compiled")
def test_a_case(rwkv_tpu, tmp_path):
    """A case in the cache is shown without a compile: figures, the floor, what is dearest, and the page."""
    out, _ = rwkv_tpu("profile", "decode-F16-chunk", "--html", tmp_path / "t.html", "--top", 3)
    cycles = read_profile(PROFILE).predicted_cycles
    assert "predicted, no measurement" in out
    assert "decode-F16-chunk of tiny, TPU-MLIR 1.30.2" in out
    assert f"{cycles / 1e6:.4f} ms" in out
    assert f"at {read_rates()['1.30.2'].best.bytes_per_ns:.2f} GB/s" in out
    assert "share of the floor's speed reached" in out
    assert "more: --top N" in out
    assert "decode-F16-chunk" in (tmp_path / "t.html").read_text()


@pytest.mark.usefixtures("compiled")
def test_a_case_against_a_file(rwkv_tpu, tmp_path):
    """Both stand side by side; only the case has a floor, and the text says why."""
    out, _ = rwkv_tpu("profile", "decode-F16-chunk", "--against-file", PROFILE, "--trace", tmp_path / "t.json")
    assert "tiny_bm1684x_f16 in tiny" in out
    assert "a --file does not tell its model" in out
    names = [e["args"]["name"] for e in json.loads((tmp_path / "t.json").read_text())["traceEvents"] if e["ph"] == "M"]
    assert sum(name.startswith("predicted: ") for name in names) == 2


def test_a_file(rwkv_tpu):
    """A file needs no toolchain, no checkpoint and no cache."""
    out, _ = rwkv_tpu("profile", "--file", PROFILE)
    assert "MatMul" in out
    assert "floor" not in out.partition("No floor")[0]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--file", "nowhere.txt"], 1, "nowhere.txt: no such file"),
        (["decode-F16"], 2, "no case 'decode-F16': three parts"),
        ([""], 2, "no case '': three parts"),
        (["prefill_0-F16-chunk"], 2, "decode takes 1, the others 2 to 4,096"),
        (["prefill_4097-F16-chunk"], 2, "decode takes 1, the others 2 to 4,096"),
        ([f"prefill_{'9' * 5000}-F16-chunk"], 2, "no case"),
        (["decode-F16-chunk+[/x]"], 2, "no option '[/x]'"),
        (["decode-F16-chunk+no_topo_sort+topo_sort"], 2, "topo_sort takes away what no_topo_sort adds"),
        (["decode-F16-chunk", "--against", "x"], 2, "no case 'x'"),
        (["decode-F16-chunk", "--against", ""], 2, "no case ''"),
        (["decode-F16-chunk", "--html", "nowhere/t.html"], 2, "but there is no folder nowhere"),
        (["decode-F16-chunk", "--trace", "."], 2, "but is a folder"),
        (["decode-F16-chunk", "--stage-timeout", "0.5"], 2, "--stage-timeout"),
        (["decode-F16-chunk", "--checkpoint", "nowhere.pth"], 1, "nowhere.pth: cannot be read"),
        (["decode-F16-chunk", "--file", "p.txt"], 2, "and not both"),
        (["--against", "decode-F16-chunk"], 2, "name a CASE"),
        (["decode-F16-chunk", "--against", "decode-F16-chunk", "--against-file", "p.txt"], 2, "exclude each other"),
        (["decode-F16-chunk", "--size", "3B"], 2, "0.1B"),
        (["decode-F16-chunk", "--toolchain", "9.9"], 1, "rwkv-tpu toolchain install 9.9"),
        (["decode-W4F16-chunk"], 1, "has no tool 'model_transform'"),
    ],
)
@pytest.mark.usefixtures("compiled")
def test_mistakes(rwkv_tpu, arguments, status, message):
    """What cannot be met is said in a sentence; nothing is printed before."""
    _, errors = rwkv_tpu("profile", *arguments, status=status)
    assert message in " ".join(errors.replace("│", "").split())
    assert "Traceback" not in errors


@pytest.mark.usefixtures("compiled")
def test_a_graph_that_refuses(rwkv_tpu, monkeypatch):
    """A length that a variant cannot be written for is a mistake of the command line, told in the graph's words."""

    class Refuses(Rwkv7):
        def __init__(self, *_, T, **__):
            raise ValueError(f"{T} tokens, but should be a multiple of 16")

    monkeypatch.setitem(VARIANTS, "refuses", Refuses)
    _, errors = rwkv_tpu("profile", "prefill_17-F16-refuses", status=2)
    assert "export of prefill_17 F16" in errors
    assert "17 tokens, but should be a multiple of 16" in errors


@pytest.mark.usefixtures("compiled")
@pytest.mark.parametrize("typed", [[], ["--stage-timeout", "7"]])
def test_the_time_limit(rwkv_tpu, monkeypatch, typed):
    """The limit that is asked for, or an hour, is that of the stages, and of the sweep's products."""
    limits = []

    def swept(*_, timeout_s, **__):
        limits.append(timeout_s)
        return read_rates()["1.30.2"].products

    def found(job, cache, *, say, timeout_s):
        limits.append(timeout_s)
        return compile_graph(job, cache, say=say)

    monkeypatch.setattr("harness.commands.profile.sweep", swept)
    monkeypatch.setattr("harness.commands.profile.keep_rates", lambda *_: read_rates()["1.30.2"])
    monkeypatch.setattr("harness.profiles.compile_graph", found)
    rwkv_tpu("profile", "decode-F16-chunk", *typed)
    rwkv_tpu("profile", "--sweep", *typed)
    assert limits == [7.0 if typed else 3600.0] * 2


CASES = st.builds(
    Case,
    graph=st.one_of(
        st.just(GraphSpec(kind=GraphKind.DECODE)),
        st.builds(GraphSpec, kind=st.sampled_from([GraphKind.PREFILL, GraphKind.PREFILL_ALL]), T=st.integers(2, 4096)),
    ),
    quantization=st.sampled_from(Quantization),
    variant=st.sampled_from(sorted(VARIANTS)),
    blocks=st.booleans(),
    options=st.sets(st.sampled_from(Option)).filter(lambda options: not conflict(tuple(options))).map(in_order),
)


@given(CASES)
def test_ids(case):
    """Every case is found by its id."""
    assert parse_case(case.id) == case


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "three parts"),
        ("decode-F16", "three parts"),
        ("decode_1-F16-chunk", "it is written 'decode-F16-chunk'"),
        ("prefill_016-F16-chunk", "it is written 'prefill_16-F16-chunk'"),
        ("prefill-F16-chunk", "'prefill' is none of"),
        ("prefill_x-F16-chunk", "'prefill_x' is none of"),
        ("prefill_²-F16-chunk", "'prefill_²' is none of"),
        ("prefill_1-F16-chunk", "the others 2 to 4,096"),
        ("decode-F17-chunk", "'F17' is none of F32, F16"),
        ("decode-F16-chunks", "'chunks' is none of chunk"),
        ("decode-F16-chunk+", "no option ''"),
        ("decode-F16-chunk+opt9", "no option 'opt9'"),
        ("decode-F16-chunk+opt1+blocks", "no option 'blocks'"),
        ("decode-F16-chunk+opt1+opt1", "stands there twice"),
        ("decode-F16-chunk+quant_output+opt1", r"it is written 'decode-F16-chunk\+opt1\+quant_output'"),
    ],
)
def test_wrong_ids(text, message):
    """A text that is no id is told which part is wrong."""
    with pytest.raises(CaseError, match=message):
        parse_case(text)


@given(st.text(alphabet="decoprfil_all0123456789-F16chunk+t", max_size=30))
def test_any_text(text):
    """Whatever is typed is a case whose id it is, or is refused."""
    with suppress(CaseError):
        assert parse_case(text).id == text
