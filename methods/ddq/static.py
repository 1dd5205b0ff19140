"""Cells of DDQ's tables that need no training: functions found by their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hardware.network import network
from hardware.static import MIB, SizeConvention, model_size


def size_with_batch_norm(inputs: Mapping[str, Any]) -> float:
    """MiB of all weights at one width, with float32 biases and two float32 numbers per batch norm channel."""
    return model_size(network(inputs["network"]), inputs["weight_bits"], SizeConvention()) / MIB


def size_of_weights(inputs: Mapping[str, Any]) -> float:
    """MiB of the weights alone, those of the first and the last layer at 8 bits or at the others' larger width."""
    outer = max(8, inputs["weight_bits"])
    convention = SizeConvention(first_layer_bits=outer, last_layer_bits=outer, bias_bits=0, batch_norm_values=0)
    return model_size(network(inputs["network"]), inputs["weight_bits"], convention) / MIB


def memory_ratio(inputs: Mapping[str, Any]) -> float:
    """Bits of the weights over those at the target width; one width for all layers."""
    return inputs["weight_bits"] / inputs["target_bits"]
