"""The model that ships does what its card claims."""

import pytest

from harness.checkpoints import DEFAULT, open_model
from harness.tasks import NAMES, questions
from harness.training.card import CLAIMED, LENGTHS, ability, tuned_ability
from harness.training.recipe import read_recipe
from harness.training.sources import open_sources
from reference.fast import Fast
from reference.training.tasks import Kind
from tokenizer.codec import Codec


@pytest.fixture(scope="module")
def model():
    """The shipped model, with its tuned state."""
    return open_model(None)


def test_claims(model):
    """At most 2.6 bits per byte of held-out text; at least 99 % exact at every claimed length."""
    recipe = read_recipe(DEFAULT.with_name("tiny.toml"))
    fast = Fast(model.checkpoint)
    found = ability(fast, fast, open_sources(recipe, model.codec).held_out, model.codec, n=100)
    assert found.bits_per_byte <= 2.6
    for kind, longest in CLAIMED.items():
        for length in LENGTHS[kind]:
            if length <= longest:
                assert found.exact[kind][length] >= 0.99, (kind, length)


def test_tuned_state(model):
    """The tuned state lifts its task from below 10 % to above 95 %."""
    fast = Fast(model.checkpoint)
    before, after = (tuned_ability(fast, state, model.codec, n=100) for state in (None, model.tuned.state))
    assert sum(before.values()) / len(before) < 0.10
    assert sum(after.values()) / len(after) > 0.95


def test_size():
    """At most 3 MB in the repository."""
    assert DEFAULT.stat().st_size <= 3_000_000


def test_questions_of_the_suite(model):
    """The suite asks every task, from the zero state behind an end of text and from the tuned state; no bias to one."""
    assert {question.task for question in model.questions} == {kind.value for kind in LENGTHS}
    assert {question.task for question in model.tuned.questions} == {Kind.BARE_REVERSE.value}
    assert all(question.prompt[0] == 0 for question in model.questions)
    assert all(question.prompt[0] != 0 for question in model.tuned.questions)


def test_the_reference_answers_the_questions_of_the_suite(model):
    """A bmodel is never asked what the reference itself gets wrong."""
    fast = Fast(model.checkpoint)
    for asked, state in ((model.questions, None), (model.tuned.questions, model.tuned.state)):
        for question, scored in zip(asked, fast.score([(one.prompt, one.answer) for one in asked], state), strict=True):
            assert scored.is_top.all(), question


def test_questions_are_reproducible():
    """The same questions for the same seed, others for another; ids of a checkpoint without text among them."""
    lengths = dict.fromkeys(NAMES, (3, 5))
    assert questions(lengths, Codec.WORLD_BYTES) == questions(lengths, Codec.WORLD_BYTES)
    assert questions(lengths, Codec.WORLD_BYTES) != questions(lengths, Codec.WORLD_BYTES, seed=1)
    (first, _) = questions({"reverse-ids": (4, 4)}, Codec.PLAIN)
    assert first.prompt[-1] == 10
    assert first.answer == (*reversed(first.prompt[:-1]), 11)
