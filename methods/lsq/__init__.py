"""LSQ: learned step size quantization (Esser et al. 2020, arXiv:1902.08153)."""

from methods.lsq.module import LSQ

KIND = "trainer"
METHOD = LSQ
LOWEST_WIDTH = {"weight_bit_width": 2, "activation_bit_width": 2}  # settings with the fewest bits

__all__ = ["KIND", "LOWEST_WIDTH", "LSQ", "METHOD"]
