"""AIWQ: how much the output of a layer changes with its quantized weights from one step to the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

MIN_VARIANCE = 1e-12  # of a channel whose weights are all zero


def gaussian_divergence(new: Tensor, old: Tensor) -> Tensor:
    """KL(new || old) of the Gaussians with mean and variance of each channel, averaged over the channels; scalar.

    log(s_old / s_new) + (s_new^2 + (m_new - m_old)^2) / (2 s_old^2) - 1/2

    Args:
        new, old: outputs of a layer, (N, C, ...), of the same shape.
    """
    over = [axis for axis in range(new.dim()) if axis != 1]
    (v_new, m_new), (v_old, m_old) = (torch.var_mean(y, over, correction=0) for y in (new, old))
    v_new, v_old = v_new.clamp(min=MIN_VARIANCE), v_old.clamp(min=MIN_VARIANCE)
    return (0.5 * (v_old / v_new).log() + (v_new + (m_new - m_old).square()) / (2 * v_old) - 0.5).mean()


class _Layers(fx.Interpreter):
    """Executes the graph node by node, uncompiled, and compares every watched layer's output under two weights."""

    def __init__(self, network: fx.GraphModule, weights: Mapping[str, tuple[Tensor, Tensor]]) -> None:
        super().__init__(network)
        self.weights, self.found = weights, {site: [] for site in weights}

    def call_module(self, target: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        site = f"{target}.weight"
        if site in self.weights:
            layer = self.fetch_attr(target)
            x = args[0] if layer.input_quantizer is None else layer.input_quantizer(args[0])
            new, old = (_output(layer, x, weight) for weight in self.weights[site])
            self.found[site].append(gaussian_divergence(new, old))
        return super().call_module(target, args, kwargs)


def _output(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """Of a layer without its bias, which would only shift both sides."""
    if isinstance(layer, nn.Conv2d):
        return layer._conv_forward(x, weight, None)
    return F.linear(x, weight).reshape(-1, weight.shape[0])


@torch.no_grad()
def weight_divergences(network: fx.GraphModule, images: Tensor, weights: Mapping[str, tuple[Tensor, Tensor]]) -> Tensor:
    """`gaussian_divergence` of every layer on its present input, (number of layers,).

    The network runs in eval mode, so that its statistics stay as they are, and gets its mode back.

    Args:
        network: traced, with quantizers.
        images: (N, C, H, W).
        weights: weight site -> present and previous quantized weights.
    """
    modes = {module: module.training for module in network.modules()}
    network.eval()
    watcher = _Layers(network, weights)
    watcher.run(images)
    for module, training in modes.items():
        module.training = training
    return torch.stack([torch.stack(values).mean() for values in watcher.found.values()])
