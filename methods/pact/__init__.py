"""PACT: parameterized clipping activation (Choi et al. 2018, arXiv:1805.06085)."""

from methods.pact.module import PACT

KIND = "trainer"
METHOD = PACT
LOWEST_WIDTH = {"weight_bit_width": 1, "activation_bit_width": 1}  # settings with the fewest bits

__all__ = ["KIND", "LOWEST_WIDTH", "METHOD", "PACT"]
