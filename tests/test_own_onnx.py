"""Other people's ONNX: the example's layout, made by our loop graphs, judged in ONNX Runtime before any compiler."""

import re

import onnx
import pytest
import torch

from compile.spec import GraphKind, Quantization
from harness.cases import Narrowed
from harness.check import Check
from harness.checkpoints import DEFAULT, open_model
from harness.limits import load_limits
from harness.oracle import oracle_for
from harness.own.export import judge_export
from harness.own.io_map import MapError
from harness.own.options import Own
from harness.parity import judge_format
from harness.prompts import prompt
from harness.run import SuiteRun
from harness.targets.bmodel import BmodelTarget
from reference.state import State
from tests.example_port import T, write_onnx
from tests.test_io_map import EXAMPLE

LIMITS = load_limits()[0]
TABLE = "f32_operations.txt"
CHANGES = {
    "right": lambda text: text,
    "by names": lambda text: text.replace('order = "layers"', ""),
    "swapped": lambda text: re.sub(
        r"state[02]", lambda found: {"0": "state2", "2": "state0"}[found[0][-1]], text
    ).replace('order = "layers"', ""),
    "transposed": lambda text: text.replace("head value key", "head key value"),
}


@pytest.fixture(scope="module")
def port_files(tmp_path_factory):
    """The shipped model's ONNX files in the port's layout, beside their table and map."""
    return write_onnx(tmp_path_factory.mktemp("port"))


@pytest.fixture(scope="module")
def oracle():
    """The reference of the shipped model."""
    return oracle_for(open_model(None).checkpoint, Quantization.F32)


def opened(folder, files, change=CHANGES["right"]):
    """The port by the example's map, for T tokens, with a change."""
    text = EXAMPLE.read_text().replace("tokens = 16", f"tokens = {T}")
    (folder / "map.toml").write_text(change(text))
    return Own(onnx=files, io=folder / "map.toml").open(DEFAULT, None)


@pytest.mark.parametrize("change", ["right", "by names"])
def test_the_example_is_right(tmp_path, port_files, oracle, change):
    """Decode and prefill give the reference's numbers, tensors found by places or by names."""
    port = opened(tmp_path, port_files, CHANGES[change])
    assert [case.id for case in port.grid.cases] == ["decode-F16-bm1684x_port", "prefill_4-F16-bm1684x_port"]
    for case in port.grid.cases:
        judge_export(port, case, oracle, LIMITS)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("swapped", r"state_nmse=\S+ of att.shift, .*state_nmse=\S+ of ffn.shift"),
        (
            "transposed",
            r"^[^;]*; in ONNX(?:(?!att.shift|ffn.shift).)*state_nmse=\S+ of att.state(?:(?!att.shift|ffn.shift).)*$",
        ),
    ],
)
def test_a_wrong_map_is_named(tmp_path, port_files, oracle, change, words):
    """What sizes cannot tell, numbers do: the states that the map has wrong are those that are told."""
    port = opened(tmp_path, port_files, CHANGES[change])
    with pytest.raises(AssertionError, match=words) as caught:
        judge_export(port, port.grid.cases[0], oracle, LIMITS)
    assert "the port's ONNX itself, or its map, is wrong" in str(caught.value)


def test_a_wrong_graph_is_not_the_compilers_fault(tmp_path, port_files, oracle):
    """A bias that another number was written into, as a careless exporter might, is found before any compile."""
    model = onnx.load(port_files[0])
    weight = next(one for one in model.graph.initializer if one.name.endswith("w0"))
    array = onnx.numpy_helper.to_array(weight) + 0.5
    weight.CopyFrom(onnx.numpy_helper.from_array(array.astype("float32"), weight.name))
    onnx.save(model, tmp_path / "rwkv_forward_one.onnx")
    files = (tmp_path / "rwkv_forward_one.onnx", port_files[1])
    port = opened(tmp_path, files)
    with pytest.raises(AssertionError, match="before any compiler: from the zero state: state_nmse"):
        judge_export(port, port.grid.cases[0], oracle, LIMITS)
    judge_export(port, port.grid.cases[1], oracle, LIMITS)


def test_shapes_that_are_not_fixed(tmp_path, port_files):
    """The map names no length that such a file has."""
    model = onnx.load(port_files[0])
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_param = "seq"
    onnx.save(model, tmp_path / "rwkv_forward_one.onnx")
    with pytest.raises(MapError, match=r"expected fixed shapes in .*, found idx \[1, 'seq'\]"):
        opened(tmp_path, (tmp_path / "rwkv_forward_one.onnx", port_files[1]))


def test_what_is_compiled(tmp_path, port_files, toolchain):
    """The file itself, under the port's own name; another file or another table is another bmodel."""
    port = opened(tmp_path, port_files)
    jobs = [port.job(case, toolchain) for case in port.grid.cases]
    assert [job.spec.name for job in jobs] == ["rwkv_forward_one", "rwkv_forward_seq"]
    assert jobs[1].spec.kind is GraphKind.PREFILL
    assert jobs[0].key != jobs[1].key
    assert jobs[0].onnx.write(tmp_path / "model.onnx") == []
    assert (tmp_path / "model.onnx").read_bytes() == port_files[0].read_bytes()
    (tmp_path / "table.txt").write_text("a_Add F32\n")
    other = opened(tmp_path, port_files, lambda text: f'f32_operations = "table.txt"\n{text}')
    job = other.job(other.grid.cases[0], toolchain)
    assert job.onnx.f32_operations == ("a_Add",)
    assert job.key != jobs[0].key


def test_one_table_for_all_nets(tmp_path, port_files, toolchain):
    """Each net gets the operations that it has, and those that no file has, so that a wrong name is told."""
    table = (port_files[0].parent / TABLE).read_text()
    (tmp_path / TABLE).write_text(f"{table}misspelt_Add F32\n")
    port = opened(tmp_path, port_files, lambda text: f'f32_operations = "{TABLE}"\n{text}')
    one, seq = (port.job(case, toolchain).onnx.f32_operations for case in port.grid.cases)
    name = "blocks.0.att.recurrence.kept_{}_Mul"
    assert name.format(T - 1) in seq
    assert name.format(T - 1) not in one
    assert "embedded_LayerNormalization" in set(one) & set(seq)
    assert "misspelt_Add" in set(one) & set(seq)


def test_another_build(tmp_path, port_files):
    """It is the same grid, whose ids lists and baselines speak of, and another port."""
    port = opened(tmp_path, port_files)
    model = onnx.load(port_files[0])
    model.doc_string = "another build"
    onnx.save(model, tmp_path / "rwkv_forward_one.onnx")
    other = opened(tmp_path, (tmp_path / "rwkv_forward_one.onnx", port_files[1]))
    assert port.grid == other.grid
    assert port.identity["map_sha256"] == other.identity["map_sha256"]
    one, new = (each.identity["files_sha256"].split(", ") for each in (port, other))
    assert (one[0] != new[0], one[1]) == (True, new[1])


def test_a_port_in_4_bits_is_coded_as_a_whole(tmp_path, port_files, toolchain):
    """What our own graphs of many tokens keep in F16 is our affair: the reference codes every matrix of a port."""
    port = opened(tmp_path, port_files, lambda text: text.replace('precision = "F16"', 'precision = "W4F16"'))
    assert [port.job(case, toolchain).wide for case in port.grid.cases] == [False, False]


@pytest.mark.toolchain
def test_compiled_and_run(port_files, toolchain):
    """From the files to numbers on the simulator, the way that the suites go; the state keeps its float32."""
    run = SuiteRun(
        device="cmodel",
        libsophon=None,
        checkpoint=None,
        codec=None,
        grid="default",
        narrowed=Narrowed(),
        toolchain=toolchain.version,
        stage_timeout_s=600,
        say=print,
        own=Own(onnx=port_files, io=port_files[0].with_name("onnx.toml")),
    )
    case, check = run.grid.cases[0], Check(limits=run.limits[Quantization.F16])
    tokens = prompt(run.model, 2)
    start = State.random(run.model.checkpoint.shape, seed=0, dtype=torch.float32).arrays()
    want = run.oracle(Quantization.F16).run(tokens, start)
    try:
        engine = run.engine(check, case)
        got = BmodelTarget(engine, case.net).run(tokens, start)
        check.logits(want, got)
        check.state(want, got.state)
        judge_format(check, engine, case, got.state)
    finally:
        run.end()
    (bmodel,) = check.bmodels
    assert check.bmodel_sha256 == bmodel.result.bmodel_sha256
    assert "embedded_LayerNormalization" in bmodel.result.f32_operations
