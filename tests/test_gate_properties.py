"""What holds of the gate whatever the runs are."""

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from harness.gate.compare import gate
from harness.gate.exact import is_better, is_worse
from harness.gate.finding import Finding, Kind, exit_code
from harness.gate.rules import Better, Rule, load_rules
from reports.schema import Outcome, Stage
from tests.gate_runs import COMPILED, METRICS, PREDICTED, MadeRun, a_record, in_memory, launches

RULES = load_rules()
NUMBERS = st.none() | st.floats(allow_nan=False, allow_infinity=False)
NAMES = st.sampled_from(
    [*METRICS, *PREDICTED, "decode_ms_at_0", "load_ms", "ttft_p95_ms", "simulator_wall_x", "new", *COMPILED]
)
RECORDS = st.builds(
    lambda case, check, outcome, stage, metrics: a_record(
        case, check, outcome=outcome, stage=stage if outcome is Outcome.FAILED else None, metrics=metrics
    ),
    st.sampled_from(["", "decode-F16-chunk", "prefill_16-F16-chunk"]),
    st.sampled_from(["a", "b", "a (setup)", "b (teardown)"]),
    st.sampled_from(Outcome),
    st.sampled_from(Stage),
    st.dictionaries(NAMES, NUMBERS),
)
RUNS = st.lists(st.lists(RECORDS, max_size=5), max_size=7)
FACTORS = st.floats(1.0001, 1000)
VALUES = st.floats(1e-9, 1e9)


def side(runs):
    """A side in memory."""
    made = [MadeRun(tuple(records), {"id": f"r{index}"}) for index, records in enumerate(runs)]
    return in_memory(Path("side"), made)


@given(RUNS)
def test_a_run_never_regresses_against_itself(runs):
    """Whatever is in it: failures, NaN, duplicates, repeats that disagree."""
    report = gate(side(runs), side(runs), RULES)
    assert not [one for one in report.findings if one.kind in {Kind.REGRESSION, Kind.IMPROVED}]
    assert report.exit_code in {0, 2, 3, 4}


@given(RUNS)
def test_nothing_measured_is_no_pass(runs):
    """A pass has checks that were measured on both sides."""
    report = gate(side(runs), side(runs), RULES)
    assert report.exit_code or report.checks


@given(VALUES, st.floats(1, 100), st.floats(0, 100), st.sampled_from(Better), FACTORS)
def test_beyond_the_limit_is_always_found(base, ratio, difference, better, factor):
    """Whatever is worse than both limits by a little is a regression; the way back is an improvement."""
    rule = Rule(metrics=("x",), better=better, ratio=ratio, difference=difference)
    loss = max(base * (ratio - 1 if better is Better.LOWER else 1 - 1 / ratio), difference) * factor + 1e-6 * base
    new = base + loss if better is Better.LOWER else base - loss
    assert is_worse(base, new, rule)
    assert not is_worse(new, base, rule)
    assert is_better(new, base, rule)


@given(VALUES, st.floats(1.001, 100), st.sampled_from(Better), st.floats(0, 0.999))
def test_within_the_limit_is_never_found(base, ratio, better, part):
    """A part of what a ratio leaves is no regression."""
    rule = Rule(metrics=("x",), better=better, ratio=ratio)
    loss = base * (ratio - 1 if better is Better.LOWER else 1 - 1 / ratio) * part
    assert not is_worse(base, base + loss if better is Better.LOWER else base - loss, rule)


@given(st.sampled_from(sorted(PREDICTED)), st.integers(1, 10**9))
def test_a_count_that_grows_is_found_in_any_run(name, more):
    """By one or by many, beside all that did not change."""
    base = [[a_record("decode-F16-chunk"), a_record("prefill_16-F16-chunk")]]
    new = [[a_record("decode-F16-chunk"), a_record("prefill_16-F16-chunk", predicted={name: PREDICTED[name] + more})]]
    report = gate(side(base), side(new), RULES)
    regressions = [one for one in report.findings if one.kind is Kind.REGRESSION]
    assert [(one.key.case, one.metric) for one in regressions] == [("prefill_16-F16-chunk", name)]
    assert report.exit_code == 1


@given(st.lists(st.floats(4.95, 5.05), min_size=10, max_size=10), st.floats(1.05, 10))
def test_a_clear_slowdown_is_always_found(times, slower):
    """Ten launches within 1 %, each of them at least 5 % slower on the other side."""
    base = launches([{"decode_ms_at_0": x} for x in times])
    new = launches([{"decode_ms_at_0": x * slower} for x in times], first=1)
    assert gate(in_memory(Path("base"), base), in_memory(Path("new"), new), RULES).exit_code == 1


@given(st.sets(st.sampled_from(Kind)))
def test_precedence(kinds):
    """1 before 3 before 4 before 2; what is no fault ends with 0."""
    codes = {kind.exit_code for kind in kinds}
    expected = next((code for code in (1, 3, 4, 2) if code in codes), 0)
    assert exit_code(Finding(kind=kind) for kind in kinds) == expected
