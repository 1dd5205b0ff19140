"""DNAS: differentiable search of a bit-width per block (Wu et al. 2018, arXiv:1812.00090)."""

from methods.dnas.module import DNAS

KIND = "trainer"  # searches and trains in one run
METHOD = DNAS
LOWEST_WIDTH = {"weight_bit_widths": [1]}  # settings with the fewest bits

__all__ = ["DNAS", "KIND", "LOWEST_WIDTH", "METHOD"]
