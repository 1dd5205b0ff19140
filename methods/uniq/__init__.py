"""UNIQ: uniform noise for k-quantile quantization (Baskin et al. 2018, arXiv:1804.10969)."""

from methods.uniq.module import UNIQ

KIND = "trainer"
METHOD = UNIQ
LOWEST_WIDTH = {"weight_bit_width": 1, "activation_bit_width": 1}  # settings with the fewest bits

__all__ = ["KIND", "LOWEST_WIDTH", "METHOD", "UNIQ"]
