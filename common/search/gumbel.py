"""Soft choices among candidates: the Gumbel-softmax and its annealing."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def gumbel_softmax(logits: Tensor, noise: Tensor, temperature: Tensor | float) -> Tensor:
    """softmax((logits + noise) / temperature) over the last axis (Jang et al. 2017, Maddison et al. 2017).

    With Gumbel(0, 1) noise its largest entry is a sample of softmax(logits); at low temperatures it is all of it.

    Args:
        logits: (..., candidates).
        noise: of their shape (`common.random.counter_gumbel`).
        temperature: > 0.
    """
    return torch.softmax((logits + noise) / temperature, dim=-1)


def exponential_temperature(start: float, rate: float, time: float) -> float:
    """start e^(-rate time)."""
    return start * math.exp(-rate * time)
