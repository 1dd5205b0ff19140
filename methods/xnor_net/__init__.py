"""XNOR-Net: signs of weights and inputs with scales of both (Rastegari et al. 2016, arXiv:1603.05279)."""

from methods.xnor_net.module import XNORNet

KIND = "trainer"
METHOD = XNORNet
LOWEST_WIDTH = {"weight_bit_width": 1, "activation_bit_width": 1}  # settings with the fewest bits

__all__ = ["KIND", "LOWEST_WIDTH", "METHOD", "XNORNet"]
