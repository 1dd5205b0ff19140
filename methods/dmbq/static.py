"""Cells of DMBQ's tables that need no training: functions found by their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hardware.network import network
from hardware.static import MB, SizeConvention, model_size


def size(inputs: Mapping[str, Any]) -> float:
    """10^6 bytes of a model whose inner layers have `weight_bits` on average, first and last layer `first_last_bits`.

    Biases and two numbers per batch norm channel are float32; scales and coordinates of groups are not counted.
    """
    convention = SizeConvention(inputs["first_last_bits"], inputs["first_last_bits"], bias_bits=32, batch_norm_values=2)
    return model_size(network(inputs["network"]), inputs["weight_bits"], convention) / MB
