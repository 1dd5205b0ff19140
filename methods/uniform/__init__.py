"""Uniform quantization at one width: the baseline beside every mixed-precision row."""

from methods.uniform.module import Uniform

KIND = "trainer"
METHOD = Uniform
LOWEST_WIDTH = {"weight_bit_width": 1, "target_acr": 32}  # settings with the fewest bits

__all__ = ["KIND", "LOWEST_WIDTH", "METHOD", "Uniform"]
