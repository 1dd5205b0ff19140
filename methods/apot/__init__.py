"""APoT: additive powers-of-two quantization (Li et al. 2020, arXiv:1909.13144)."""

from methods.apot.module import APoT

KIND = "trainer"
METHOD = APoT
LOWEST_WIDTH = {"weight_bit_width": 2, "activation_bit_width": 2}  # settings with the fewest bits

__all__ = ["KIND", "LOWEST_WIDTH", "METHOD", "APoT"]
