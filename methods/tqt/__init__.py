"""TQT: trained quantization thresholds (Jain et al. 2020, arXiv:1903.08066)."""

from methods.tqt.module import TQT

KIND = "trainer"
METHOD = TQT
LOWEST_WIDTH = {"weight_bit_width": 2, "activation_bit_width": 2}  # settings with the fewest bits

__all__ = ["KIND", "LOWEST_WIDTH", "METHOD", "TQT"]
