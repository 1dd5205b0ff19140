"""Quantization-aware training for integer-only inference (Jacob et al. 2018, arXiv:1712.05877)."""

from methods.qat_int8.module import QATInt8

KIND = "trainer"
METHOD = QATInt8
LOWEST_WIDTH = {"weight_bit_width": 2, "activation_bit_width": 2}  # settings with the fewest bits

__all__ = ["KIND", "LOWEST_WIDTH", "METHOD", "QATInt8"]
