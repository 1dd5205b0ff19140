"""Cells of the lecture's tables that need no training: functions found by their names."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hardware.network import network
from hardware.static import FLOAT_BITS, compression_rate

# rows are output channels
EXAMPLE = ((2.09, -0.98, 1.48, 0.09), (0.05, -0.14, -1.08, 2.12), (-0.91, 1.92, 0.0, -1.03), (1.87, 0.0, 1.53, 1.49))


def q_min(inputs: Mapping[str, Any]) -> float:
    """Smallest signed integer of `bits` bits."""
    return -(2 ** (inputs["bits"] - 1))


def q_max(inputs: Mapping[str, Any]) -> float:
    """Largest signed integer of `bits` bits."""
    return 2 ** (inputs["bits"] - 1) - 1


def weight_memory_saving(inputs: Mapping[str, Any]) -> float:
    """Bits of a float32 weight over those of a quantized one."""
    return compression_rate(inputs["weight_bits"])


def operation_saving(inputs: Mapping[str, Any]) -> float:
    """Operations per term of a real dot product (a multiplication, an addition) over those that are left."""
    return 2 / inputs["operations"]


def wrpn_compute_cost(inputs: Mapping[str, Any]) -> float:
    """MACs x (weight bits + activation bits) over the same of the float network of width 1.

    First and last layer stay at 32 bits. The first keeps its filters; all others have `width` times as many, the last
    one its classes: multiplications grow by width^2, by width in the second layer and in the last.
    """
    first, second, *inner, last = network(inputs["network"]).layers
    width = inputs["width"]
    precision = (inputs["weight_bits"] + inputs["activation_bits"]) / (2 * FLOAT_BITS)
    quantized = width * second.num_macs + width**2 * sum(layer.num_macs for layer in inner)
    total = first.num_macs + second.num_macs + sum(layer.num_macs for layer in inner) + last.num_macs
    return (first.num_macs + width * last.num_macs + precision * quantized) / total


def laplace_clip(inputs: Mapping[str, Any]) -> float:
    """Clipping value a, in units of b, of smallest error for Laplace(0, b): a e^a = 3 * 4^bits (ACIQ).

    The error is 2 e^-a from clipping and a^2 / (3 * 4^bits) from 2^bits uniform cells.
    """
    target = 3 * 4 ** inputs["bits"]
    a = math.log(target)
    for _ in range(50):  # Newton on a + log a = log target
        a -= (a + math.log(a) - math.log(target)) / (1 + 1 / a)
    return a


def scale(inputs: Mapping[str, Any]) -> float:
    """Scale of the example at 2 bits, one for the whole matrix."""
    return _linear(inputs["scheme"])[1].item()


def zero_point(inputs: Mapping[str, Any]) -> float:
    """Integer that stands for zero in the example at 2 bits."""
    return _linear(inputs["scheme"])[2].item()


def frobenius_error(inputs: Mapping[str, Any]) -> float:
    """Frobenius norm of the example's quantization error at 2 bits."""
    weights = _example()
    return torch.linalg.norm(weights - _linear(inputs["scheme"])[0]).item()


def threshold(inputs: Mapping[str, Any]) -> float:
    """Magnitude up to which weights become zero: 0.7 mean |w| in TWN, none with binary weights."""
    return 0.7 * _example().abs().mean().item() if inputs["scheme"] == "ternary" else 0.0


def level(inputs: Mapping[str, Any]) -> float:
    """Positive level of the binary or ternary example: mean magnitude of what is not zero, or 1 without a scale."""
    return 1.0 if inputs["scheme"] == "binary" else _example().abs()[_kept(inputs)].mean().item()


def squared_error(inputs: Mapping[str, Any]) -> float:
    """Sum of squared errors of the binary or ternary example; the sign of zero is +1."""
    weights = _example()
    signs = torch.where(weights >= 0, 1.0, -1.0) * _kept(inputs)
    return (weights - level(inputs) * signs).square().sum().item()


def _kept(inputs: Mapping[str, Any]) -> Tensor:
    magnitudes = _example().abs()
    return (
        magnitudes > threshold(inputs)
        if inputs["scheme"] == "ternary"
        else torch.ones_like(magnitudes, dtype=torch.bool)
    )


def _example() -> Tensor:
    return torch.tensor(EXAMPLE, dtype=torch.float64)


def _linear(scheme: str) -> tuple[Tensor, Tensor, Tensor]:
    """(quantized example, scale, zero point) at 2 bits."""
    weights, low, high = _example(), -2, 1
    if scheme == "asymmetric_per_tensor":
        step = (weights.max() - weights.min()) / (high - low)
        zero = torch.round(low - weights.min() / step)
    else:
        largest = weights.abs().amax(1, keepdim=True) if scheme == "symmetric_per_channel" else weights.abs().max()
        step, zero = largest / high, torch.zeros(())
    return step * (torch.clamp(torch.round(weights / step) + zero, low, high) - zero), step, zero
