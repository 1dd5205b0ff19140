"""Cells of AdaBits' table that need no training: functions found by their names.

First and last layer have 8 bits in weights and inputs at every width; biases and clipping levels are not counted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hardware.network import network
from hardware.static import MIB, SizeConvention, bitops, model_size


def size(inputs: Mapping[str, Any]) -> float:
    """MiB of a model of one bit-width: weights, and two float32 numbers per batch norm channel."""
    return model_size(network(inputs["network"]), inputs["weight_bits"], _convention(1)) / MIB


def adaptive_size(inputs: Mapping[str, Any]) -> float:
    """MiB of one model for all of `bit_widths`: 8-bit weights, and the batch norms of every width."""
    return model_size(network(inputs["network"]), 8, _convention(len(inputs["bit_widths"]))) / MIB


def giga_bitops(inputs: Mapping[str, Any]) -> float:
    """10^9 BitOPs of one image: MACs x weight bits x activation bits."""
    return bitops(network(inputs["network"]).layers, inputs["weight_bits"], inputs["activation_bits"], 8) / 1e9


def _convention(num_widths: int) -> SizeConvention:
    return SizeConvention(first_layer_bits=8, last_layer_bits=8, bias_bits=0, batch_norm_values=2 * num_widths)
