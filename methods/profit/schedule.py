"""PROFIT's stages, as a pure function of its settings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from common.compression import FLOAT_BITS


@dataclass(frozen=True)
class Stage:
    """A part of the training.

    Attributes:
        begin: fraction of the training.
        weight_bit_width, activation_bit_width: 32 is float.
        norms_only: only batch norm learns.
        measures: the instability of the layers is sampled.
        frozen: share of the layers, the most unstable ones, whose weights stay.
    """

    begin: float
    weight_bit_width: int
    activation_bit_width: int
    norms_only: bool = False
    measures: bool = False
    frozen: float = 0.0


@dataclass(frozen=True)
class Epochs:
    """Lengths relative to each other; a run stretches or shortens all of them alike. Defaults: public code.

    Attributes:
        full_precision: fine-tuning before anything is quantized.
        norms: of batch norm alone, at the beginning and at the end of every width.
        width: of every width but the weights' last.
        instability: with the weights' last width, while the instability is sampled.
        phase: of each of the last three phases.
    """

    full_precision: float = 15
    norms: float = 5
    width: float = 15
    instability: float = 5
    phase: float = 15

    def __post_init__(self) -> None:
        if min(self.full_precision, self.norms, self.width) < 0 or min(self.instability, self.phase) <= 0:
            raise ValueError(f"epochs must not be negative, nor instability and phase 0, got {self}")


def stages(
    weight_bit_width: int, activation_bit_width: int, progressive: Sequence[int] = (8, 5), epochs: Epochs = Epochs()
) -> list[Stage]:
    """Float; activations width after width; then weights; at the weights' last width three phases.

    Args:
        weight_bit_width, activation_bit_width: the last ones; 32 leaves them alone.
        progressive: widths before the last one; those that are not above it are left out.
        epochs: lengths of the parts; one of length 0 is left out.
    """
    plan: list[tuple[float, Stage]] = []

    def add(length: float, weight: int, activation: int, **settings: float) -> None:
        if length > 0:
            plan.append((length, Stage(0.0, weight, activation, **settings)))

    add(epochs.full_precision, FLOAT_BITS, FLOAT_BITS)
    for width in _widths(activation_bit_width, progressive):
        add(epochs.norms, FLOAT_BITS, width, norms_only=True)
        add(epochs.width, FLOAT_BITS, width)
        add(epochs.norms, FLOAT_BITS, width, norms_only=True)
    for width in _widths(weight_bit_width, progressive):
        last = width == weight_bit_width
        add(epochs.norms, width, activation_bit_width, norms_only=True)
        if last:
            add(epochs.instability, width, activation_bit_width, measures=True)
        for frozen in (0.0, 1 / 3, 2 / 3) if last else (0.0,):
            add(epochs.phase if last else epochs.width, width, activation_bit_width, frozen=frozen)
        add(epochs.norms, width, activation_bit_width, norms_only=True)
    total, begun, placed = sum(length for length, _ in plan), 0.0, []
    for length, stage in plan:
        placed.append(replace(stage, begin=begun / total))
        begun += length
    return placed


def _widths(last: int, progressive: Sequence[int]) -> list[int]:
    if last >= FLOAT_BITS:
        return []
    return [*sorted((width for width in set(progressive) if width > last), reverse=True), last]
