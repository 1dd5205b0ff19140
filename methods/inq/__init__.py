"""INQ: incremental network quantization (Zhou et al. 2017, arXiv:1702.03044)."""

from methods.inq.module import INQ

KIND = "trainer"
METHOD = INQ
LOWEST_WIDTH = {"weight_bit_width": 2}  # settings with the fewest bits

__all__ = ["INQ", "KIND", "LOWEST_WIDTH", "METHOD"]
