"""PROFIT: 4-bit MobileNets by progressive freezing (Park and Yoo 2020, arXiv:2008.04693)."""

from methods.profit.module import PROFIT

KIND = "trainer"
METHOD = PROFIT
LOWEST_WIDTH = {"weight_bit_width": 2, "activation_bit_width": 2}  # settings with the fewest bits

__all__ = ["KIND", "LOWEST_WIDTH", "METHOD", "PROFIT"]
