"""Operators that binary networks put in place of a network's own, recorded so that a packed file repeats them.

The sign of a tensor behind a ReLU is +1 everywhere. Binary networks therefore have no ReLU in front of a sign, pool
before batch norm (the sign of a maximum is mostly +1), and XNOR-Net multiplies by a map of input scales. `operators`
tells what was changed: {"removed_relus": nodes, "pools_first": nodes, "scaled": layers}.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from common.errors import UserError
from common.graph.operators import CARRIES
from common.graph.sharing import replace_module, share_state
from common.graph.surgery import QuantizedConv2d, QuantizedLinear, _quantized_operands
from common.graph.view import GraphView
from common.quantizers.binary import activation_scale
from common.quantizers.popcount import sign_conv2d, sign_linear

_KEY = "operators"
_RELUS = ("relu", "relu6")
_PASSED = (CARRIES, "pool", "pad", "concat", "add")  # what lies between a ReLU and a layer
_MAX_POOLS = (F.max_pool2d, torch.max_pool2d)


def operators(network: fx.GraphModule) -> dict[str, list[str]]:
    """What was changed in a network; empty where nothing was."""
    return {word: list(names) for word, names in network.meta.get(_KEY, {}).items()}


def repeat_operators(network: fx.GraphModule, changes: Mapping[str, Sequence[str]]) -> None:
    """Make the changes of another network of the same model, in place; quantizers have been inserted.

    Raises:
        UserError: a kind of change or a name that the network does not have.
    """
    for word, names in changes.items():
        if word not in _CHANGES:
            raise UserError(f"unknown change of operators {word!r}: written by a newer version?")
        _CHANGES[word](network, names)


def _record(network: fx.GraphModule, word: str, names: Sequence[str]) -> None:
    if names:
        network.meta.setdefault(_KEY, {}).setdefault(word, []).extend(names)
        network.graph.lint()
        network.recompile()


def _nodes(network: fx.GraphModule, names: Iterable[str]) -> list[fx.Node]:
    found = {node.name: node for node in network.graph.nodes}
    if missing := [name for name in names if name not in found]:
        raise UserError(f"the network has no node {missing[0]}")
    return [found[name] for name in names]


# -- ReLUs and pools in front of signs ---------------------------------------------------------------------------------


def relus_before(network: fx.GraphModule, layers: Collection[str]) -> list[str]:
    """ReLU nodes whose output, pooled, padded, concatenated, added or as it is, is the input of one of the layers.

    What else reads such a ReLU (the addition of a residual block) will read the tensor before it: the blocks become
    x + BN(conv(sign(x))), a stream of real values without ReLU.
    """
    view, found = GraphView(network), {}
    calls = view.layer_calls()
    waiting = [call.all_input_nodes[0] for name in layers for call in calls[name]]
    while waiting:
        node = waiting.pop()
        if not view.non_negative(node) or node in found:
            continue
        word = view.operator(node)
        if word in _RELUS:
            found[node] = None
        elif word in _PASSED:
            waiting += node.all_input_nodes
    return [node.name for node in network.graph.nodes if node in found]


def remove_relus(network: fx.GraphModule, names: Sequence[str]) -> None:
    """Take these nodes out, in place: their readers read what they read."""
    for node in _nodes(network, names):
        node.replace_all_uses_with(node.all_input_nodes[0])
        network.graph.erase_node(node)
    _record(network, "removed_relus", names)


def pools_before(network: fx.GraphModule, layers: Collection[str]) -> list[str]:
    """Max-pool nodes between a batch norm, which nothing else reads, and one of the layers."""
    view, found = GraphView(network), {}
    calls = view.layer_calls()
    for call in (call for name in layers for call in calls[name]):
        pool = view.source(call.all_input_nodes[0])
        norm = pool.all_input_nodes[0] if pool.all_input_nodes else pool
        if _is_max_pool(network, pool) and view.operator(norm) == "batch_norm" and len(norm.users) == 1:
            found[pool.name] = None
    return list(found)


def _is_max_pool(network: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(network.get_submodule(str(node.target)), nn.MaxPool2d)
    return node.op == "call_function" and node.target in _MAX_POOLS


def move_pools_first(network: fx.GraphModule, names: Sequence[str]) -> None:
    """Exchange these max-pool nodes with the batch norms before them, in place: convolution, pool, batch norm, sign."""
    for pool in _nodes(network, names):
        norm = pool.all_input_nodes[0]
        pool.replace_all_uses_with(norm)
        pool.replace_input_with(norm, norm.all_input_nodes[0])
        norm.prepend(pool)
        norm.replace_input_with(pool.all_input_nodes[0], pool)
    _record(network, "pools_first", names)


# -- XNOR-Net's scale of the inputs ------------------------------------------------------------------------------------


class ScaledConv2d(QuantizedConv2d):
    """A convolution of quantized operands times K, the mean |input| of every window (XNOR-Net, eq. 11)."""

    def forward(self, input: Tensor) -> Tensor:
        x, weight, bias = _quantized_operands(self, input)
        scale = activation_scale(input, self.kernel_size, self.stride, self.padding, self.dilation)
        return _biased(self._conv_forward(x, weight, None) * scale, bias)


class ScaledLinear(QuantizedLinear):
    """A linear layer of quantized operands times the mean |input| of every row."""

    def forward(self, input: Tensor) -> Tensor:
        x, weight, bias = _quantized_operands(self, input)
        y = F.linear(x, weight) * input.abs().mean(-1, keepdim=True)
        return y if bias is None else y + bias


def scale_outputs(network: fx.GraphModule, names: Sequence[str]) -> None:
    """Multiply what these quantized layers compute by XNOR-Net's K, in place.

    Raises:
        UserError: a layer without quantizers; a convolution over several groups or with a border other than zeros.
    """
    for name in names:
        layer = network.get_submodule(name)
        if not isinstance(layer, (QuantizedConv2d, QuantizedLinear)):
            raise UserError(f"layer {name} has no quantizers: nothing to scale")
        if isinstance(layer, QuantizedConv2d) and (layer.groups > 1 or layer.padding_mode != "zeros"):
            raise UserError(f"layer {name} has groups or a border that XNOR-Net's scale is not defined for")
        scaled = ScaledConv2d if isinstance(layer, QuantizedConv2d) else ScaledLinear
        replace_module(network, layer, share_state(layer, scaled))
    _record(network, "scaled", names)


_CHANGES = {"removed_relus": remove_relus, "pools_first": move_pools_first, "scaled": scale_outputs}


# -- XNOR and popcount -------------------------------------------------------------------------------------------------


class PopcountConv2d(QuantizedConv2d):
    """A convolution of signs by XNOR and popcount, times the scale of each output channel, for inference."""

    def forward(self, input: Tensor) -> Tensor:
        weight, scale = _signs_and_scale(self)
        y = sign_conv2d(input, weight, self.stride, self.padding, self.dilation, self.groups)
        y = y.to(input.dtype) * scale.reshape(-1, 1, 1)
        if self.scaled:
            y = y * activation_scale(input, self.kernel_size, self.stride, self.padding, self.dilation)
        return _biased(y, self.bias)


class PopcountLinear(QuantizedLinear):
    """A linear layer of signs by XNOR and popcount, times the scale of each output, for inference."""

    def forward(self, input: Tensor) -> Tensor:
        weight, scale = _signs_and_scale(self)
        y = sign_linear(input, weight).to(input.dtype) * scale
        if self.scaled:
            y = y * input.abs().mean(-1, keepdim=True)
        return y if self.bias is None else y + self.bias


def use_popcount(network: fx.GraphModule) -> list[str]:
    """Let every layer of binary weights and inputs count agreeing signs instead of multiplying, in place.

    Args:
        network: in eval mode, such as `load_packed` gives it.

    Returns:
        names of these layers. Sums of signs are exact integers; scales are applied once per output, where the float
        layer adds scaled values and rounds.
    """
    changed = []
    for name in GraphView(network).layer_calls():
        layer = network.get_submodule(name)
        if not isinstance(layer, (QuantizedConv2d, QuantizedLinear)) or not _is_binary(layer):
            continue
        counting = share_state(layer, PopcountConv2d if isinstance(layer, QuantizedConv2d) else PopcountLinear)
        counting.scaled = isinstance(layer, (ScaledConv2d, ScaledLinear))
        replace_module(network, layer, counting)
        changed.append(name)
    network.recompile()
    return changed


@torch.no_grad()
def _is_binary(layer: QuantizedConv2d | QuantizedLinear) -> bool:
    """Whether inputs become +-1 and the weights of each output channel +-a."""
    if layer.input_quantizer is None or getattr(layer, "padding_mode", "zeros") != "zeros":
        return False
    probe = torch.tensor([[-2.0, -0.1, 0.0, 0.1, 2.0]], device=layer.weight.device)
    signs = torch.equal(layer.input_quantizer(probe), torch.where(probe >= 0, 1.0, -1.0))
    weight, scale = _signs_and_scale(layer)
    values = layer.weight if layer.weight_quantizer is None else layer.weight_quantizer(layer.weight)
    return signs and torch.equal(values, weight * scale.reshape(-1, *[1] * (weight.dim() - 1)))


def _signs_and_scale(layer: QuantizedConv2d | QuantizedLinear) -> tuple[Tensor, Tensor]:
    """Signs of the weights and the magnitude of each output channel, (out,)."""
    weight = layer.weight if layer.weight_quantizer is None else layer.weight_quantizer(layer.weight)
    return torch.where(weight >= 0, 1.0, -1.0), weight.flatten(1).abs().amax(1)


def _biased(y: Tensor, bias: Tensor | None) -> Tensor:
    return y if bias is None else y + bias.reshape(-1, 1, 1)
