"""Learning-rate schedules as factors of the step, one per parameter group."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from common.errors import UserError

Factor = Callable[[int], float]


def decay(name: str, total_steps: int) -> Factor:
    """Factor of the learning rate at a step: "constant" is 1, "cosine" falls from 1 to 0 over `total_steps`.

    Raises:
        UserError: another name.
    """
    if name == "constant":
        return lambda step: 1.0
    if name == "cosine":
        return lambda step: 0.5 * (1 + math.cos(math.pi * min(step, total_steps) / max(1, total_steps)))
    raise UserError(f"unknown learning_rate_schedule {name!r}: choose constant or cosine")


def learning_rate_factor(name: str, total_steps: int, drops: Sequence[float] = ()) -> Factor:
    """`decay`, or "linear" from 1 to 0, times 0.1 from every fraction of the training in `drops` on.

    Raises:
        UserError: another name; a fraction that is not between 0 and 1.
    """
    if outside := [drop for drop in drops if not 0 < drop < 1]:
        raise UserError(f"learning_rate_drops are fractions of the training between 0 and 1, got {outside[0]}")
    base = _linear(total_steps) if name == "linear" else decay(name, total_steps)
    return lambda step: base(step) * 0.1 ** sum(step >= drop * total_steps for drop in drops)


def _linear(total_steps: int) -> Factor:
    return lambda step: 1 - min(step, total_steps) / max(1, total_steps)


def with_factors(
    optimizer: torch.optim.Optimizer, factors: Sequence[Factor], batches_per_step: int = 1
) -> dict[str, Any]:
    """What `configure_optimizers` returns: group i learns at its own rate times factors[i](training batch).

    Args:
        factors: one per parameter group, of the index of the training batch.
        batches_per_step: training batches per optimizer step.
    """
    lambdas = [lambda step, factor=factor: factor(step * batches_per_step) for factor in factors]
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambdas)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
