"""BinaryConnect: weights +-H by sign or at random (Courbariaux et al. 2015, arXiv:1511.00363)."""

from methods.binary_connect.module import BinaryConnect

KIND = "trainer"
METHOD = BinaryConnect
LOWEST_WIDTH = {"weight_bit_width": 1}  # settings with the fewest bits

__all__ = ["KIND", "LOWEST_WIDTH", "METHOD", "BinaryConnect"]
