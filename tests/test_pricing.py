"""One release's price of another's code: exact with the real tools, and in words where there is none."""

import msgspec
import pytest

from compile.compiler import Compiled
from compile.pricing import PricingError, code_changes, find_compiled, price
from harness.one_price import one_price
from harness.paths import cache_folder
from reports.side_by_side import OnePrice
from tests.fake_codegen import MLIR, a_compile, a_profile, codegen_toolchain
from tests.gate_runs import DECODE, PREFILL, MadeRun, a_record, in_memory


@pytest.mark.parametrize("graph", ["decode", "prefill"])
def test_a_release_prices_its_own_code_as_it_did(rwkv_bmodels, toolchain, graph):
    """Without the weights, which are gone, the same instructions, bytes and cycles come out."""
    folder = getattr(rwkv_bmodels, graph).parent
    before = sorted(path.name for path in folder.iterdir())
    own = msgspec.json.decode((folder / "result.json").read_bytes(), type=Compiled)
    found = find_compiled(own.bmodel_sha256, cache_folder())
    assert (found.folder, found.profile) == (folder, own.profile)
    assert price(folder, toolchain) == own.profile
    assert sorted(path.name for path in folder.iterdir()) == before


@pytest.mark.parametrize(
    ("said", "message"),
    [
        (
            "echo hello; echo '  what():  unknown operation tpu.New'; kill -ABRT $$",
            r"m_final.mlir died of SIGABRT: what\(\):  unknown operation tpu.New",
        ),
        ("echo hello; exit 3", "2.0 from m_final.mlir exited with status 3: hello"),
        ("exit 3", "it said nothing"),
        ("sleep 60", "time limit"),
        ("true", "left no profile"),
        ("echo nonsense > compiler_profile_0.txt", "another format"),
    ],
    ids=["dies", "fails", "silent", "hangs", "nothing", "another format"],
)
def test_a_code_generator_that_fails(tmp_path, said, message):
    """It is said how, with the line that tells why."""
    a_compile(tmp_path, "k", a_profile())
    toolchain = codegen_toolchain(tmp_path / "t", "2.0", said)
    with pytest.raises(PricingError, match=message):
        price(tmp_path / "bmodels" / "k", toolchain, timeout_s=2.0 if said == "sleep 60" else 60.0)


@pytest.mark.parametrize(
    ("mlir", "message"),
    [
        (MLIR.replace("weight_file", "file"), "names no file of weights"),
        (MLIR.replace("weights.npz", "../weights.npz"), "names no file of weights"),
        (MLIR.replace("xf16", "xf8E4M3FN"), "m_final.mlir:3: a weight whose name, shape or type"),
        (MLIR.replace("#loc8 = ", "#loc9 = "), "m_final.mlir:3: a weight whose name, shape or type"),
    ],
)
def test_weights_that_cannot_be_read(tmp_path, mlir, message):
    """Nothing is run, and the line is named."""
    a_compile(tmp_path, "k", a_profile(), mlir)
    with pytest.raises(PricingError, match=message):
        price(tmp_path / "bmodels" / "k", codegen_toolchain(tmp_path / "t", "2.0", a_profile()))


def test_a_compile_that_is_gone(tmp_path):
    """A bmodel that the cache does not have, and a folder without its MLIR; what is half-made there does not matter."""
    (tmp_path / "bmodels" / "half").mkdir(parents=True)
    (tmp_path / "bmodels" / "half" / "result.json").write_text("{")
    with pytest.raises(PricingError, match="no longer in"):
        find_compiled("0" * 64, tmp_path)
    folder = find_compiled(a_compile(tmp_path, "k", a_profile()), tmp_path).folder
    (folder / "m_final.mlir").unlink()
    with pytest.raises(PricingError, match="has 0"):
        price(folder, codegen_toolchain(tmp_path / "t", "2.0", a_profile()))


def test_what_is_the_same_code():
    """Instructions and bytes decide; cycles are the price."""
    assert code_changes(a_profile(), a_profile(predicted_cycles=1)) == ()
    assert code_changes(a_profile(), a_profile(ddr_copy_bytes=4096)) == ("ddr_copy_bytes 10 -> 4,096",)


def test_a_check_with_weights_of_its_own(tmp_path):
    """It judges another bmodel of the same graph; the price is of the one that most checks judge."""
    old = a_compile(tmp_path, "old", a_profile())
    records = [a_record(check=name, bmodel_sha256=old) for name in ("one", "two")]
    side = in_memory(tmp_path, [MadeRun((*records, a_record(check="hard", bmodel_sha256="h")), {"id": "r0"})])
    toolchain = codegen_toolchain(tmp_path / "t", "2.0", a_profile())
    (priced,) = one_price(side, side, toolchain, tmp_path, lambda _: None)
    assert priced.old_cycles == a_profile().predicted_cycles


def test_cases_that_have_no_price(tmp_path):
    """Another bmodel in each launch, one that is not in the cache, other code from the same MLIR: each says so."""
    old = a_compile(tmp_path, "old", a_profile())
    records = [a_record(bmodel_sha256=old), a_record(PREFILL, bmodel_sha256=old)]
    side = in_memory(tmp_path, [MadeRun(tuple(records), {"id": "r0"})])
    other = [a_record(bmodel_sha256="b"), a_record(PREFILL, bmodel_sha256=old)]
    twice = in_memory(tmp_path, [MadeRun(tuple(records), {"id": "r0"}), MadeRun(tuple(other), {"id": "r1"})])
    toolchain = codegen_toolchain(tmp_path / "t", "2.0", a_profile(gdma_instructions=11))
    decode, prefill = one_price(side, twice, toolchain, tmp_path, lambda _: None)
    assert (decode.case, decode.words) == (DECODE, "not priced: one side has several bmodels of it")
    assert (prefill.case, prefill.old_cycles) == (PREFILL, None)
    assert "2.0 makes other code of the same final MLIR: gdma_instructions 10 -> 11" in prefill.words
    gone = in_memory(tmp_path, [MadeRun(tuple(other), {"id": "r1"})])
    assert "no longer in" in one_price(gone, gone, toolchain, tmp_path, lambda _: None)[0].words


@pytest.mark.parametrize(
    ("cycles", "same_program", "words"),
    [
        ((9, 9, 9), True, "nothing"),
        ((9, 9, 7), False, "the code"),
        ((9, 9, 9), False, "the code"),
        ((9, 9, 7), True, "the code"),
        ((9, 7, 7), True, "the estimator"),
        ((9, 7, 9), False, "the code and the estimator"),
    ],
)
def test_what_changed(cycles, same_program, words):
    """From the old code by the old release, by the new one, and the new code by the new one."""
    own, old, new = cycles
    one = OnePrice(case=DECODE, own_cycles=own, old_cycles=old, new_cycles=new, same_program=same_program)
    assert one.words == words
