"""Mean and spread of every output channel given back to a quantized network, from images."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.fx
from torch import Tensor, nn

from common.errors import UserError
from common.graph.bias_correction import walk_together
from common.graph.folding import own_parameters
from common.quantizers import AffineQuantizer

LARGEST = 2.0  # factor of a scale, and the inverse of the smallest


@torch.no_grad()
def match_moments(
    network: torch.fx.GraphModule, reference: torch.fx.GraphModule, batches: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Rescale and shift the outputs of every layer, in place, layer after layer: float means and spreads again.

    Where weights are clipped, outputs have less spread than before. Correcting means alone then makes it worse: with
    the mean where it was and less spread around it, less passes the next ReLU, and from layer to layer the spread dies
    out. Here the scales of a layer's weight grid take a factor per output channel, so that codes stay, and the bias
    what is left of the mean. Factors lie within 1/2 and 2. Of a layer that is called more than once, the first call
    counts; layers without a weight quantizer get their means only.

    Args:
        network: traced network whose weight quantizers are calibrated, affine and per channel; its weights are put on
            their grids.
        reference: the same network without quantizers.
        batches: images, (N, C, H, W) each; their activations are held in memory, both networks' of one layer at a time.
    Returns:
        layer -> factor of each output channel, (out,).
    Raises:
        UserError: a weight quantizer that is not affine and per channel.
    """
    factors: dict[str, Tensor] = {}
    for call in walk_together(network, reference, batches):
        if call.name in factors:
            continue
        layer = own_parameters(network, call.name, bias=True)
        mean, spread = _moments(layer, call.inputs)
        wanted, wanted_spread = _moments(reference.get_submodule(call.name), call.reference_inputs)
        factor = torch.ones_like(mean)
        grid = getattr(layer, "weight_quantizer", None)
        if grid is not None:
            if not isinstance(grid, AffineQuantizer) or grid.channels is None:
                raise UserError(f"layer {call.name} has no scale per output channel to correct its spread with")
            known = (spread > 0) & (wanted_spread > 0)
            factor = torch.where(known, wanted_spread / spread.clamp(min=1e-30), factor).clamp(1 / LARGEST, LARGEST)
            values = grid(layer.weight)
            factor = factor.to(values.dtype)
            layer.weight.copy_(values * factor.reshape(-1, *[1] * (values.dim() - 1)))
            grid.scale *= factor
        before = layer.bias.double()
        layer.bias += (wanted - (mean - before) * factor - before).to(layer.bias.dtype)
        factors[call.name] = factor
    return factors


def _moments(layer: nn.Module, inputs: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each output channel over images and positions, float64, (out,)."""
    axis = 1 if isinstance(layer, nn.Conv2d) else -1
    count, total, squares = 0, 0.0, 0.0
    for x in inputs:
        values = layer(x).double().movedim(axis, 0).flatten(1)
        count, total, squares = count + values.shape[1], total + values.sum(1), squares + values.square().sum(1)
    mean = total / count
    return mean, (squares / count - mean**2).clamp(min=0).sqrt()
