"""ABC-Net: sums of binary weights and binary activations (Lin et al. 2017, arXiv:1711.11294)."""

from methods.abc_net.module import ABCNet

KIND = "trainer"
METHOD = ABCNet
LOWEST_WIDTH = {"weight_bit_width": 1, "activation_bit_width": 1}  # settings with the fewest bits

__all__ = ["KIND", "LOWEST_WIDTH", "METHOD", "ABCNet"]
