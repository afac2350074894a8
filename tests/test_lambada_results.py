"""Per-document results: exact, on disk batch by batch, and never lost, doubled or mistaken for others."""

import math

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.lambada.results import Header, Key, Result, ResultsError, open_results, read
from harness.lambada.run import score_documents
from harness.targets.base import Score


def a_key(**changes):
    """What determines some results."""
    fields = {
        "checkpoint_sha256": "c0ffee",
        "codec": "world",
        "target": {"target": "torch", "torch": "2"},
        "data_sha256": "da7a",
        "protocol": 1,
    }
    return Key(**(fields | changes))


def a_header(**changes):
    """The first line of some results."""
    return Header(key=a_key(**changes), started="now", harness="0", checkpoint="../my model", description="a test")


def a_result(name, *log_probs, correct=False):
    """A result of such log-probabilities."""
    return Result.of(name, Score(np.array(log_probs), np.array([correct] * len(log_probs))))


class Counts:
    """A scorer whose answer is in the prompt; it remembers each batch, and fails after some."""

    identity = {"target": "counts"}  # noqa: RUF012 - as the protocol has it
    description = "a test"

    def __init__(self, batch, batches=math.inf):
        """Work for so many batches."""
        self.batch = batch
        self.batches = batches
        self.asked = []

    def score(self, texts, state=None):
        """Answer -id for document id."""
        assert state is None
        if len(self.asked) == self.batches:
            raise KeyboardInterrupt
        self.asked.append([prompt[0] for prompt, _ in texts])
        return [Score(np.array([-float(prompt[0])]), np.array([True])) for prompt, _ in texts]


def texts(n):
    """Documents 0 to n - 1."""
    return {str(i): ([i], [0]) for i in range(n)}


def test_results_come_back(tmp_path):
    """What was added is there when the file is opened again, and for whoever reads it."""
    results = [a_result("a", -1.5, -2.25), a_result("b", -0.1, correct=True)]
    with open_results(tmp_path / "new", a_header()) as opened:
        opened.add(results)
    with open_results(tmp_path / "new", a_header()) as opened:
        assert [opened["a"], opened["b"]] == results
        assert "a" in opened
        assert "c" not in opened
    assert read(opened.path) == (a_header(), tuple(results))


def test_a_result_by_hand():
    """The log-likelihood is the sum over the word's tokens; the word is right where all of them are the top ones."""
    score = Score(np.array([-1.5, -2.25]), np.array([True, False]))
    assert Result.of("a", score) == Result(id="a", log_likelihood=-3.75, correct=False, log_probs=(-1.5, -2.25))
    assert Result.of("a", Score(score.log_probs, np.array([True, True]))).correct


# To -1e300: of larger numbers no sum of two can be held, and no log-probability comes near.
@given(log_probs=st.lists(st.floats(-1e300, 0) | st.sampled_from([math.nan, -math.inf]), min_size=1))
def test_every_bit_is_kept(log_probs):
    """Numbers come back from the file bit for bit; NaN and infinite ones as null, and with them the sum."""
    result = a_result("a", *log_probs)
    again = msgspec.json.decode(msgspec.json.encode(result), type=Result)
    assert again == result
    assert again.log_probs == tuple(x if math.isfinite(x) else None for x in log_probs)
    assert (again.log_likelihood is None) == any(not math.isfinite(x) for x in log_probs)


def test_a_nan_is_no_number():
    """A NaN is null in the file, never a number."""
    assert b'"log_likelihood":null' in msgspec.json.encode(a_result("a", -1.0, math.nan))


def test_a_cut_last_line_is_dropped(tmp_path):
    """Wherever a kill cuts the last write, every whole line stays, byte for byte, and the file can be gone on with."""
    with open_results(tmp_path, a_header()) as opened:
        opened.add([a_result("a", -1.0)])
        before = opened.path.read_bytes()
        opened.add([a_result("b", -2.0), a_result("c", -3.0)])
    whole = opened.path.read_bytes()
    for size in range(len(whole)):
        opened.path.write_bytes(whole[:size])
        kept = whole[: whole[:size].rfind(b"\n") + 1]
        with open_results(tmp_path, a_header()) as again:
            missing = [name for name in "abc" if name not in again]
            assert again.path.read_bytes() == (kept or before.splitlines(keepends=True)[0])
            again.add([a_result(name, -float("abc".index(name) + 1)) for name in missing])
        assert again.path.read_bytes() == whole


def test_a_readers_view_of_a_cut_line(tmp_path):
    """A reader leaves an incomplete last line out and does not change the file."""
    with open_results(tmp_path, a_header()) as opened:
        opened.add([a_result("a", -1.0), a_result("b", -1.0)])
    cut = opened.path.read_bytes()[:-5]
    opened.path.write_bytes(cut)
    assert [result.id for result in read(opened.path)[1]] == ["a"]
    assert opened.path.read_bytes() == cut


@pytest.mark.parametrize(
    "change",
    [
        {"checkpoint_sha256": "c0ffef"},
        {"codec": "world-bytes"},
        {"target": {"target": "torch", "torch": "3"}},
        {"data_sha256": "da7b"},
        {"protocol": 2},
        {"state_sha256": "57a7e"},
    ],
    ids=lambda change: next(iter(change)),
)
def test_other_numbers_have_another_file(tmp_path, change):
    """Whatever determines the numbers is part of the name: results of one are never taken for the other's."""
    with open_results(tmp_path, a_header()) as one, open_results(tmp_path, a_header(**change)) as other:
        one.add([a_result("a", -1.0)])
        assert "a" not in other
        assert one.path != other.path


def test_the_name_is_readable_and_safe(tmp_path):
    """Model and target are in front; the order of a dictionary does not matter."""
    name = a_header().file_name
    assert name.startswith("..-my-model-torch-")
    assert (tmp_path / name).resolve().parent == tmp_path.resolve()
    assert name == a_header(target={"torch": "2", "target": "torch"}).file_name


def test_two_at_once(tmp_path):
    """While results are open nobody else gets them; afterwards they do."""
    with open_results(tmp_path, a_header()) as opened:
        with pytest.raises(ResultsError, match="another process") as caught, open_results(tmp_path, a_header()):
            pass
        assert str(opened.path) in str(caught.value)
    with open_results(tmp_path, a_header()):
        pass


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda lines: [lines[0], b"{}\n", lines[2]], ":2: damaged"),
        (lambda lines: [lines[0], b"\x00" * 9 + b"\n", lines[2]], ":2: damaged"),
        (lambda lines: [lines[0], b"\xff\n", lines[2]], ":2: damaged"),
        (lambda lines: [lines[0], b"\n", lines[2]], ":2: damaged"),
        (lambda lines: lines[1:], ":1: should be the header"),
        (lambda lines: [*lines, lines[1]], "twice"),
        (lambda lines: [*lines, lines[0]], "twice"),
        (lambda lines: [lines[0].replace(b"c0ffee", b"decade"), *lines[1:]], "header is of other results"),
        (lambda lines: [lines[0].replace(b'"schema":1', b'"schema":2'), *lines[1:]], "schema 2"),
        (lambda lines: [lines[0].replace(b'"protocol"', b'"protokoll"'), *lines[1:]], ":1: damaged"),
    ],
    ids=[
        "other-line",
        "zeros",
        "no-utf8",
        "empty-line",
        "no-header",
        "doubled",
        "header-twice",
        "key",
        "schema",
        "field",
    ],
)
def test_a_damaged_file_is_named(tmp_path, spoil, message):
    """Damage inside the file is an error that names file and line, and says what to do."""
    with open_results(tmp_path, a_header()) as opened:
        opened.add([a_result("a", -1.0), a_result("b", -2.0)])
    opened.path.write_bytes(b"".join(spoil(opened.path.read_bytes().splitlines(keepends=True))))
    with pytest.raises(ResultsError, match=message) as caught, open_results(tmp_path, a_header()):
        pass
    assert str(opened.path) in str(caught.value)
    assert "remove the file" in str(caught.value)


def test_no_place_to_write(tmp_path):
    """A folder that is a file, and a file that vanished under us, are errors that name it."""
    (tmp_path / "file").touch()
    with pytest.raises(ResultsError, match="file"), open_results(tmp_path / "file", a_header()):
        pass
    with pytest.raises(ResultsError, match="cannot be read"):
        read(tmp_path / "nothing.jsonl")
    with open_results(tmp_path / "new", a_header()) as opened:
        opened.path.unlink()
        opened.path.mkdir()
        with pytest.raises(ResultsError, match="cannot be written"):
            opened.add([a_result("a", -1.0)])


@given(n=st.integers(1, 12), batch=st.integers(1, 5), batches=st.integers(0, 12), more=st.integers(0, 5))
def test_no_document_is_scored_twice(tmp_path_factory, n, batch, batches, more):
    """Interrupted after any batch, all batches before are kept; then, or with more documents, only the rest is done."""
    folder = tmp_path_factory.mktemp("runs")
    first, second = Counts(batch, batches), Counts(batch)
    interrupted = batches * batch < n
    try:
        with open_results(folder, a_header()) as results:
            score_documents(first, texts(n), results, say=str)
    except KeyboardInterrupt:
        assert interrupted
    else:
        assert not interrupted
    with open_results(folder, a_header()) as results:
        advanced = []
        done = score_documents(second, texts(n + more), results, say=str, advance=advanced.append)
    assert [result.log_likelihood for result in done] == [-float(i) for i in range(n + more)]
    assert [i for asked in first.asked + second.asked for i in asked] == list(range(n + more))
    assert [len(asked) for asked in second.asked] == advanced
    assert all(len(asked) == batch for asked in second.asked[:-1])


def test_a_line_every_hundred_documents(tmp_path):
    """Whatever the batch is and wherever it goes on, a line at each hundred tells the figures so far."""
    lines = []
    with open_results(tmp_path, a_header()) as results:
        score_documents(Counts(30), texts(130), results, say=lines.append)
    assert lines == [f"100 of 130: perplexity {math.exp(49.5):.6g}, accuracy 100.00%"]
    with open_results(tmp_path, a_header()) as results:
        score_documents(Counts(30), texts(301), results, say=lines.append)
    assert [line.partition(":")[0] for line in lines] == ["100 of 130", "200 of 301", "300 of 301"]


def test_a_broken_target_is_told_on_the_way(tmp_path):
    """NaN among the first hundred documents shows in the first line, not after hours."""

    class Broken(Counts):
        """Gives a NaN for document 7."""

        def score(self, texts, state=None):
            """Answer, but for document 7."""
            scores = super().score(texts, state)
            return [
                Score(np.array([math.nan]), one.is_top) if prompt == [7] else one
                for one, (prompt, _) in zip(scores, texts, strict=True)
            ]

    lines = []
    with open_results(tmp_path, a_header()) as results:
        score_documents(Broken(100), texts(100), results, say=lines.append)
    assert len(lines) == 1
    assert "1 of 100 documents" in lines[0]
    assert "first 7:" in lines[0]
