"""Networks with a multiple of their filters (WRPN, Mishra et al. 2018), by class path.

`model: common.models.widened.resnet20` with `model_args: {width: 2}`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.errors import UserError
from common.models.cifar_resnet import PaddedShortcut
from common.models.registry import build_model, model_info


def widen(network: nn.Module, width: int) -> nn.Module:
    """Multiply the channels between a network's first and last layer by `width`; new layers have new initial weights.

    The input of the first layer and the output of the last one stay, in the order in which the network defines them.

    Args:
        network: convolutions, batch norm and linear layers; it is changed.
        width: 1 leaves it as it is.

    Raises:
        UserError: a width below 1.
    """
    if width < 1:
        raise UserError(f"width must be at least 1, got {width}")
    layers = [(name, m) for name, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    first, last = layers[0][0], layers[-1][0]
    for name, module in [] if width == 1 else list(network.named_modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            before, after = 1 if name == first else width, 1 if name == last else width
            network.set_submodule(name, _layer(module, before, after))
        elif isinstance(module, _BatchNorm):
            settings = (module.eps, module.momentum, module.affine, module.track_running_stats)
            network.set_submodule(name, type(module)(module.num_features * width, *settings))
        elif isinstance(module, PaddedShortcut):
            module.pad_before *= width
            module.pad_after *= width
    return network


def _layer(layer: nn.Conv2d | nn.Linear, before: int, after: int) -> nn.Module:
    """A new layer with `before` times the inputs and `after` times the outputs, drawn like the old one."""
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        new: nn.Module = nn.Linear(layer.in_features * before, layer.out_features * after, bias)
        fans = layer.in_features / new.in_features
    else:
        groups = layer.groups * before if layer.groups == layer.in_channels > 1 else layer.groups
        channels = (layer.in_channels * before, layer.out_channels * after)
        shape = (layer.kernel_size, layer.stride, layer.padding, layer.dilation, groups, bias, layer.padding_mode)
        new = nn.Conv2d(*channels, *shape)
        fans = layer.weight.shape[1] / new.weight.shape[1]
    with torch.no_grad():  # the spread of the network's own initialisation, for the new number of inputs
        new.weight.normal_(0, float(layer.weight.std()) * fans**0.5)
        if bias:
            new.bias.zero_()
    return new


def widened(base: str, width: int = 1, num_classes: int | None = None, **kwargs: Any) -> nn.Module:
    """The network `base` of the registry with `width` times its filters; kwargs are the base's."""
    return widen(build_model(base, num_classes=num_classes, **kwargs), width)


def digits_net(width: int = 1, num_classes: int = 10) -> nn.Module:
    """19,130 parameters at width 1, 75,114 at 2."""
    return widened("digits_net", width, num_classes)


def resnet20(width: int = 1, num_classes: int = 10) -> nn.Module:
    """0.27 M parameters at width 1, 1.07 M at 2."""
    return widened("resnet20", width, num_classes)


def resnet34(width: int = 1, num_classes: int = 1000) -> nn.Module:
    """torchvision's: 21.8 M parameters at width 1."""
    return widened("resnet34", width, num_classes)


for _build in (digits_net, resnet20, resnet34):
    _build.model_info = {  # type: ignore[attr-defined]
        k: v for k, v in dataclasses.asdict(model_info(_build.__name__)).items() if k != "name"
    }
