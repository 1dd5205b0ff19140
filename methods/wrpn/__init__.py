"""WRPN: wide reduced-precision networks (Mishra et al. 2018, arXiv:1709.01134)."""

from methods.wrpn.module import WRPN

KIND = "trainer"
METHOD = WRPN
LOWEST_WIDTH = {"weight_bit_width": 1, "activation_bit_width": 1}  # settings with the fewest bits

__all__ = ["KIND", "LOWEST_WIDTH", "METHOD", "WRPN"]
