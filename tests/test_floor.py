"""The floor: its bytes and operations counted by hand, its rate from the sweep that is kept."""

import re

import pytest

from compile.floor import OPERATIONS_PER_NS, floor, matrix_bytes, minimum
from compile.spec import GraphKind, GraphSpec, Quantization
from compile.sweep import Product
from compile.timeline import DDR_BYTES_PER_NS
from compile.toolchain import Toolchain
from harness.cases import parse_case
from harness.rates import RatesError, floor_of, keep_rates, read_rates
from harness.sizes import SIZES
from reference.shape import LoraRanks, ModelShape
from tests.a_receipt import a_receipt

SHAPES = ModelShape(
    n_layer=1, n_embd=64, head_size=64, n_ffn=128, n_vocab=100, ranks=LoraRanks(decay=4, rate=5, value=6, gate=7)
).tensors()
DECODE = GraphSpec(kind=GraphKind.DECODE)

# By hand. Vectors of 64: ln1 and ln2 4, x_* 6, w0 a0 2, k_k k_a 2, r_k 1, ln_x 2, ffn.x_k 1, ln_out 2.
VECTORS = 20 * 64
LOW_RANK = 2 * 64 * (4 + 5 + 7)
MATRICES = 4 * 64 * 64 + 2 * 64 * 128 + 100 * 64
# Of 64 inputs, one of each output; the LoRA pairs' second matrices, of 4, 5 and 7 inputs, have one of each output too.
GROUPS = 4 * 64 + 128 + 2 * 64 + 100 + (4 + 5 + 7) + 3 * 64


@pytest.mark.parametrize(
    ("quantization", "weight_bytes"),
    [
        (Quantization.F32, 4 * (VECTORS + LOW_RANK + MATRICES)),
        (Quantization.F16, 2 * (VECTORS + LOW_RANK + MATRICES)),
        (Quantization.BF16, 2 * (VECTORS + LOW_RANK + MATRICES)),
        (Quantization.W8F16, 2 * VECTORS + LOW_RANK + MATRICES + 3 * GROUPS),
        (Quantization.W4F16, 2 * VECTORS + (LOW_RANK + MATRICES) // 2 + 3 * GROUPS),
    ],
)
def test_weights(quantization, weight_bytes):
    """Each once, by its format; the embedding and what is folded into it are no weights that pass."""
    assert minimum(SHAPES, DECODE, quantization).weight_bytes == weight_bytes


def test_decode():
    """One row of the embedding, two states of a layer, one row of logits; a product and a sum are two operations."""
    least = minimum(SHAPES, DECODE, Quantization.F16)
    assert least.embedding_bytes == 64 * 2
    assert least.state_bytes == 2 * (2 * 64 + 64 * 64) * 4
    assert least.io_bytes == 4 + 100 * 2
    assert least.total_bytes == 84_992 + 128 + 33_792 + 204
    assert least.operations == 2 * (MATRICES + LOW_RANK) + 9 * 64 * 64
    halved = minimum(SHAPES, DECODE, Quantization.F16, state_bytes=2)
    assert least.total_bytes - halved.total_bytes == 33_792 // 2


@pytest.mark.parametrize(("kind", "rows"), [(GraphKind.PREFILL, 1), (GraphKind.PREFILL_ALL, 16)])
def test_prefill(kind, rows):
    """Weights and states pass once for all tokens; the head computes only the rows that are asked for."""
    least = minimum(SHAPES, GraphSpec(kind=kind, T=16), Quantization.F16)
    one = minimum(SHAPES, DECODE, Quantization.F16)
    assert (least.weight_bytes, least.state_bytes) == (one.weight_bytes, one.state_bytes)
    assert least.embedding_bytes == 16 * one.embedding_bytes
    assert least.io_bytes == 16 * 4 + rows * 100 * 2
    assert least.operations == 16 * (2 * (MATRICES - 6400 + LOW_RANK) + 9 * 64 * 64) + rows * 2 * 6400


def test_the_longer_of_the_two():
    """Memory decides at a slow rate, arithmetic at a fast one; the share is of the predicted time."""
    least = minimum(SHAPES, DECODE, Quantization.F16)
    slow = floor(least, 50.0)
    assert slow.by_memory
    assert slow.ns == least.total_bytes / 50.0
    assert slow.share(2 * slow.ns) == 0.5
    fast = floor(least, 1e9)
    assert not fast.by_memory
    assert fast.ns == least.operations / OPERATIONS_PER_NS
    with pytest.raises(ValueError, match="should both be positive"):
        floor(least, 0.0)


def test_matrix_without_groups():
    """What 64 does not divide stays F16, as the compiler leaves it."""
    assert matrix_bytes(96, 10, Quantization.W4F16) == 96 * 10 * 2
    assert matrix_bytes(128, 10, Quantization.W4F16) == 128 * 10 // 2 + 2 * 10 * 3


def test_rates_that_ship():
    """Every product is below what memory can give, and needs the bytes that its size says."""
    for rates in read_rates().values():
        assert rates.compiler.startswith("v")
        assert 0.5 * DDR_BYTES_PER_NS < rates.best.bytes_per_ns < DDR_BYTES_PER_NS
        for one in rates.products:
            ends = 4 * (one.inputs + one.outputs)
            assert one.minimum_bytes == matrix_bytes(one.inputs, one.outputs, one.quantization) + ends


def test_the_published_size():
    """0.1B in F16: all of its 191 million parameters but the embedding pass; no floor for an unswept release."""
    case = parse_case("decode-F16-chunk")
    found = floor_of(case, SIZES["0.1B"].tensors(), "1.30.2")
    assert found is not None
    assert found.by_memory
    assert found.minimum.weight_bytes == 2 * (191_034_624 - 65_536 * 768 - 2 * 768)
    assert floor_of(case, SHAPES, "0.0") is None


def a_toolchain(tmp_path, version):
    """A release that is not there; its receipt is enough for the file."""
    receipt = a_receipt(version)
    return Toolchain(tmp_path, receipt)


def test_rates_are_kept(tmp_path):
    """A sweep takes the place of its own release's, others stay, and what is read is what was written."""
    path = tmp_path / "rates.toml"
    products = [
        Product(inputs=64, outputs=i, quantization=Quantization.W4F16, minimum_bytes=100 * i, predicted_cycles=7)
        for i in (3, 9, 5)
    ]
    first = keep_rates(a_toolchain(tmp_path, "1.28.1"), products, path)
    second = keep_rates(a_toolchain(tmp_path, "1.30.2"), products[:1], path)
    assert read_rates(path) == {"1.28.1": first, "1.30.2": second}
    assert first.best.outputs == 9
    keep_rates(a_toolchain(tmp_path, "1.28.1"), products[1:2], path)
    assert [one.outputs for one in read_rates(path)["1.28.1"].products] == [9]
    assert "no measurements" in path.read_text()
    assert {file.name for file in tmp_path.iterdir()} == {"rates.toml"}


@pytest.mark.parametrize("text", [None, "[x", '["1"]\nspeed = 3\n'])
def test_rates_that_cannot_be_read(tmp_path, text):
    """A missing or broken file is named, with the command that writes one."""
    path = tmp_path / "rates.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RatesError, match=re.escape(str(path)) + ".*--sweep"):
        read_rates(path)
