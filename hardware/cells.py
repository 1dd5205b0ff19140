"""Formulas of static cells that the tables of several papers share: functions of the inputs of a cell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hardware.static import compression_rate


def wcr(inputs: Mapping[str, Any]) -> float:
    """W-Comp of one width: 32 / b; first and last layer included, biases, scales and batch norm not counted."""
    return compression_rate(inputs["weight_bits"])


def acr(inputs: Mapping[str, Any]) -> float:
    """A-Comp of one width: 32 / b."""
    return compression_rate(inputs["activation_bits"])


def file_size(inputs: Mapping[str, Any]) -> float:
    """Size in MB of 2^20 bytes: the float network's weight file over W-Comp, the printed one where widths are mixed."""
    return inputs["float_size_mb"] / (inputs["wcr"] if "wcr" in inputs else wcr(inputs))
