"""Ranges of weights, which are all known: exact, per tensor or per output channel."""

from __future__ import annotations

import torch
from torch import Tensor

from common.calibration.observers import (
    affine_parameters,
    least_error,
    mse_max_abs,
    set_affine_range,
    set_symmetric_range,
)
from common.quantizers import AffineQuantizer

RULES = ("minmax", "mse", "percentile")


@torch.no_grad()
def fit_weight_grid(
    quantizer: AffineQuantizer, weight: Tensor, rule: str = "minmax", symmetric: bool = True, percentile: float = 99.9
) -> None:
    """Write scale and zero point for a weight tensor into a signed quantizer, per tensor or per channel as it is.

    Args:
        weight: (out, ...).
        rule: "minmax" covers all values; "mse" shrinks that range (both ends by one factor) to the least squared error
            of quantization; "percentile" leaves out the largest magnitudes, or as many at each end.
        symmetric: zero point 0 and the lowest integer unused; otherwise the affine grid of `affine_parameters`.
        percentile: % of the values of a tensor or channel that lie within; values between two are interpolated.
    Raises:
        ValueError: another rule, or a percentile that leaves out half.
    """
    if rule not in RULES:
        raise ValueError(f"rule must be one of {', '.join(RULES)}, got {rule!r}")
    if not 50 < percentile <= 100:
        raise ValueError(f"percentile must be in (50, 100], got {percentile}")
    groups = weight.detach().float().reshape(1 if quantizer.channels is None else quantizer.channels, -1)
    if symmetric:
        if rule == "mse":
            max_abs = mse_max_abs(groups, int(quantizer.bit_width), axis=0)
        else:
            max_abs = quantile(groups.abs(), percentile / 100) if rule == "percentile" else groups.abs().amax(1)
        set_symmetric_range(quantizer, max_abs.reshape(quantizer.scale.shape))
        return
    if rule == "percentile":
        low, high = (quantile(groups, share) for share in (1 - percentile / 100, percentile / 100))
    else:
        low, high = torch.aminmax(groups, dim=1)
    if rule == "mse":
        share = _share_of_least_error(groups, low, high, int(quantizer.quant_min), int(quantizer.quant_max))
        low, high = share * low, share * high
    set_affine_range(quantizer, low.reshape(quantizer.scale.shape), high.reshape(quantizer.scale.shape))


def quantile(groups: Tensor, fraction: float) -> Tensor:
    """The value below which `fraction` of each row lies, (G, n) -> (G,); linear between two values.

    torch.quantile refuses tensors of more than 2^24 values.
    """
    ascending = groups.sort(1).values
    position = fraction * (groups.shape[1] - 1)
    below = min(int(position), groups.shape[1] - 1)
    above = min(below + 1, groups.shape[1] - 1)
    return torch.lerp(ascending[:, below], ascending[:, above], position - below)


def _share_of_least_error(groups: Tensor, low: Tensor, high: Tensor, quant_min: int, quant_max: int) -> Tensor:
    """The factor in (0, 1] of both ends, (G,), with the least squared error on the affine grid of the range."""

    def error(share: Tensor) -> Tensor:
        parts = affine_parameters(share * low, share * high, quant_min, quant_max)
        scale, zero_point = (part[:, None] for part in parts)
        steps = torch.clamp(torch.round(groups / scale), quant_min - zero_point, quant_max - zero_point)
        return (groups - scale * steps).square().mean(1)

    return least_error(error, torch.ones_like(low))
