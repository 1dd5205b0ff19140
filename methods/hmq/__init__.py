"""HMQ: mixed precision with power-of-two thresholds through Gumbel-softmax (Habi et al. 2020, arXiv:2007.09952)."""

from methods.hmq.module import HMQ

KIND = "trainer"
METHOD = HMQ
LOWEST_WIDTH = {"weight_bit_widths": [1], "target_wcr": 32, "target_acr": 32}  # settings with the fewest bits

__all__ = ["HMQ", "KIND", "LOWEST_WIDTH", "METHOD"]
