"""Learning-rate factors."""

import pytest
import torch

from common.errors import UserError
from common.training.optimizers import decay, learning_rate_factor, with_factors


@pytest.mark.parametrize(
    "name, expected", [("constant", [1, 1, 1, 1]), ("cosine", [1.0, 0.8535534, 0.5, 0.0])]
)
def test_decay(name, expected):
    factor = decay(name, total_steps=8)
    assert [factor(step) for step in (0, 2, 4, 8)] == pytest.approx(expected, abs=1e-6)


def test_cosine_stays_at_zero_after_its_end():
    assert decay("cosine", 8)(9) == 0.0


def test_unknown_schedules_are_refused():
    with pytest.raises(UserError, match="unknown learning_rate_schedule 'step': choose constant or cosine"):
        decay("step", 8)


def test_every_group_has_its_own_factor():
    a, b = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([{"params": [a], "lr": 1.0}, {"params": [b], "lr": 10.0}])
    given = with_factors(optimizer, [lambda step: 1 / (1 + step), lambda step: float(step < 4)], batches_per_step=2)
    assert given["optimizer"] is optimizer and given["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(3):
        rates.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        given["lr_scheduler"]["scheduler"].step()
    assert rates == [[1.0, 10.0], [pytest.approx(1 / 3), 10.0], [0.2, 0.0]]


@pytest.mark.parametrize(
    "name, drops, expected",
    [
        ("linear", (), [1, 0.75, 0.5, 0]),
        ("constant", (0.25, 0.5), [1, 0.1, 0.01, 0.01]),
        ("linear", (0.3,), [1, 0.75, 0.05, 0]),
        ("cosine", (), [1.0, 0.8535534, 0.5, 0.0]),
    ],
)
def test_drops_and_the_straight_line(name, drops, expected):
    factor = learning_rate_factor(name, 8, drops)
    assert [factor(step) for step in (0, 2, 4, 8)] == pytest.approx(expected, abs=1e-6)


def test_a_drop_outside_of_the_training_is_refused():
    with pytest.raises(UserError, match="learning_rate_drops are fractions of the training between 0 and 1, got 30"):
        learning_rate_factor("constant", 100, [30])
