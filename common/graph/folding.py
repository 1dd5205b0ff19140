"""Batch norms folded into the layers before them.

W' = W gamma / sqrt(var + eps), b' = beta + (b - mean) gamma / sqrt(var + eps), per output channel (Jacob et al. 2018,
arXiv 1712.05877, eq. 14).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.fx
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.errors import UserError
from common.graph.sharing import replace_module, share_state
from common.graph.surgery import quantizers
from common.graph.view import GraphView


@dataclass(frozen=True)
class NormStatistics:
    """What a folded batch norm says about its layer's output: N(mean_c, std_c^2) over images and positions.

    Attributes:
        mean: beta, shape (C,).
        std: |gamma|, shape (C,).
    """

    mean: Tensor
    std: Tensor


@torch.no_grad()
def fold_batch_norms(graph_module: torch.fx.GraphModule) -> dict[str, NormStatistics]:
    """Fold every batch norm whose running statistics follow a Conv2d or Linear, in place; outputs in eval mode stay.

    The batch norm's node and module go, the layer gets weights and a bias of its own: the network that was traced keeps
    its parameters. A batch norm stays where it or the layer is called more than once, and where the layer's output
    has another reader.

    Args:
        graph_module: a traced network without quantizers (ranges are those of the folded weights).
    Returns:
        layer -> statistics of its output, for the layers that a batch norm was folded into, in execution order.
    Raises:
        UserError: the network holds quantizers.
    """
    check_unquantized(graph_module)
    view = GraphView(graph_module)
    calls: dict[int, int] = {}
    for node in graph_module.graph.nodes:
        if node.op == "call_module":
            module = graph_module.get_submodule(str(node.target))
            calls[id(module)] = calls.get(id(module), 0) + 1
    statistics: dict[str, NormStatistics] = {}
    for name, nodes in view.layer_calls().items():
        users = list(nodes[0].users)
        if len(users) != 1 or users[0].op != "call_module":
            continue
        norm = graph_module.get_submodule(str(users[0].target))
        if not isinstance(norm, _BatchNorm) or norm.running_mean is None:
            continue
        if calls[id(norm)] != 1 or calls[id(view.layer(nodes[0]))] != 1:
            continue
        statistics[name] = _fold(own_parameters(graph_module, name, bias=True), norm)
        users[0].replace_all_uses_with(nodes[0])
        graph_module.graph.erase_node(users[0])
        _remove(graph_module, norm)
    graph_module.graph.lint()
    graph_module.recompile()
    return statistics


def own_parameters(graph_module: torch.fx.GraphModule, name: str, bias: bool = False) -> nn.Module:
    """Give the layer called `name` copies of its parameters; the layer is returned.

    It is a new object, in the old one's place: the network that was traced shares neither.

    Args:
        bias: make one, of zeros, if the layer has none.
    """
    layer = graph_module.get_submodule(name)
    own = share_state(layer, type(layer))
    for key, parameter in layer._parameters.items():
        if parameter is not None:
            own._parameters[key] = nn.Parameter(parameter.detach().clone(), requires_grad=parameter.requires_grad)
    if bias and own.bias is None:
        own._parameters["bias"] = nn.Parameter(own.weight.detach().new_zeros(own.weight.shape[0]))
    replace_module(graph_module, layer, own)
    return own


def check_unquantized(graph_module: torch.fx.GraphModule) -> None:
    """UserError if the network holds quantizers."""
    if present := quantizers(graph_module):
        raise UserError(
            f"site {next(iter(present))} is quantized already; change weights first, then insert quantizers"
        )


def _fold(layer: nn.Module, norm: _BatchNorm) -> NormStatistics:
    std = (norm.running_var.double() + norm.eps).sqrt()
    beta = torch.zeros_like(std) if norm.bias is None else norm.bias.detach().double()
    gamma = torch.ones_like(std) if norm.weight is None else norm.weight.detach().double()
    factor = gamma / std
    weight, bias = layer.weight, layer.bias
    weight.copy_(weight.double() * factor.reshape(-1, *[1] * (weight.dim() - 1)))
    bias.copy_(beta + (bias.double() - norm.running_mean.double()) * factor)
    return NormStatistics(beta.to(weight.dtype), gamma.abs().to(weight.dtype))


def _remove(graph_module: torch.fx.GraphModule, norm: nn.Module) -> None:
    """Take the module out under all its names; children that the graph calls (timm's activations) stay as they are."""
    shell = nn.Module()
    shell.training, shell._modules = norm.training, norm._modules
    for parent in list(graph_module.modules()):
        for name, child in list(parent._modules.items()):
            if child is not norm:
                continue
            if norm._modules:
                parent._modules[name] = shell
            else:
                del parent._modules[name]
