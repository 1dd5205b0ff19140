"""What cost models know of a network: its layer table, tensors and batch norms, at one input size."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.errors import UserError
from common.graph import Layer, Site, find_sites, layer_table, trace, uncounted_operators
from common.graph.operators import CONSTANT
from common.graph.view import GraphView
from common.models import build_model, model_info

# Functions that multiply activations and are no layer, beyond those that the layer table knows by name.
_PRODUCTS = frozenset(
    {
        "scaled_dot_product_attention", "multi_head_attention_forward", "einsum", "tensordot", "mm", "mv", "addmm",
        "addmv", "baddbmm", "addbmm", "inner", "dot", "vdot", "bilinear", "multi_dot", "chain_matmul", "cdist",
        "convolution", "conv_transpose1d", "conv_transpose3d",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Network:
    """A network at one input size.

    Attributes:
        model: name, as the registry knows it.
        input_shape: (C, H, W) of one image.
        layers: every Conv2d and Linear in the order of first calls.
        batch_norm_channels: channels of all batch norms that run, together.
        sites: every place that a bit policy can name.
    """

    model: str
    input_shape: tuple[int, ...]
    layers: tuple[Layer, ...]
    batch_norm_channels: int
    sites: tuple[Site, ...]

    @property
    def num_weights(self) -> int:
        return sum(layer.num_weights for layer in self.layers)

    @property
    def num_biases(self) -> int:
        return sum(layer.num_biases for layer in self.layers)

    @property
    def num_macs(self) -> int:
        return sum(layer.num_macs for layer in self.layers)

    @property
    def site_names(self) -> set[str]:
        return {site.name for site in self.sites}

    def layer(self, name: str) -> Layer:
        """
        Raises:
            KeyError: no such layer.
        """
        return {layer.name: layer for layer in self.layers}[name]


def network(model: str, input_shape: tuple[int, ...] | None = None, **model_args: Any) -> Network:
    """A network by name: ours, torchvision's, timm's or a class path (common.models.build_model), weights aside.

    Args:
        input_shape: (C, H, W); None takes the size that the network was published at.
        model_args: further arguments of the network, such as num_classes.

    Raises:
        UserError: unknown name, unknown or impossible input size, an operator that has no place in a layer table.
    """
    return _network(model, tuple(input_shape) if input_shape else None, tuple(sorted(model_args.items())))


@lru_cache(maxsize=64)
def _network(model: str, input_shape: tuple[int, ...] | None, model_args: tuple[tuple[str, Any], ...]) -> Network:
    shape = input_shape or model_info(model).input_shape
    if shape is None:
        raise UserError(f"{model} states no input size; give one (C, H, W)")
    if min(shape) < 1:
        raise UserError(f"{model}: input sizes must be at least 1, got {'x'.join(map(str, shape))}")
    with torch.random.fork_rng([]):
        module = build_model(model, **dict(model_args))
    return describe(model, module, tuple(shape))


def describe(model: str, module: nn.Module, input_shape: tuple[int, ...]) -> Network:
    """The same of a module at hand; `model` is its name in policies.

    Raises:
        UserError: an input that does not fit; an operator that has no place in a layer table, by name.
    """
    example = torch.zeros(2, *input_shape)
    try:
        traced = trace(module.eval(), example)
    except (RuntimeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        shape = "x".join(map(str, input_shape))
        raise UserError(f"{model} does not run on an input of {shape}: {str(error).splitlines()[0]}") from None
    view = GraphView(traced)
    if uncounted := uncounted_operators(traced) | _products(view):
        name, kind = next(iter(uncounted.items()))
        raise UserError(f"{model}: no cost model for {name!r} ({kind}); only Conv2d and Linear layers can be costed")
    if empty := [name for name in view.layer_calls() if not traced.get_parameter(f"{name}.weight").numel()]:
        raise UserError(f"{model}: layer {empty[0]!r} has no weights")
    layers = layer_table(traced, example)
    if not layers:
        raise UserError(f"{model} has no Conv2d or Linear layer")
    modules = {traced.get_submodule(str(node.target)) for node in traced.graph.nodes if node.op == "call_module"}
    return Network(
        model=model,
        input_shape=tuple(input_shape),
        layers=layers,
        batch_norm_channels=sum(m.num_features for m in modules if isinstance(m, _BatchNorm)),
        sites=find_sites(traced, example),
    )


def _products(view: GraphView) -> dict[str, str]:
    """Calls of `_PRODUCTS` on what depends on the network's input: node -> function."""
    found = {}
    for node in view.graph_module.graph.nodes:
        if node.op in ("call_function", "call_method") and view.operator(node) != CONSTANT:
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
            if name in _PRODUCTS:
                found[node.name] = name
    return found
