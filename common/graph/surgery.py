"""Putting quantizers into a traced network, and taking them out again.

Where a quantizer sits says which site it belongs to, so nothing has to be remembered beside the module tree:

    <layer>.weight   module  <layer>.weight_quantizer     the layer becomes a QuantizedConv2d or QuantizedLinear
    <layer>.bias     module  <layer>.bias_quantizer
    <layer>.input    module  <layer>.input_quantizer
    <node>.output    module  activation_quantizers.<node>, called by a node of its own after <node>
"""

import difflib
from collections.abc import Mapping
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.graph.operators import QUANTIZERS, is_quantizer_target
from common.graph.sharing import replace_module, share_state
from common.graph.view import GraphView


class QuantizedConv2d(nn.Conv2d):
    """A convolution that quantizes its input, weight and bias where it holds a quantizer for them.

    Made by `insert_quantizers` from a Conv2d, whose parameters it shares. input: (N, C, H, W).
    """

    input_quantizer: nn.Module | None
    weight_quantizer: nn.Module | None
    bias_quantizer: nn.Module | None

    def forward(self, input: Tensor) -> Tensor:  # the argument's name in torch.nn
        x, weight, bias = _quantized_operands(self, input)
        return self._conv_forward(x, weight, bias)  # keeps padding_mode


class QuantizedLinear(nn.Linear):
    """A linear layer that quantizes its input, weight and bias where it holds a quantizer for them.

    Made by `insert_quantizers` from a Linear, whose parameters it shares. input: (N, ..., in_features).
    """

    input_quantizer: nn.Module | None
    weight_quantizer: nn.Module | None
    bias_quantizer: nn.Module | None

    def forward(self, input: Tensor) -> Tensor:
        x, weight, bias = _quantized_operands(self, input)
        return F.linear(x, weight, bias)


_QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: QuantizedConv2d, nn.Linear: QuantizedLinear}
_LAYER_SITES = ("input", "weight", "bias")  # in the order in which a call quantizes them


def _quantized_operands(layer: Any, x: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    if layer.input_quantizer is not None:
        x = layer.input_quantizer(x)
    weight, bias = layer.weight, layer.bias
    if layer.weight_quantizer is not None:
        weight = layer.weight_quantizer(weight)
    if layer.bias_quantizer is not None and bias is not None:
        bias = layer.bias_quantizer(bias)
    return x, weight, bias


def insert_quantizers(graph_module: torch.fx.GraphModule, site_quantizers: Mapping[str, nn.Module]) -> None:
    """Put each quantizer at its site, in place.

    A quantizer is any module with forward(tensor) -> tensor of the same shape. It is moved to the device of the
    network and set to its train or eval mode. All of a tensor's readers see the quantized tensor; an `.input` site
    touches one layer only. The names of the network's own parameters stay the same.

    Raises:
        UserError: unknown site, site already quantized, or a layer whose weight cannot be replaced. Nothing is
            changed then.
    """
    graph_module = _unwrap(graph_module)
    present = quantizers(graph_module)
    view = GraphView(graph_module)
    layers = {name: graph_module.get_submodule(name) for name in view.layer_calls()}
    nodes = {node.name: node for node in graph_module.graph.nodes if view.is_tensor_node(node)}
    known = [f"{layer}.{part}" for layer in layers for part in _LAYER_SITES] + [f"{name}.output" for name in nodes]
    for site in site_quantizers:
        if site in present:
            raise UserError(f"site {site} is quantized already; remove_quantizers first")
        owner, _, part = site.rpartition(".")
        if part == "output" and owner in nodes:
            continue
        if owner not in layers or part not in _LAYER_SITES:
            close = difflib.get_close_matches(site, known, n=3)
            hint = f"did you mean {', '.join(close)}?" if close else "find_sites lists the sites of a network"
            raise UserError(f"unknown site {site}; {hint}")
        _check_replaceable(owner, layers[owner], part)

    device = next((p.device for p in graph_module.parameters()), None)
    for site, quantizer in site_quantizers.items():
        if device is not None and device.type != "meta":
            quantizer.to(device)
        quantizer.train(graph_module.training)
        owner, _, part = site.rpartition(".")
        if part == "output":
            _insert_after(graph_module, nodes[owner], quantizer)
        else:
            _quantized_layer(graph_module, owner).register_module(f"{part}_quantizer", quantizer)
    graph_module.graph.lint()
    graph_module.recompile()


def quantizers(graph_module: torch.fx.GraphModule) -> dict[str, nn.Module]:
    """Site name -> quantizer, in execution order (a layer's input, weight and bias, then its output)."""
    graph_module = _unwrap(graph_module)
    found: dict[str, nn.Module] = {}
    for node in graph_module.graph.nodes:
        if node.op != "call_module":
            continue
        module = graph_module.get_submodule(node.target)
        if is_quantizer_target(node.target):
            found[f"{node.target.removeprefix(QUANTIZERS + '.')}.output"] = module
        elif isinstance(module, (QuantizedConv2d, QuantizedLinear)):
            for part in _LAYER_SITES:
                if (quantizer := getattr(module, f"{part}_quantizer")) is not None:
                    found.setdefault(f"{node.target}.{part}", quantizer)
    return found


def remove_quantizers(graph_module: torch.fx.GraphModule) -> None:
    """Give the plain network back, in place: quantizers go, parameters keep their present values."""
    graph_module = _unwrap(graph_module)
    for node in list(graph_module.graph.nodes):
        if node.op != "call_module":
            continue
        if is_quantizer_target(node.target):
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)
            continue
        module = graph_module.get_submodule(node.target)
        for plain, quantized in _QUANTIZED.items():
            if isinstance(module, quantized):
                restored = share_state(module, plain)
                for part in _LAYER_SITES:
                    del restored._modules[f"{part}_quantizer"]
                replace_module(graph_module, module, restored)
    if hasattr(graph_module, QUANTIZERS):
        delattr(graph_module, QUANTIZERS)
    graph_module.graph.lint()
    graph_module.recompile()


def _check_replaceable(name: str, layer: nn.Module, part: str) -> None:
    if part == "bias" and layer.bias is None:
        raise UserError(f"unknown site {name}.bias; layer {name} has no bias")
    plain = nn.Conv2d if isinstance(layer, nn.Conv2d) else nn.Linear
    if type(layer).forward not in (plain.forward, _QUANTIZED[plain].forward):
        raise UserError(
            f"cannot quantize {name}.{part}: {type(layer).__name__} has a forward of its own; "
            f"use a plain nn.{plain.__name__}"
        )
    if "weight" not in layer._parameters:
        raise UserError(
            f"cannot quantize {name}.{part}: its weight is computed (weight norm, parametrization); "
            "remove the parametrization first"
        )


def _insert_after(graph_module: torch.fx.GraphModule, node: torch.fx.Node, quantizer: nn.Module) -> None:
    if not hasattr(graph_module, QUANTIZERS):
        container = nn.Module()
        container.training = graph_module.training
        graph_module.add_module(QUANTIZERS, container)
    graph_module.get_submodule(QUANTIZERS).add_module(node.name, quantizer)
    behind = node
    while behind.op == "placeholder" and behind.next.op == "placeholder":
        behind = behind.next
    with graph_module.graph.inserting_after(behind):
        call = graph_module.graph.call_module(f"{QUANTIZERS}.{node.name}", (node,))
    node.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)


def _quantized_layer(graph_module: torch.fx.GraphModule, name: str) -> nn.Module:
    """The Quantized form of the layer called `name`; replaces the plain one, under all its names, if needed."""
    layer = graph_module.get_submodule(name)
    if isinstance(layer, (QuantizedConv2d, QuantizedLinear)):
        return layer
    quantized = share_state(layer, QuantizedConv2d if isinstance(layer, nn.Conv2d) else QuantizedLinear)
    for part in _LAYER_SITES:
        quantized.register_module(f"{part}_quantizer", None)
    replace_module(graph_module, layer, quantized)
    return quantized


def _unwrap(graph_module: nn.Module) -> torch.fx.GraphModule:
    """The traced network inside a `torch.compile` wrapper, or itself."""
    graph_module = getattr(graph_module, "_orig_mod", graph_module)
    if not isinstance(graph_module, torch.fx.GraphModule):
        raise UserError(f"expected a traced network, got {type(graph_module).__name__}; call common.graph.trace first")
    return graph_module
