"""TWN: ternary weight networks (Li et al. 2016, arXiv:1605.04711)."""

from methods.twn.module import TWN

KIND = "trainer"
METHOD = TWN
LOWEST_WIDTH = {"weight_bit_width": 2}  # settings with the fewest bits

__all__ = ["KIND", "LOWEST_WIDTH", "METHOD", "TWN"]
