"""LQ-Nets: learned quantizer bases (Zhang et al. 2018, arXiv:1807.10029)."""

from methods.lq_nets.module import LQNets

KIND = "trainer"
METHOD = LQNets
LOWEST_WIDTH = {"weight_bit_width": 1, "activation_bit_width": 1}  # settings with the fewest bits

__all__ = ["KIND", "LOWEST_WIDTH", "METHOD", "LQNets"]
