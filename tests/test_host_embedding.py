"""The embedding on the host as a declared axis: what is refused, what is fed, and the numbers of the one inside."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch

from compile.compiler import RefusedError
from compile.export import export
from compile.graphs.model import Rwkv7
from compile.half_state import Rwkv7HalfState
from compile.host_embedding import HOST_EMBEDDING, host_table
from compile.lowering import Dialect
from compile.options import Option
from compile.spec import Quantization
from compile.unfused import Rwkv7Unfused
from harness.cases import Narrowed, parse_case
from harness.check import Check
from harness.checkpoints import DEFAULT, open_model
from harness.device.place import open_place
from harness.embedding import embedding_for
from harness.jobs import compile_case, job_of, part_jobs
from harness.limits import limits_for, load_limits
from harness.oracle import oracle_for
from harness.own.export import judge_export
from harness.own.io_map import MapError
from harness.own.options import NOTHING, Own
from harness.parity import any_tokens, judge_from_random_state
from harness.paths import cache_folder
from harness.run import SuiteRun
from harness.targets.interpreter import open_interpreters
from harness.targets.ort import OnnxRuntime
from harness.tune import ParityJudge, changing
from harness.weights import weights_of_model
from reference.state import State
from reports.schema import Stage
from runtime.binding import Dtype
from runtime.engine import Engine
from runtime.faults import RuntimeFault
from runtime.nets import EmbeddingRows, to_floats
from runtime.session import Session
from tests.fake_libsophon.build import FakeModel, fake_board, worker_with, write_bmodel
from tests.test_graphs import ARRAYS, CHECKPOINT

PLAIN, HOST = parse_case("decode-F16-chunk"), parse_case("decode-F16-chunk+host_embedding")
FAKE = FakeModel(rows_dtype=Dtype.F32)
TOKENS = [3, 319, 0, 250, 7, 7]

every_graph = pytest.mark.parametrize("graph", HOST_EMBEDDING, ids=lambda graph: graph.__name__)


# ---- the graph


def test_the_case_decides():
    """The decode graph of a prefill takes rows where its prefill does; caps and oracle are the precision's own."""
    assert parse_case("prefill_16-F16-chunk+host_embedding").decode == HOST
    assert HOST != PLAIN
    every, _ = load_limits()
    assert limits_for(every, HOST) is every[Quantization.F16]


@every_graph
def test_the_same_numbers_to_the_bit(graph):
    """In ONNX Runtime, from a state that is not zero, whole chunks and a tail."""
    start = State.random(CHECKPOINT.shape, seed=0, dtype=torch.float32).arrays()
    tokens = any_tokens(CHECKPOINT.shape.n_vocab, 10)
    inside, host = (OnnxRuntime(ARRAYS, kind, (4,)).run(tokens, start) for kind in (graph, HOST_EMBEDDING[graph]))
    assert host.logits.tobytes() == inside.logits.tobytes()
    assert [array.tobytes() for array in host.state] == [array.tobytes() for array in inside.state]


@every_graph
def test_no_table_inside(graph, tmp_path):
    """Nothing of the graph has a row for each token id; it takes rows of the host's table by their own name."""
    shapes = {}
    for kind in (graph, HOST_EMBEDDING[graph]):
        built = kind(ARRAYS, T=4, every_position=False)
        shapes[kind] = {tuple(one.shape) for one in built.parameters()}
        assert next(iter(built.example_inputs())) == ("token" if kind is graph else "embedding")
    table = ARRAYS["emb.weight"].shape
    assert table in shapes[graph]
    assert table not in shapes[HOST_EMBEDDING[graph]]
    built = HOST_EMBEDDING[graph](ARRAYS, T=4, every_position=False)
    f32 = export(built, tmp_path / "model.onnx")
    assert built.example_inputs()["embedding"].shape == (1, 4, ARRAYS["emb.weight"].shape[1])
    assert f32 == export(graph(ARRAYS, T=4, every_position=False), tmp_path / "inside.onnx")


def test_the_table_has_its_layer_norm():
    """Each row is what the reference's first layer begins with, rounded to float32 once."""
    rows, ln = CHECKPOINT.tensors["emb.weight"].double(), "blocks.0.ln0."
    weight, bias = (CHECKPOINT.tensors[ln + part].double() for part in ("weight", "bias"))
    want = torch.nn.functional.layer_norm(rows, weight.shape, weight, bias, 1e-5)
    np.testing.assert_array_equal(host_table(ARRAYS), want.float().numpy())


# ---- what is refused


@pytest.mark.toolchain
def test_another_variant_is_refused(toolchain):
    """The loop's layer norm of the embedding is in its graph."""
    with pytest.raises(RefusedError, match="variant loop is not written with the embedding on the host, only chunk is"):
        job_of(parse_case("decode-F16-loop+host_embedding"), open_model(None), toolchain)


@pytest.mark.toolchain
def test_no_parts(toolchain):
    """There the embedding is a net of its own, to be left out by whoever loads them."""
    with pytest.raises(RefusedError, match="host_embedding is of a whole graph"):
        part_jobs(parse_case("decode-F16-chunk+blocks+host_embedding"), weights_of_model(open_model(None)), toolchain)


@pytest.mark.toolchain
@pytest.mark.parametrize(
    ("case", "graph"),
    [
        ("decode-F16-chunk+host_embedding", Rwkv7),
        ("decode-W8BF16-chunk+host_embedding", Rwkv7Unfused),
        ("decode-W8BF16-fused+host_embedding", Rwkv7),
        ("decode-F16-chunk+f16_state+host_embedding", Rwkv7HalfState),
    ],
)
def test_what_goes_together(toolchain, case, graph):
    """Every precision, and states in float16: the graph is otherwise the one that the case has without."""
    assert job_of(parse_case(case), open_model(None), toolchain).variant is HOST_EMBEDDING[graph]


# ---- the runtime


@pytest.fixture(scope="module")
def libsophon(tmp_path_factory):
    """The fake libraries, as those of a board."""
    return fake_board(tmp_path_factory.mktemp("libsophon"))


def table(width=FAKE.C):
    """For each id what the fake nets take for the same token: the first and the last number of its row add up to it."""
    rows = np.full((FAKE.vocabulary, width), 77, np.float32)
    ids = np.arange(FAKE.vocabulary) % 251
    rows[:, 0], rows[:, -1] = ids // 2, ids - ids // 2
    return rows


def made(tmp_path, model=FAKE):
    """A file with nets for 1 and 4 tokens."""
    return write_bmodel(tmp_path / "a.bmodel", model.whole(), model.whole(4, every_position=True))


@pytest.mark.parametrize("dtype", [Dtype.F32, Dtype.F16, Dtype.BF16], ids=lambda dtype: dtype.name)
def test_rows_are_fed(libsophon, tmp_path, dtype):
    """A net that takes rows, in whichever type, gives what one gives that takes tokens."""
    model = dataclasses.replace(FAKE, rows_dtype=dtype)
    with Engine.open(libsophon, [made(tmp_path, FakeModel())]) as engine, Session(engine) as session:
        want = session.feed(TOKENS), session.get_state()
    with Engine.open(libsophon, [made(tmp_path, model)], embedding=table()) as engine, Session(engine) as session:
        assert [net.rows for net in engine.nets] == [EmbeddingRows(FAKE.C, dtype)] * 2
        assert [net.tokens for net in engine.nets] == [1, 4]
        np.testing.assert_array_equal(session.feed(TOKENS), want[0])
        for got, array in zip(session.get_state(), want[1], strict=True):
            np.testing.assert_array_equal(got, array)


def test_nets_of_both_kinds_share_a_state(libsophon, tmp_path):
    """A prompt through one that takes rows, its tail through one that takes tokens."""
    both = write_bmodel(tmp_path / "both.bmodel", FakeModel().whole(), FAKE.whole(4))
    with Engine.open(libsophon, [made(tmp_path, FakeModel())]) as engine, Session(engine) as session:
        want = session.feed(TOKENS)
    with Engine.open(libsophon, [both], embedding=table()) as engine, Session(engine) as session:
        np.testing.assert_array_equal(session.feed(TOKENS), want)


def test_not_a_number_is_fed_as_it_is(libsophon, tmp_path, monkeypatch):
    """What a row holds goes to the device, NaN and infinity too: to hide it is nobody's business."""
    rows, sent = table(), []
    rows[5, 2], rows[6, 3] = np.nan, np.inf
    with Engine.open(libsophon, [made(tmp_path)], embedding=rows) as engine, Session(engine) as session:
        request = engine.request

        def recorded(doing, payloads=(), **fields):
            sent.extend(payloads)
            return request(doing, payloads, **fields)

        monkeypatch.setattr(engine, "request", recorded)
        for token in (5, 6):
            session.run("net_1", [token])
    for data, row in zip(sent, rows[5:7], strict=True):
        np.testing.assert_array_equal(to_floats(data, Dtype.F32), row)


@pytest.mark.parametrize("wrong", [-1, 320, 2**31])
def test_ids_outside_the_vocabulary_feed_nothing(libsophon, tmp_path, wrong):
    """The table has no row for them, nor the last one for -1."""
    log = tmp_path / "log"
    command = worker_with(FAKE_LOG=log)
    with (
        Engine.open(libsophon, [made(tmp_path)], embedding=table(), command=command) as engine,
        Session(engine) as session,
    ):
        with pytest.raises(ValueError, match=rf"token {wrong} at position 1 is outside the vocabulary \[0, 320\)"):
            session.feed([1, wrong])
        assert "launch" not in log.read_text()


@pytest.mark.parametrize(
    ("model", "embedding", "words"),
    [
        (FAKE, None, r"net_1 of .*a\.bmodel takes rows of the embedding .* should be a table of shape \[320, 128\]"),
        (FAKE, table()[:-1], r"of a table of shape \[320, 128\], but got \[319, 128\]"),
        (FAKE, table(width=64), r"of a table of shape \[320, 128\], but got \[320, 64\]"),
        (FakeModel(), table(), r"an embedding was given, but nets \['net_1', 'all_4'\] take tokens"),
    ],
    ids=["none", "rows", "width", "inside"],
)
def test_a_table_that_does_not_fit(libsophon, tmp_path, model, embedding, words):
    """Before anything is fed, it says what should be; the worker ends."""
    with pytest.raises(ValueError, match=words):
        Engine.open(libsophon, [made(tmp_path, model)], embedding=embedding)


# ---- the harness


class Opener:
    """Opens nothing, and remembers the table that it was given."""

    def __call__(self, files, *, assemble=None, embedding=None):
        """Keep it, and end there."""
        del files, assemble
        self.given = embedding
        raise RuntimeFault("far enough")


def table_of_a_run(toolchain, options, own=NOTHING):
    """The table that the suites open an engine with."""
    run = SuiteRun(
        device="cmodel",
        libsophon=None,
        checkpoint=None,
        codec=None,
        grid="smoke",
        narrowed=Narrowed(quantizations="F16", chunk_lengths="", options=options),
        toolchain=toolchain.version,
        stage_timeout_s=600,
        say=print,
        own=own,
    )
    opener = Opener()
    run.place = dataclasses.replace(run.place, open=opener)
    with pytest.raises(RuntimeFault, match="far enough"):
        run.engine(Check(), run.grid.cases[0])
    return opener.given


@pytest.mark.toolchain
@pytest.mark.parametrize("options", ["host_embedding", ""])
def test_a_run_supplies_the_table(toolchain, options):
    """The suites open an engine of such cases with the checkpoint's table, and of others without."""
    expected = host_table(open_model(None).arrays) if options else None
    np.testing.assert_equal(table_of_a_run(toolchain, options), expected)


@pytest.mark.toolchain
def test_tune_tries_it(toolchain):
    """No flag of the compiler is another, but the graph is; it is judged with the checkpoint's table."""
    model, opener = open_model(None), Opener()
    assert changing([Option.HOST_EMBEDDING, Option.QUANT_OUTPUT], PLAIN, model, toolchain) == [Option.HOST_EMBEDDING]
    place = dataclasses.replace(open_place("cmodel", None, toolchain.libraries), open=opener)
    found = ParityJudge(model, toolchain, place, load_limits()[0][Quantization.F16], say=print).judge(HOST)
    assert (found.stage, found.message) == (Stage.LOAD, "far enough")
    np.testing.assert_array_equal(opener.given, host_table(model.arrays))


# ---- somebody else's port

MAP = """
name = "theirs"
precision = "F16"
order = "layers"

[nets.decode]
tokens = 1

[nets.prefill_4]
tokens = 4

[embedding]
input = "embedding"
dtype = "F32"

[logits]
output = "logits"
"""
for _kind, _name, _layout in (
    ("time_mix_shift", "att.shift", "channel"),
    ("wkv", "att.state", "head value key"),
    ("channel_mix_shift", "ffn.shift", "channel"),
):
    MAP += f"""
[states.{_kind}]
input = "blocks.{{i}}.{_name}"
output = "blocks.{{i}}.{_name}.next"
layout = "{_layout}"
"""


@pytest.fixture(scope="module")
def port_files(tmp_path_factory):
    """The shipped model's graphs with the embedding on the host, as somebody else's ONNX of no telling names."""
    folder, arrays = tmp_path_factory.mktemp("port"), open_model(None).arrays
    for name, T in (("one", 1), ("four", 4)):
        export(HOST_EMBEDDING[Rwkv7](arrays, T=T, every_position=False), folder / f"{name}.onnx")
    return folder / "one.onnx", folder / "four.onnx"


def opened(folder, files, text=MAP):
    """The port by a map."""
    (folder / "map.toml").write_text(text)
    return Own(onnx=files, io=folder / "map.toml").open(DEFAULT, None)


def test_a_port_without_its_embedding(tmp_path, port_files):
    """Its map says so, and rows are fed: with the layer norm behind the embedding, or without where the graph has it.

    Ours has not: without, the numbers are wrong.
    """
    port, oracle = opened(tmp_path, port_files), oracle_for(open_model(None).checkpoint, Quantization.F32)
    limits, _ = load_limits()
    for case in port.grid.cases:
        judge_export(port, case, oracle, limits)
    other = opened(tmp_path, port_files, MAP.replace('dtype = "F32"', 'dtype = "F32"\nlayer_norm = "graph"'))
    np.testing.assert_array_equal(other.embedding, open_model(None).arrays["emb.weight"])
    with pytest.raises(AssertionError, match="the port's ONNX itself, or its map, is wrong"):
        judge_export(other, other.grid.cases[0], oracle, limits)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda text: text.replace('[embedding]\ninput = "embedding"\ndtype = "F32"\n', ""),
            r"toml:1: .*found neither",
        ),
        (lambda text: text + '\n[token]\ninput = "token"\n', r"toml:12: expected one of \[token\], .*found both"),
        (
            lambda text: text.replace('"F32"\n', '"F16"\n', 1),
            r"toml:14: dtype: expected F16, found embedding F32 \[1, 1, 128\]",
        ),
        (
            lambda text: text.replace("[embedding]", "[token]").replace('dtype = "F32"\n', ""),
            r"expected one net for the 128 tokens|expected I32 tokens, found embedding F32 \[1, 1, 128\]",
        ),
        (lambda text: text.replace('"F32"', '"I32"'), r"toml:14: Invalid enum value 'I32'"),
        (lambda text: text.replace('"embedding"', '"blocks.{i}.att.shift"'), "which is embedding already"),
    ],
    ids=["neither", "both", "type", "tokens", "integers", "twice"],
)
def test_a_map_that_does_not_fit(tmp_path, port_files, change, words):
    """It is told with file and line."""
    with pytest.raises(MapError, match=words):
        opened(tmp_path, port_files, change(MAP))


def test_rows_of_another_width(tmp_path):
    """Those of another model."""
    export(HOST_EMBEDDING[Rwkv7](ARRAYS, T=1, every_position=False), tmp_path / "decode.onnx")
    path, text = tmp_path / "decode.onnx", MAP.replace("[nets.prefill_4]\ntokens = 4\n", "")
    graph = onnx.load(path)
    graph.graph.input[0].type.tensor_type.shape.dim[2].dim_value = 64
    onnx.save(graph, path)
    with pytest.raises(
        MapError, match=r"expected rows of the embedding, \[1, 128\], .*found embedding F32 \[1, 1, 64\]"
    ):
        opened(tmp_path, (path,), text)


@pytest.mark.toolchain
@pytest.mark.parametrize("kind", ["bmodel", "onnx"])
def test_a_run_supplies_the_table_of_a_port(toolchain, tmp_path, port_files, kind):
    """Be it compiled already or not."""
    io = tmp_path / "map.toml"
    io.write_text(MAP.replace("[nets.prefill_4]\ntokens = 4\n", ""))
    bmodel = compile_case(HOST, open_model(None), toolchain, cache_folder()).path
    own = Own(bmodels=(bmodel,), io=io) if kind == "bmodel" else Own(onnx=port_files[:1], io=io)
    io.write_text(f'checkpoint = "{DEFAULT}"\n{io.read_text()}')
    np.testing.assert_array_equal(table_of_a_run(toolchain, "", own), host_table(open_model(None).arrays))


# ---- what came of it


@pytest.mark.toolchain
def test_what_the_compiler_made(toolchain):
    """In the interpreter of its TPU dialect: 16 decode steps within the caps."""
    model = open_model(None)
    start = State.random(model.checkpoint.shape, seed=0, dtype=torch.float32).arrays()
    tokens = any_tokens(model.checkpoint.shape.n_vocab, 16)
    check = Check(limits=limits_for(load_limits()[0], HOST))
    want = oracle_for(model.checkpoint, HOST.quantization, HOST.options).run(tokens, start)
    with open_interpreters([job_of(HOST, model, toolchain)], Dialect.TPU, cache_folder()) as target:
        got = target.run(tokens, start)
    check.logits(want, got)
    check.state(want, got.state)


@pytest.mark.long
@pytest.mark.toolchain
def test_on_the_simulator(toolchain):
    """The bmodel is smaller by the table, takes rows, and passes the suite's check from a random state."""
    model = open_model(None)
    inside, host = (compile_case(case, model, toolchain, cache_folder()) for case in (PLAIN, HOST))
    shape = model.checkpoint.shape
    assert inside.result.bmodel_bytes - host.result.bmodel_bytes >= 2 * shape.n_vocab * shape.n_embd
    start = State.random(shape, seed=0, dtype=torch.float32).arrays()
    check = Check(limits=limits_for(load_limits()[0], HOST))
    oracle = oracle_for(model.checkpoint, HOST.quantization, HOST.options)
    place = open_place("cmodel", None, toolchain.libraries)
    with place.open([host.path], embedding=embedding_for([HOST], model)) as engine:
        assert engine.nets[0].rows == EmbeddingRows(shape.n_embd, Dtype.F32)
        judge_from_random_state(check, engine, HOST, model, oracle, start)
