"""HWGQ: half-wave Gaussian quantization (Cai et al. 2017, arXiv:1702.00953)."""

from methods.hwgq.module import HWGQ

KIND = "trainer"
METHOD = HWGQ
LOWEST_WIDTH = {"weight_bit_width": 1, "activation_bit_width": 1}  # settings with the fewest bits

__all__ = ["HWGQ", "KIND", "LOWEST_WIDTH", "METHOD"]
