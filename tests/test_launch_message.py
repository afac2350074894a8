"""The message that launches a net stays below the firmware's limit, for every size that there is."""

from pathlib import Path

import pytest

from harness.compile_report import facts_of
from harness.sizes import SIZES
from runtime.description import MESSAGE_LIMIT, launch_message_bytes, launch_messages
from tests.blank_report import blank_report


def of_layers(layers):
    """Bytes for a net of one group of commands: ids, logits and three states a layer, in and out."""
    return launch_message_bytes(2 * (1 + 3 * layers))


def test_every_size_fits_without_stacking():
    """The largest sizes have 32 layers; from 34 on, whole graphs have stacked states (tests/test_stacked_state.py)."""
    assert of_layers(32) == 3924  # 3,908 bytes, and 16 for the group
    assert max(of_layers(shape.n_layer) for shape in SIZES.values()) < MESSAGE_LIMIT
    assert [layers for layers in range(1, 64) if of_layers(layers) < MESSAGE_LIMIT][-1] == 33


@pytest.mark.toolchain
def test_a_file_tells_how_long_its_message_is(rwkv_bmodels):
    """Of the model that ships: seven inputs and outputs, one group."""
    assert launch_messages(Path(rwkv_bmodels.prefill)) == {"prefill_16": 28 + 20 * 14 + 16}


@pytest.mark.parametrize(("length", "words"), [(3924, "3,924 bytes"), (4164, "4,164 bytes: TOO LONG, should be below")])
def test_a_report_says_where_it_does_not_fit(length, words):
    """In words that say what to do."""
    report = blank_report(launch_message_bytes=length)
    assert dict(facts_of(report))["message of a launch"].startswith(words)
