"""Bit-widths that fall: each stage at its step, again after a resume, the last one in any case."""

from types import SimpleNamespace

import pytest

from common.callbacks.progressive_bits import ProgressiveBitWidths

STAGES = [(0.0, 32, 8), (0.25, 8, 4), (0.5, 4, 4)]


def run(callback, first, last, total_steps):
    calls = []
    module = SimpleNamespace(step=first, total_steps=total_steps)
    module.set_bit_widths = lambda weight, activation, images: calls.append((module.step, weight, activation, images))
    callback.setup(None, module, "fit")
    while module.step < last:
        callback.on_train_batch_start(None, module, ("images", "labels"), 0)
        module.step += 1
        callback.on_train_batch_end(None, module, None, ("images", "labels"), 0)
    return calls


def test_stages_begin_at_their_fraction_of_the_training():
    calls = run(ProgressiveBitWidths(STAGES), 0, 8, 8)
    assert calls == [(0, 32, 8, "images"), (2, 8, 4, "images"), (4, 4, 4, "images")]


def test_a_resumed_run_sets_the_widths_of_its_stage():
    assert run(ProgressiveBitWidths(STAGES), 3, 8, 8) == [(3, 8, 4, "images"), (4, 4, 4, "images")]


def test_a_run_too_short_for_all_stages_ends_at_the_last():
    calls = run(ProgressiveBitWidths([(0.0, 32, 8), (0.8, 4, 4)]), 0, 2, 2)
    assert calls == [(0, 32, 8, "images"), (2, 4, 4, "images")]


@pytest.mark.parametrize("begins", [[], [0.1], [0.0, 0.5, 0.2], [0.0, 1.0]])
def test_stages_must_begin_at_0_and_ascend(begins):
    with pytest.raises(ValueError, match="stages must begin at 0 and ascend below 1"):
        ProgressiveBitWidths([(begin, 4, 4) for begin in begins])


def test_a_module_without_widths_is_refused():
    with pytest.raises(TypeError, match="SimpleNamespace has no set_bit_widths"):
        ProgressiveBitWidths(STAGES).setup(None, SimpleNamespace(), "fit")
