"""HMQ: mixed precision with power-of-two thresholds through Gumbel-softmax (Habi et al. 2020, arXiv:2007.09952)."""

from methods.hmq.module import HMQ

KIND = "trainer"
METHOD = HMQ

__all__ = ["HMQ", "KIND", "METHOD"]
