"""LAMBADA results are gated in pairs, document by document, and only where both answered the same questions."""

import msgspec
import numpy as np
import pytest

from harness.gate.compare import gate
from harness.gate.finding import Kind
from harness.gate.rules import load_rules
from harness.gate.sides import read_side
from harness.lambada.results import Header, Key, Result
from tests.gate_runs import MadeRun, a_record

RULES = load_rules()
N = 200


def results(
    folder,
    shift=0.0,
    *,
    n=N,
    lost=0,
    scatter=0.01,
    key=None,
    description="on the simulator, F16",
    nan=False,
    target=None,
):
    """Write results into a side's folder: the usual log-likelihoods, *shift* nats higher, *lost* more words missed."""
    rng = np.random.default_rng(5)
    likelihoods = rng.normal(-3, 1, N)
    noise = np.random.default_rng(int(1000 * abs(shift))).normal(0, scatter, N)
    fields = {
        "checkpoint_sha256": "s0",
        "codec": "world",
        "target": {"target": "cmodel", "bmodels": "b0"} | (target or {}),
        "data_sha256": "d0",
        "protocol": 1,
    }
    header = Header(
        key=Key(**(fields | (key or {}))), started="t", harness="0", checkpoint="c", description=description
    )
    lines = [header]
    for index in range(n):
        value = None if nan and index == 3 else float(likelihoods[index] + (noise[index] if shift else 0) + shift)
        correct = lost <= index < 100
        lines.append(Result(id=f"doc{index}", log_likelihood=value, correct=correct, log_probs=(value,)))
    path = folder / "lambada" / f"{header.file_name}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


@pytest.fixture
def compared(tmp_path):
    """Gate two folders of results; each is a table of arguments of ``results``, or several."""

    def run(base, new, allow=()):
        for name, tables in (("base", base), ("new", new)):
            for table in tables if isinstance(tables, list) else [tables]:
                results(tmp_path / name, **table)
        return gate(read_side(tmp_path / "base"), read_side(tmp_path / "new"), RULES, allow)

    return run


@pytest.mark.parametrize(
    ("base", "new", "code", "says"),
    [
        ({}, {}, 0, ""),
        ({}, {"shift": -0.02}, 1, "nats a document"),
        ({}, {"shift": 0.02}, 0, "nats a document"),
        ({}, {"shift": -0.0001}, 0, ""),
        ({}, {"shift": -0.0005, "scatter": 1e-4}, 0, "worse, but within the limit"),
        ({}, {"lost": 20}, 1, "only BASE 20, only NEW 0"),
        ({"lost": 20}, {}, 0, "only BASE 0, only NEW 20"),
        ({}, {"lost": 2}, 0, ""),
        ({}, {"nan": True}, 1, "NaN or infinite"),
        ({"nan": True}, {}, 3, "NaN or infinite"),
        ({}, {"n": 150}, 3, "150 are shared"),
        ({"n": 1}, {"n": 1}, 3, "one document"),
        ({}, {"n": 0}, 3, "0 are shared"),
        ({}, {"key": {"checkpoint_sha256": "s1"}}, 3, "--allow checkpoint.sha256"),
        ({}, {"key": {"data_sha256": "d1"}}, 3, "--allow lambada.data_sha256"),
        ({}, {"description": "on the simulator, W4F16"}, 3, "--allow lambada.description"),
        ({}, {"target": {"bmodels": "b1"}}, 3, "--allow lambada.bmodels"),
        ({}, {"target": {"target": "torch"}}, 3, "vanished"),
        ({}, [{}, {"target": {"bmodels": "b1"}}], 3, "leave one"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict | list) else None,
)
def test_pair(compared, base, new, code, says):
    """Exit code and words for a pair of results."""
    report = compared(base, new)
    assert report.exit_code == code, report.findings
    assert any(says in finding.note for finding in report.findings) or not says


def test_another_compile_is_allowed_by_name(compared):
    """Where there are no runs beside the results, nothing tells that the compiler is the thing compared."""
    assert compared({}, {"target": {"bmodels": "b1"}}, allow=["lambada"]).exit_code == 0


def test_another_compile_is_the_thing_compared(tmp_path):
    """Runs beside the results tell that another release made the bmodels."""
    for name, release in (("base", "1.30.2"), ("new", "1.31.0")):
        results(tmp_path / name, target={"bmodels": release}, description=f"simulator, F16, TPU-MLIR {release}")
        MadeRun((a_record(),), {"toolchain": {"version": release}}).write(tmp_path / name / "run")
    report = gate(read_side(tmp_path / "base"), read_side(tmp_path / "new"), RULES)
    assert report.exit_code == 0
    assert report.comparability.compared == "toolchain"


def test_a_damaged_file(tmp_path):
    """It is no pass, and the file is named."""
    for name in ("base", "new"):
        results(tmp_path / name)
    (path,) = (tmp_path / "new" / "lambada").glob("*.jsonl")
    path.write_bytes(path.read_bytes().replace(b'"document"', b'"docu', 1))
    report = gate(read_side(tmp_path / "base"), read_side(tmp_path / "new"), RULES)
    assert report.exit_code == 3
    assert any(str(path) in one.note for one in report.findings if one.kind is Kind.NOT_COMPARABLE)


def of_suite(**changes):
    """A run whose record sums up 32 documents, a little off the reference; a metric that is to be absent is None."""
    metrics = {
        "lambada_documents": 32,
        "lambada_log_likelihood": -3.0,
        "lambada_perplexity": 20.0,
        "lambada_accuracy": 0.5,
        "lambada_perplexity_ratio": 1.25,
        "lambada_perplexity_ratio_se": 0.0125,
    }
    told = {name: "absent" if value is None else value for name, value in (metrics | changes).items()}
    return MadeRun((a_record(suite="lambada", check="paired", metrics=told),))


@pytest.mark.parametrize(
    ("base", "new", "code", "says"),
    [
        ({}, {}, 0, ""),
        ({}, {"lambada_accuracy": 15 / 32}, 0, "no documents to pair"),
        ({}, {"lambada_perplexity": 20.1}, 0, ""),
        # 0.01 on either side: two of them together are at most 0.02.
        ({}, {"lambada_log_likelihood": -3.04}, 0, ""),
        ({}, {"lambada_log_likelihood": -3.06}, 1, "standard error at most 0.02, N 32"),
        ({"lambada_log_likelihood": -3.06}, {}, 0, "standard error at most 0.02, N 32"),
        ({}, {"lambada_log_likelihood": -3.06, "lambada_perplexity_ratio_se": 0.05}, 0, ""),
        (*[{"lambada_perplexity_ratio_se": 0.0}] * 2, 0, ""),
        (
            {"lambada_perplexity_ratio_se": 0.0},
            {"lambada_perplexity_ratio_se": 0.0, "lambada_log_likelihood": -3.0005},
            0,
            "worse, but within the limit",
        ),
        (
            {"lambada_perplexity_ratio_se": 0.0},
            {"lambada_perplexity_ratio_se": 0.0, "lambada_log_likelihood": -3.002},
            1,
            "standard error at most 0",
        ),
        ({}, {"lambada_log_likelihood": float("nan")}, 1, ""),
        (*[{"lambada_perplexity_ratio_se": None}] * 2, 3, "no standard error"),
        ({}, {"lambada_documents": 500}, 3, "not asked the same"),
    ],
)
def test_records_of_a_suite(tmp_path, base, new, code, says):
    """They have no documents: the log-likelihood is judged by its standard errors, and a flipped document is shown."""
    for name, changes in (("base", base), ("new", new)):
        of_suite(**changes).write(tmp_path / name)
    report = gate(read_side(tmp_path / "base"), read_side(tmp_path / "new"), RULES)
    assert report.exit_code == code, report.findings
    assert any(says in finding.note for finding in report.findings) or not says, report.findings
