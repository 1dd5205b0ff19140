"""Post-training quantization: the lecture's methods, each a setting of one calibrator."""

from methods.ptq.module import PTQ

KIND = "calibrator"
METHOD = PTQ
LOWEST_WIDTH = {"weight_bit_width": 2, "activation_bit_width": 2, "first_last": "same"}  # settings with the fewest bits

__all__ = ["KIND", "LOWEST_WIDTH", "METHOD", "PTQ"]
