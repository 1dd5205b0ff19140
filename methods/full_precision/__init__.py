"""Full-precision training: the network that quantization starts from."""

from methods.full_precision.module import FullPrecision

KIND = "trainer"
METHOD = FullPrecision

__all__ = ["KIND", "METHOD", "FullPrecision"]
