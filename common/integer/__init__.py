"""Integer arithmetic: fixed-point multipliers and layers on integer codes."""

from common.integer.fixed_point import FixedPoint, Rounding, rescale, rounding_divide, rounding_shift
from common.integer.layers import (
    Grid,
    IntegerAdd,
    IntegerAveragePool2d,
    IntegerConcat,
    IntegerConv2d,
    IntegerLinear,
    Regrid,
    Requantize,
    integer_weight,
    max_pool2d,
)

__all__ = [
    "FixedPoint",
    "Grid",
    "IntegerAdd",
    "IntegerAveragePool2d",
    "IntegerConcat",
    "IntegerConv2d",
    "IntegerLinear",
    "Regrid",
    "Requantize",
    "Rounding",
    "integer_weight",
    "max_pool2d",
    "rescale",
    "rounding_divide",
    "rounding_shift",
]
