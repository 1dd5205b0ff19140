"""Deep Compression's weight sharing (Han et al. 2016, arXiv:1510.00149)."""

from methods.deep_compression.module import DeepCompression

KIND = "trainer"
METHOD = DeepCompression
LOWEST_WIDTH = {"weight_bit_width": 1}  # settings with the fewest bits

__all__ = ["KIND", "LOWEST_WIDTH", "METHOD", "DeepCompression"]
