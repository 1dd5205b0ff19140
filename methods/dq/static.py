"""Cells of DQ's tables that need no training: functions found by their names, of the inputs of the cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hardware import static
from hardware.network import network


def weight_size(inputs: Mapping[str, Any]) -> float:
    """Weights and the classifier's bias at `weight_bits`, in units of `unit_bytes`; batch norm is not counted."""
    bits = inputs["weight_bits"]
    convention = static.SizeConvention(bias_bits=bits, batch_norm_values=0)
    return static.model_size(network(inputs["network"]), bits, convention) / inputs["unit_bytes"]


def activation_size(inputs: Mapping[str, Any]) -> float:
    """Largest ReLU output of one image, or all of them (`over`: max or sum), in units of `unit_bytes`."""
    elements = static.relu_outputs(network(inputs["network"]))
    return static.activation_size(elements, inputs["activation_bits"], inputs["over"]) / inputs["unit_bytes"]
