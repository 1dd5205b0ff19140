"""BNN: weights and activations +-1 (Hubara et al. 2016, arXiv:1602.02830)."""

from methods.bnn.module import BNN

KIND = "trainer"
METHOD = BNN
LOWEST_WIDTH = {"weight_bit_width": 1, "activation_bit_width": 1}  # settings with the fewest bits

__all__ = ["BNN", "KIND", "LOWEST_WIDTH", "METHOD"]
