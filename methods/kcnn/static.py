"""Cells of KCNN's tables that need no training: functions found by their names, of the inputs of the cell.

All are ratios of the float network's count over the quantized one's, for M = `planes` binary planes per kernel. They
follow from the ratios at one plane: counted in `network`, or stated as printed (`one_plane_multiplications`, ...)
where the network is factorized with ranks that are not printed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hardware.network import network
from hardware.static import FLOAT_BITS, MultiBitCounts, multi_bit_counts


def one_plane(inputs: Mapping[str, Any]) -> MultiBitCounts:
    """Ratios at M = 1: A / O multiplications, 1 for additions, 32 N / (N + 32 K) for weights, unless stated."""
    if "one_plane_multiplications" in inputs:
        return MultiBitCounts(
            inputs["one_plane_multiplications"], inputs["one_plane_additions"], inputs["one_plane_weights"]
        )
    return multi_bit_counts(network(inputs["network"]).layers, 1)


def multiplications(inputs: Mapping[str, Any]) -> float:
    """A / (M O): every plane scales its O outputs; A are the float network's multiplications."""
    return one_plane(inputs).multiplications / inputs["planes"]


def additions(inputs: Mapping[str, Any]) -> float:
    """A / (M A' + M (M - 1) O'): A' additions of a plane's convolution and M - 1 of each of its O' outputs."""
    planes, one = inputs["planes"], one_plane(inputs)
    return 1 / (planes / one.additions + planes * (planes - 1) / one.multiplications)


def weights(inputs: Mapping[str, Any]) -> float:
    """32 N / (b N + 32 M K): b bits per weight, one per plane if not stated, and a float32 per plane and kernel."""
    planes = inputs["planes"]
    bits = inputs.get("weight_bits", planes)
    scales = FLOAT_BITS / one_plane(inputs).weights - 1  # 32 K / N
    return FLOAT_BITS / (bits + planes * scales)
