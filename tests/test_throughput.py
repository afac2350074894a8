"""Throughput: what lies inside the measured region and what does not, by a clock that only moves when told to."""

import argparse
import json
import statistics
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compile.spec import GraphKind, GraphSpec, Quantization
from harness.cases import Case
from harness.check import Check
from harness.throughput.bench import Bench
from harness.throughput.figures import chunk_figures, prompt_figures, spread, warm_up_ms, window_figures
from harness.throughput.measure import Stopwatch, chunks, first_call, prompts, windows
from harness.throughput.plan import parse_depths, parse_repeats, plan_for, token_ids
from harness.throughput.sample import Sample, SampleFile, What
from reports.schema import Reading, Stage
from runtime.binding import Dtype
from runtime.engine import Engine
from runtime.framing import Message
from runtime.nets import Net, State
from runtime.session import Session
from tests.fake_libsophon.build import FakeModel, fake_board, worker_with, write_bmodel

T = 4
TOKENS = token_ids(8, 64)
SECONDS = {"decode": 0.25, "prefill_4": 1.0}  # powers of two: sums of them are exact
LAUNCH_SHARE = 0.5
DEVICE_SHARE = 0.125
ANYTHING_ELSE_S = 1024.0


class Clock:
    """Stands still, unless somebody lets time pass."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        """Tell the time."""
        return self.now


class KnownEngine:
    """Nets that take known times. Everything else takes very long, so that nothing of it can hide in a sample.

    The one state is the number of tokens taken, by which it shows where a call really was.
    """

    def __init__(self, clock, *, counts=True, logits=0.0):
        self.clock = clock
        self.alive = True
        self.calls = []
        self.ended = 0
        self._counts = counts
        self._computed = 0.0
        self._taken = {}
        self._logits = np.full(8, logits, np.float32).tobytes()
        self.nets = tuple(
            Net(
                name=name,
                bmodel="",
                tokens=tokens,
                vocabulary=8,
                every_position=False,
                logits_dtype=Dtype.F32,
                states=(State((1,), Dtype.F32),),
                addr_mode=0,
                parts=(),
                edges=(),
            )
            for name, tokens in (("decode", 1), ("prefill_4", T))
        )

    def computed_s(self):
        """As the driver's count: nothing before the first launch."""
        self.clock.now += ANYTHING_ELSE_S
        return self._computed or None if self._counts else None

    def request(self, _, payloads=(), **fields):
        """Answer as a worker does."""
        if fields["do"] == "run":
            net, taken = fields["net"], self._taken[fields["session"]]
            self.calls.append((net, taken))
            self._taken[fields["session"]] += len(payloads[0]) // 4
            self.clock.now += SECONDS[net]
            self._computed += DEVICE_SHARE * SECONDS[net]
            return Message({"seconds": LAUNCH_SHARE * SECONDS[net]}, [self._logits])
        self.clock.now += ANYTHING_ELSE_S
        if fields["do"] == "start":
            self._taken[len(self._taken)] = 0
            return Message({"session": len(self._taken) - 1}, [])
        if fields["do"] == "write":
            self._taken[fields["session"]] = int(np.frombuffer(payloads[0], np.float32)[0])
        if fields["do"] == "read":
            return Message({}, [np.float32(self._taken[fields["session"]]).tobytes()])
        self.ended += fields["do"] == "end"
        return Message({}, [])


@pytest.fixture
def engine():
    """An engine whose calls take known times."""
    return KnownEngine(Clock())


def every_measurement(engine):
    """All that the suite measures of a net."""
    watch = Stopwatch(engine, engine.clock)
    yield from first_call(watch, "prefill_4", TOKENS[:T])
    yield from chunks(watch, "prefill_4", TOKENS, T=T, repeats=3)
    yield from prompts(watch, "decode", TOKENS, prompt=2 * T + 1, output=3, repeats=2)
    yield from windows(watch, "decode", TOKENS, depth=T + 1, steps=3, repeats=2)


def known_s(sample):
    """What a sample should have taken: a prompt is two chunks and a tail of one token."""
    return 2 * SECONDS["prefill_4"] + SECONDS["decode"] if sample.what is What.PROMPT else SECONDS[sample.net]


def test_only_the_call_is_timed(engine):
    """Sessions, states, the driver's count and all that a caller does between samples take ages, and none is timed."""
    samples = []
    for sample in every_measurement(engine):
        engine.clock.now += ANYTHING_ELSE_S  # sampling, printing, writing the sample
        samples.append(sample)
    assert [sample.end_to_end_s for sample in samples] == [known_s(sample) for sample in samples]
    assert {sample.what for sample in samples} == set(What)


def test_sampling_inside_would_be_found_out(engine, monkeypatch):
    """The test above can fail: where each call also samples its next token, no step has its known time."""
    run = Session.run

    def run_and_sample(self, net, tokens):
        logits = run(self, net, tokens)
        engine.clock.now += 0.125
        return logits

    monkeypatch.setattr(Session, "run", run_and_sample)
    steps = [sample for sample in every_measurement(engine) if sample.what is What.STEP]
    assert all(sample.end_to_end_s > known_s(sample) for sample in steps)


def test_three_times_of_a_call(engine):
    """From end to end, in the worker, on the chip: each its own, for a prompt of several calls the sum or nothing."""
    first, *samples = every_measurement(engine)
    assert first.device_s is None  # nobody has counted before the first launch
    for sample in samples:
        assert sample.device_s == DEVICE_SHARE * known_s(sample)
        assert sample.launch_s == (None if sample.what is What.PROMPT else LAUNCH_SHARE * known_s(sample))


def test_no_device_time_stays_none():
    """Where nobody counts, no sample and no figure holds a device time, least of all zero."""
    engine = KnownEngine(Clock(), counts=False)
    samples = list(every_measurement(engine))
    assert {sample.device_s for sample in samples} == {None}
    figures = window_figures([sample for sample in samples if sample.what is What.STEP], T + 1)
    assert figures
    assert not any("device" in name for name in figures)


def test_a_count_that_does_not_move_is_none(engine, monkeypatch):
    """Other work may have been counted before, but a call that took no time was not counted."""
    monkeypatch.setattr(engine, "computed_s", lambda: 5.0)
    assert {sample.device_s for sample in every_measurement(engine)} == {None}


@given(depth=st.integers(0, 40), steps=st.integers(1, 5), repeats=st.integers(1, 3))
def test_windows_are_where_they_should_be(depth, steps, repeats):
    """Each begins with its depth behind it, fed through the longest net first, and moves on one by one."""
    engine = KnownEngine(Clock())
    samples = list(
        windows(Stopwatch(engine, engine.clock), "decode", TOKENS, depth=depth, steps=steps, repeats=repeats)
    )
    way, window = engine.calls[: -steps * repeats], engine.calls[-steps * repeats :]
    assert way == [
        *(("prefill_4", start) for start in range(0, depth - depth % T, T)),
        *(("decode", behind) for behind in range(depth - depth % T, depth)),
    ]
    assert window == [("decode", depth + step) for _ in range(repeats) for step in range(steps)]
    assert [sample.behind for sample in samples] == [behind for _, behind in window]
    assert [sample.repeat for sample in samples] == [repeat for repeat in range(repeats) for _ in range(steps)]


def test_prompts_and_chunks_are_where_they_should_be(engine):
    """A prompt starts from nothing each time, its output follows at once; chunks go on from each other."""
    watch = Stopwatch(engine, engine.clock)
    list(prompts(watch, "decode", TOKENS, prompt=T + 1, output=3, repeats=2))
    assert engine.calls == 2 * [("prefill_4", 0), ("decode", T), ("decode", T + 1), ("decode", T + 2)]
    engine.calls.clear()
    list(chunks(watch, "prefill_4", TOKENS, T=T, repeats=3))
    assert engine.calls == [("prefill_4", 0), ("prefill_4", T), ("prefill_4", 2 * T)]


@given(st.lists(st.floats(1e-6, 1e3), min_size=2, max_size=50))
def test_quantiles(values):
    """As the standard library has them, which interpolates in its own code."""
    found = spread(values)
    twentieths = statistics.quantiles(values, n=20, method="inclusive")
    expected = (statistics.median(values), twentieths[0], twentieths[-1])
    assert found.n == len(values)
    np.testing.assert_allclose(found[1:], expected, rtol=1e-12)


def test_quantiles_of_nothing():
    """There are none, and one value is all of its quantiles."""
    with pytest.raises(ValueError, match="at least one value"):
        spread([])
    assert spread([2.0]) == (1, 2.0, 2.0, 2.0)


def samples_of(what, *seconds, tokens=1, each=1):
    """Make samples of these times, *each* to a repeat."""
    return [
        Sample(
            what=what,
            net="decode",
            tokens=tokens,
            behind=7,
            repeat=i // each,
            end_to_end_s=second,
            launch_s=second / 2,
            device_s=second / 4,
            finite=True,
        )
        for i, second in enumerate(seconds)
    ]


def test_figures_by_hand():
    """Rates and times of a handful of samples, worked out with pencil and paper."""
    steps = samples_of(What.STEP, 0.1, 0.3, 0.2, 0.4, 0.4, 0.6, each=2)  # windows of 0.4, 0.6 and 1.0 s
    assert window_figures(steps, 512) == pytest.approx(
        {
            "decode_tokens_per_s_at_512": 2 / 0.6,
            "decode_ms_at_512": 350,
            "decode_p95_ms_at_512": 550,  # three quarters of the way from 0.4 to 0.6
            "decode_launch_ms_at_512": 175,
            "decode_device_ms_at_512": 87.5,
        }
    )
    figures = chunk_figures(samples_of(What.CHUNK, 0.5, 0.25, 0.5, tokens=16))
    assert (figures["prefill_tokens_per_s"], figures["prefill_ms"]) == (32, 500)
    first, output = samples_of(What.PROMPT, 2.0, tokens=33), samples_of(What.OUTPUT, 0.1, 0.3)
    figures = prompt_figures([*first, *(replace(sample, repeat=0) for sample in output)])
    assert figures["ttft_ms"] == 2000
    assert figures["tpot_ms"] == pytest.approx(200)
    assert warm_up_ms(first[0], output) == pytest.approx(1800)


def bench_of(tmp_path, *, simulated=False, readings=()):
    """A bench of a decode case, with the check and the file that it tells."""
    place = SimpleNamespace(simulated=simulated, readings=lambda: tuple(readings), label="0")
    case = Case(graph=GraphSpec(kind=GraphKind.DECODE), quantization=Quantization.F16)
    check, plan = Check(), plan_for(simulated=simulated, longest=16, depths=None, repeats=None)
    file = SampleFile(tmp_path, target="0", simulated=simulated)
    return Bench(SimpleNamespace(place=place), check, case, plan, file), check, tmp_path / "samples.jsonl"


def test_figures_and_raw_samples_agree(engine, tmp_path):
    """What the record says follows from the file beside it, by a reader's own arithmetic."""
    bench, check, path = bench_of(tmp_path)
    measured = windows(Stopwatch(engine, engine.clock), "decode", TOKENS, depth=8, steps=3, repeats=2)
    bench.tell(window_figures(bench.keep(measured, count=6), 8))
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert len(lines) == 6
    assert {(line["case"], line["target"], line["simulated"]) for line in lines} == {("decode-F16-chunk", "0", False)}
    times = [line["end_to_end_s"] for line in lines if line["what"] == "step"]
    assert check.metrics["decode_ms_at_8"] == 1000 * statistics.median(times)
    rates = [3 / sum(line["end_to_end_s"] for line in lines if line["repeat"] == repeat) for repeat in (0, 1)]
    assert check.metrics["decode_tokens_per_s_at_8"] == statistics.median(rates) == 4


def test_a_sample_is_written_before_the_next_call(engine, tmp_path):
    """Killed in the middle, a run keeps every sample before."""
    bench, _, path = bench_of(tmp_path)
    seen = []

    def watched():
        for sample in every_measurement(engine):
            seen.append(len(path.read_text().splitlines()) if path.exists() else 0)
            yield sample

    kept = bench.keep(watched(), count=1 + 3 + 6 + 6)
    assert seen == list(range(len(kept)))


def test_rounds_of_pytest_benchmark(engine, tmp_path, benchmark):
    """It times so many calls, each behind those before, and its file will tell of what."""
    bench, _, _ = bench_of(tmp_path)
    bench.rounds(benchmark, Stopwatch(engine, engine.clock), "decode", TOKENS[:1])
    calls = bench.plan.repeats + 1  # one to warm up
    assert engine.calls == [("decode", behind) for behind in range(calls)]
    assert benchmark.extra_info == {"target": "0", "case": "decode-F16-chunk", "tokens": 1}
    assert benchmark.group == "1 tokens"


def test_rounds_whose_logits_are_not_finite(tmp_path, benchmark):
    """They are no figure of a model."""
    bench, check, _ = bench_of(tmp_path)
    engine = KnownEngine(Clock(), logits=np.nan)
    with pytest.raises(AssertionError, match="not finite"):
        bench.rounds(benchmark, Stopwatch(engine, engine.clock), "decode", TOKENS[:1])
    assert check.stage is Stage.NUMERICS


def test_the_simulator_is_named(engine, tmp_path):
    """No figure of it has the name that a board's would have."""
    bench, check, path = bench_of(tmp_path, simulated=True)
    (sample,) = bench.keep(first_call(Stopwatch(engine, engine.clock), "decode", TOKENS[:1]), count=1)
    bench.tell(window_figures([sample], 0))
    engine.memory = lambda: SimpleNamespace(device_bytes=None, host_peak_bytes=5)
    bench.tell_memory(Stopwatch(engine))
    assert check.metrics["simulator_wall_decode_tokens_per_s_at_0"] == 4
    assert check.metrics["simulator_host_memory_bytes"] == 5
    assert all(name.startswith("simulator_") for name in check.metrics)
    assert json.loads(path.read_text())["simulated"] is True


@pytest.mark.parametrize("logits", [np.nan, np.inf])
def test_logits_that_are_not_finite(tmp_path, logits):
    """How fast a wrong answer comes is not told, and its session does not wait for a collector of garbage."""
    engine = KnownEngine(Clock(), logits=logits)
    bench, check, _ = bench_of(tmp_path)
    with pytest.raises(AssertionError, match=r"logits are not finite \[first-call decode") as caught:
        bench.keep(first_call(Stopwatch(engine, engine.clock), "decode", TOKENS[:1]), count=1)
    assert check.stage is Stage.NUMERICS
    assert engine.ended == 1
    assert caught.tb  # as a report of the failure would keep the frames, and what they refer to


def test_a_time_that_is_none(engine, tmp_path):
    """A clock that stands still is no measurement, and neither are fewer samples than were asked for."""
    bench, check, _ = bench_of(tmp_path)
    with pytest.raises(AssertionError, match=r"0\.0 s, but should be above zero"):
        bench.keep(first_call(Stopwatch(engine, lambda: 3.0), "decode", TOKENS[:1]), count=1)
    assert check.stage is Stage.PERF
    with pytest.raises(AssertionError, match="1 samples, but should be 2"):
        bench.keep(first_call(Stopwatch(engine, engine.clock), "decode", TOKENS[:1]), count=2)


def test_a_clock_below_its_maximum_is_said(engine, tmp_path):
    """Throttled after the measurement: the record has the lowest clock, the highest temperature, and the words."""
    readings = [
        Reading(name="tpu_clock", value=1000.0, unit="MHz"),
        Reading(name="tpu_clock_max", value=1000.0, unit="MHz"),
        Reading(name="chip_temperature", value=70.0, unit="C"),
    ]
    bench, check, _ = bench_of(tmp_path, readings=readings)
    watch = Stopwatch(engine, engine.clock)
    bench.keep(first_call(watch, "decode", TOKENS[:1]), count=1)
    assert check.notes == []
    readings[0] = Reading(name="tpu_clock", value=800.0, unit="MHz")
    readings[2] = Reading(name="chip_temperature", value=95.0, unit="C")
    for _ in range(2):
        bench.keep(first_call(watch, "decode", TOKENS[:1]), count=1)
    (note,) = check.notes
    assert "the clock is at 800 MHz of 1000" in note
    assert (check.metrics["tpu_clock_lowest_mhz"], check.metrics["chip_temperature_highest_c"]) == (800, 95)


def test_options():
    """Depths in order and once each; what is none is refused with an example."""
    assert parse_depths("512, 0,512") == (0, 512)
    assert parse_repeats("3") == 3
    for text in ("", "1,", "-1", "a", "1.5", "²"):
        with pytest.raises(argparse.ArgumentTypeError, match="such as 0,512"):
            parse_depths(text)
    for text in ("", "0", "-2", "x"):
        with pytest.raises(argparse.ArgumentTypeError, match="at least 1"):
            parse_repeats(text)


def test_plans():
    """A board is measured at all depths, the simulator briefly; a user's word goes before both."""
    board = plan_for(simulated=False, longest=64, depths=None, repeats=None)
    assert board.depths == (0, 512, 2048, 8192)
    assert [board.prompt_tokens(length) for length in (16, 512, 1024)] == [513, 513, 1025]
    simulator = plan_for(simulated=True, longest=64, depths=None, repeats=None)
    assert simulator.depths == (0, 64)
    assert simulator.prompt_tokens(16) == 17
    for simulated in (True, False):
        asked = plan_for(simulated=simulated, longest=64, depths=(0,), repeats=7)
        assert (asked.depths, asked.repeats) == ((0,), 7)


@pytest.fixture(scope="module")
def libsophon(tmp_path_factory):
    """The fake libraries, as those of a board."""
    return fake_board(tmp_path_factory.mktemp("libsophon"))


def test_device_time_of_a_library(libsophon, tmp_path):
    """The driver's count becomes each call's own time: 250 µs for each launch, several launches for nets of blocks."""
    model = FakeModel()
    bmodel = write_bmodel(tmp_path / "a.bmodel", model.whole(), *model.blocks(T))
    with Engine.open(libsophon, [bmodel], command=worker_with(FAKE_TPU_US=250)) as engine:
        assert engine.computed_s() is None
        watch = Stopwatch(engine)
        (first,) = first_call(watch, "net_1", TOKENS[:1])
        steps = list(windows(watch, "net_1", TOKENS, depth=T, steps=3, repeats=2))
        calls = list(chunks(watch, "blocks_4", TOKENS, T=T, repeats=2))
    assert first.device_s is None
    assert [sample.device_s for sample in steps] == pytest.approx(6 * [250e-6])
    assert [sample.device_s for sample in calls] == pytest.approx(2 * [(2 + model.layers) * 250e-6])
    for sample in (*steps, *calls):
        assert 0 < sample.launch_s < sample.end_to_end_s


@pytest.mark.parametrize("lacking", [False, True], ids=["counts nothing", "has no such function"])
def test_device_time_that_nobody_tells(libsophon, tmp_path, lacking):
    """The simulator's zeros and an old library's gaps are None: time and memory alike."""
    libraries = fake_board(tmp_path / "old", without=("bm_get_profile", "bm_get_stat")) if lacking else libsophon
    bmodel = write_bmodel(tmp_path / "a.bmodel", FakeModel().whole())
    with Engine.open(libraries, [bmodel]) as engine:
        steps = list(windows(Stopwatch(engine), "net_1", TOKENS, depth=0, steps=2, repeats=1))
        assert engine.memory().device_bytes is None
    assert [sample.device_s for sample in steps] == [None, None]
    assert all(sample.end_to_end_s > 0 for sample in steps)


def test_memory_of_a_library(libsophon, tmp_path):
    """What the device has in use, and what the worker itself had at most, whatever its parent had."""
    bmodel = write_bmodel(tmp_path / "a.bmodel", FakeModel(vocabulary=1 << 21).whole())
    with Engine.open(libsophon, [bmodel], command=worker_with(FAKE_MEMORY=1 << 30)) as engine:
        memory = engine.memory()
        resident = Path(f"/proc/{engine._worker.pid}/statm").read_text().split()[1]
    assert 8 << 20 <= memory.device_bytes < 16 << 20
    assert 0.9 * 4096 * int(resident) <= memory.host_peak_bytes < 128 << 20  # the kernel counts roughly
