"""DoReFa-Net: weights through tanh, activations in [0, 1] (Zhou et al. 2016, arXiv:1606.06160)."""

from methods.dorefa.module import DoReFa

KIND = "trainer"
METHOD = DoReFa
LOWEST_WIDTH = {"weight_bit_width": 1, "activation_bit_width": 1}  # settings with the fewest bits

__all__ = ["KIND", "LOWEST_WIDTH", "METHOD", "DoReFa"]
