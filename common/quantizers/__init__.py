"""Quantizer primitives: pure functions with their gradients, the quantizer contract, encoded tensors."""

from common.quantizers.encoding import AffineEncoding
from common.quantizers.functional import (
    clip,
    fake_quantize,
    integer_range,
    power_of_two_exponent,
    quantize,
    recomputed,
    round_ste,
)
from common.quantizers.modules import AffineQuantizer, PowerOfTwoQuantizer, Quantizer, SymmetricQuantizer, Traits

__all__ = [
    "AffineEncoding",
    "AffineQuantizer",
    "PowerOfTwoQuantizer",
    "Quantizer",
    "SymmetricQuantizer",
    "Traits",
    "clip",
    "fake_quantize",
    "integer_range",
    "power_of_two_exponent",
    "quantize",
    "recomputed",
    "round_ste",
]
