"""A schedule of two phases, the first one in cycles, as pure functions of the step."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CyclicSchedule:
    """Steps 0 .. search_steps-1 in `cycles` equal cycles, then fine-tuning up to total_steps.

    Attributes:
        total_steps, search_steps: training batches of both phases, of the first one.
        cycles: number of cycles of the first phase; where they do not divide it, cycles differ by one step.
    """

    total_steps: int
    search_steps: int
    cycles: int

    def __post_init__(self) -> None:
        if not 0 <= self.search_steps <= self.total_steps:
            raise ValueError(f"search_steps must be in [0, {self.total_steps}], got {self.search_steps}")
        if self.cycles < 1:
            raise ValueError(f"cycles must be at least 1, got {self.cycles}")

    @property
    def cycle_steps(self) -> float:
        """Length of a cycle in steps."""
        return self.search_steps / self.cycles

    def phase(self, step: int) -> int:
        """1 in the search, 2 in fine-tuning."""
        return 1 if step < self.search_steps else 2

    def cycle(self, step: int) -> int:
        """Index of the cycle; the last one from the end of the search on."""
        if step >= self.search_steps:
            return self.cycles - 1
        return step * self.cycles // self.search_steps

    def step_in_cycle(self, step: int) -> int:
        """Steps since the first one of the cycle."""
        first = -(-self.cycle(step) * self.search_steps // self.cycles)
        return step - first


def equal_steps(start: float, target: float, count: int, index: int) -> float:
    """Entry min(index, count - 1) of `count` equally spaced values from start to target."""
    if count == 1:
        return target
    return start + (target - start) * min(index, count - 1) / (count - 1)
