"""BWN: binary weights with a scale per output channel (Rastegari et al. 2016, arXiv:1603.05279)."""

from methods.bwn.module import BWN

KIND = "trainer"
METHOD = BWN
LOWEST_WIDTH = {"weight_bit_width": 1}  # settings with the fewest bits

__all__ = ["BWN", "KIND", "LOWEST_WIDTH", "METHOD"]
