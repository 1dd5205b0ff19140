"""Cells of HMQ's tables that need no training: functions found by their names, of the inputs of the cell."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch

from common.compression import activation_bit_widths, activation_compression_rate
from common.graph import activation_outputs, find_sites, layer_table, trace
from common.models import build_model, model_info


@cache
def activation_sizes(model: str) -> dict[str, int]:
    """Elements of one sample per quantized activation of the full-size network, in execution order."""
    return _sizes(model)[1]


@cache
def num_weights(model: str) -> int:
    """|Theta|: convolution and linear weights of the full-size network."""
    return _sizes(model)[0]


@cache
def _sizes(model: str) -> tuple[int, dict[str, int]]:
    network = build_model(model).eval()
    example = torch.zeros(1, *model_info(model).input_shape)
    traced = trace(network, example)
    sites = activation_outputs(find_sites(traced, example), traced)
    return sum(layer.num_weights for layer in layer_table(traced, example)), {s.name: s.num_elements for s in sites}


def acr(inputs: Mapping[str, Any]) -> float:
    """ACR: size of the largest activation in float32 over the size of the largest quantized one.

    From the sizes that a compared paper prints; for HMQ 32 max |X| / max b |X| with b(X) = min(floor(U / |X|), 8) from
    R_a (eq. 10, 11), at the full input size.
    """
    if "activation_mb" in inputs:
        return inputs["float_activation_mb"] / inputs["activation_mb"]
    sizes = activation_sizes(inputs["model"])
    return activation_compression_rate(sizes, activation_bit_widths(sizes, inputs["target_acr"]))


def weight_size_ratio(inputs: Mapping[str, Any]) -> float:
    """WCR as float size over quantized size, from the sizes that the compared paper prints."""
    return inputs["float_size_mb"] / inputs["size_mb"]
