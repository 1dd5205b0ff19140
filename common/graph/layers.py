"""The layer table: what cost models and compression rates count."""

import math
from dataclasses import dataclass

import torch
import torch.fx
from torch import Tensor, nn

from common.graph.shapes import propagate
from common.graph.view import GraphView


@dataclass(frozen=True)
class Layer:
    """One Conv2d or Linear.

    Attributes:
        name: module path.
        kind: "depthwise" (as many groups as input channels, more than one), "pointwise" (1x1, one group), "conv",
            "linear".
        kernel_size, stride: (height, width); (1, 1) for linear layers.
        input_shape, output_shape: of the first call, without the batch axis.
        num_weights, num_biases: elements of the parameters.
        num_macs: multiply-accumulates for one image, all calls together; biases are not counted.
        input_tensor: name of the tensor site that feeds the first call, back through reshapes and dropouts.
        calls: how often one forward pass runs the layer.
    """

    name: str
    kind: str
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    groups: int
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    num_weights: int
    num_biases: int
    num_macs: int
    input_tensor: str
    has_bias: bool
    calls: int


def layer_table(graph_module: torch.fx.GraphModule, example_input: Tensor | tuple[Tensor, ...]) -> tuple[Layer, ...]:
    """Every Conv2d and Linear that the network calls, in the order of first calls.

    Args:
        example_input: one input batch (N, ...) or a tuple of inputs; only its shape counts.
    """
    shapes = propagate(graph_module, example_input)
    view = GraphView(graph_module)
    return tuple(_layer(view, name, nodes, shapes) for name, nodes in view.layer_calls().items())


def _layer(view: GraphView, name: str, calls: list[torch.fx.Node], shapes: dict[str, Tensor]) -> Layer:
    module = view.layer(calls[0])
    assert isinstance(module, (nn.Conv2d, nn.Linear))
    output_shapes = [tuple(shapes[call.name].shape[1:]) for call in calls]
    weights_per_output = module.weight.numel() // module.weight.shape[0]
    if isinstance(module, nn.Conv2d):
        kind = _kind_of_convolution(module)
        in_channels, out_channels, groups = module.in_channels, module.out_channels, module.groups
        kernel_size, stride = module.kernel_size, module.stride
    else:
        kind = "linear"
        in_channels, out_channels, groups = module.in_features, module.out_features, 1
        kernel_size = stride = (1, 1)
    return Layer(
        name=name,
        kind=kind,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=(kernel_size[0], kernel_size[1]),
        stride=(stride[0], stride[1]),
        groups=groups,
        input_shape=tuple(shapes[calls[0].all_input_nodes[0].name].shape[1:]),
        output_shape=output_shapes[0],
        num_weights=module.weight.numel(),
        num_biases=0 if module.bias is None else module.bias.numel(),
        num_macs=sum(math.prod(shape) for shape in output_shapes) * weights_per_output,
        input_tensor=f"{view.source(calls[0].all_input_nodes[0]).name}.output",
        has_bias=module.bias is not None,
        calls=len(calls),
    )


def _kind_of_convolution(conv: nn.Conv2d) -> str:
    if conv.groups == conv.in_channels and conv.groups > 1:
        return "depthwise"
    return "pointwise" if tuple(conv.kernel_size) == (1, 1) and conv.groups == 1 else "conv"
