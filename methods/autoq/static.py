"""Cells of AutoQ's tables that need no training: functions found by their names, of the inputs of the cell."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def latency_law(latency_4bit: float, latency_16bit: float) -> tuple[float, float]:
    """(c, k) of c + k b in ms and ms per bit, through the printed latencies of a network at 4/4 and at 16/16 bits."""
    slope = (latency_16bit - latency_4bit) / (16 - 4)
    return latency_4bit - 4 * slope, slope


def latency(inputs: Mapping[str, Any]) -> float:
    """Latency in ms: c + k sqrt(W A) with the constants of the network and average widths W and A."""
    constant, slope = latency_law(*inputs["latencies"][inputs["network"]])
    return constant + slope * math.sqrt(inputs["weight_bits"] * inputs["activation_bits"])
