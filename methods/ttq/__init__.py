"""TTQ: trained ternary quantization (Zhu et al. 2017, arXiv:1612.01064)."""

from methods.ttq.module import TTQ

KIND = "trainer"
METHOD = TTQ
LOWEST_WIDTH = {"weight_bit_width": 2}  # settings with the fewest bits

__all__ = ["KIND", "LOWEST_WIDTH", "METHOD", "TTQ"]
