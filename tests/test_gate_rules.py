"""Rules: the shipped ones know every metric, a user's stand before them, and nonsense is refused."""

import tomllib
from fnmatch import fnmatchcase

import pytest

from harness.gate.rules import RULES, Better, How, RulesError, load_rules
from harness.throughput.figures import chunk_figures, prompt_figures, window_figures
from harness.throughput.sample import Sample, What
from tests.gate_runs import COMPILED, METRICS, PREDICTED

CASE = "decode-F16-chunk"


def rule(name, case=CASE, own=None):
    """The rule of a metric."""
    found = load_rules(own).rule_for(name, case)
    assert found is not None, name
    return found


def throughput_names():
    """What the suite throughput writes, on a board."""
    samples = [
        Sample(what=what, net="n", tokens=1, behind=0, repeat=0, end_to_end_s=1, launch_s=1, device_s=1, finite=True)
        for what in (What.PROMPT, What.OUTPUT)
    ]
    figures = chunk_figures(samples) | prompt_figures(samples) | window_figures(samples, 512)
    told = "load_ms", "warm_up_ms", "prompt_tokens", "host_memory_bytes", "device_memory_bytes"
    return [*figures, *told, "tpu_clock_lowest_mhz", "chip_temperature_highest_c", "canary_step_ms"]


@pytest.mark.parametrize(
    "name",
    [*METRICS, *PREDICTED, *COMPILED, *throughput_names(), "near_ties", "exact_matches", "outcome", "wider_matrices"],
)
def test_every_metric_has_a_rule(name):
    """A metric that no rule knows would end every gate with 2."""
    rule(name)


@pytest.mark.parametrize(
    ("name", "how", "better"),
    [
        ("predicted_cycles", How.EXACT, Better.LOWER),
        ("top1_share", How.EXACT, Better.HIGHER),
        ("decode_ms_at_512", How.NOISY, Better.LOWER),
        ("decode_p95_ms_at_512", How.SHOWN, Better.LOWER),
        ("ttft_launch_ms", How.SHOWN, Better.LOWER),
        ("prefill_tokens_per_s", How.SHOWN, Better.LOWER),
        ("simulator_wall_decode_ms_at_0", How.IGNORED, Better.LOWER),
        ("simulator_device_memory_bytes", How.IGNORED, Better.LOWER),
        ("device_memory_bytes", How.EXACT, Better.LOWER),
        ("lambada_perplexity", How.SHOWN, Better.LOWER),
        ("lambada_perplexity_ratio", How.SHOWN, Better.LOWER),
    ],
)
def test_shipped(name, how, better):
    """What is judged how."""
    assert (rule(name).compare, rule(name).better) == (how, better)


def test_no_shipped_rule_is_dead():
    """The first that matches decides, so a name that an earlier pattern takes too would never be judged by its own."""
    shipped = tomllib.loads(RULES.read_text(encoding="utf-8"))["rule"]
    for i, later in enumerate(shipped):
        for name in later["metrics"]:
            earlier = [pattern for one in shipped[:i] if "cases" not in one for pattern in one["metrics"]]
            assert not [pattern for pattern in earlier if fnmatchcase(name, pattern)], name


def test_own_rules_stand_first(tmp_path):
    """For the cases that they name; the shipped ones judge the rest."""
    own = tmp_path / "rules.toml"
    own.write_text('family_alarm_rate = 0.05\n[[rule]]\nmetrics = ["ddr_*"]\ncases = "decode-*"\nratio = 1.5\n')
    assert rule("ddr_read_bytes", own=own).ratio == 1.5
    assert rule("ddr_read_bytes", "prefill_16-F16-chunk", own).ratio is None
    assert load_rules(own).family_alarm_rate == 0.05


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("family_alarm_rate = 0.0", "above 0"),
        ("family_alarm_rate = 'x'", "float"),
        ("[[rule]]\nmetrics = []", "at least one"),
        ('[[rule]]\nmetrics = ["x"]\nratio = 0.5', "at least 1"),
        ('[[rule]]\nmetrics = ["x"]\nratio = nan', "at least 1"),
        ('[[rule]]\nmetrics = ["x"]\ndifference = -1.0', "at least 0"),
        ('[[rule]]\nmetrics = ["x"]\ncompare = "noisy"', "floor"),
        ('[[rule]]\nmetrics = ["x"]\ncompare = "paired"\nratio = 1.5', "difference"),
        ('[[rule]]\nmetrics = ["x"]\nrepeats_needed = false', "noisy"),
        ('[[rule]]\nmetrics = ["x"]\ncompare = "loosely"', "loosely"),
        ('[[rule]]\nmetric = ["x"]', "metric"),
        ("[[rule", "rules.toml"),
    ],
)
def test_nonsense(tmp_path, text, says):
    """Refused, with the file named."""
    own = tmp_path / "rules.toml"
    own.write_text(text)
    with pytest.raises(RulesError, match=says) as refused:
        load_rules(own)
    assert str(own) in str(refused.value)


def test_no_file(tmp_path):
    """A file that is not there is named."""
    with pytest.raises(RulesError, match="cannot be read"):
        load_rules(tmp_path / "gone.toml")
