"""Cells of HAQ's tables that need no training: functions found by their names, of the inputs of the cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hardware.network import network
from hardware.static import MIB, SizeConvention, model_size
from hardware.targets import uniform_cost


def cost(inputs: Mapping[str, Any]) -> float:
    """Latency (ms) or energy (mJ) on `target` with the same widths in every layer."""
    return uniform_cost(inputs["network"], inputs["target"], inputs["weight_bits"], inputs["activation_bits"])


def size(inputs: Mapping[str, Any]) -> float:
    """Model size in MB of 2^20 bytes: weights at `weight_bits`, the rest as the column's inputs say."""
    convention = SizeConvention(
        first_layer_bits=inputs["first_layer_bits"],
        bias_bits=inputs["bias_bits"],
        batch_norm_values=inputs["batch_norm_values"],
    )
    return model_size(network(inputs["network"]), inputs["weight_bits"], convention) / MIB
