"""The layer table: what cost models and compression rates count."""

import math
from dataclasses import dataclass

import torch
import torch.fx
from torch import Tensor, nn

from common.graph.operators import CONSTANT, is_quantizer_target
from common.graph.shapes import propagate
from common.graph.view import GraphView


@dataclass(frozen=True)
class Read:
    """One tensor that a layer reads, or a part of what it reads where tensors are concatenated.

    Attributes:
        names: tensor sites that hold its values, nearest first: pooling, padding and concatenation are looked through,
            because they write values of the width that they read.
        is_image: whether the last of them is the network's input.
    """

    names: tuple[str, ...]
    is_image: bool


@dataclass(frozen=True)
class Layer:
    """One Conv2d or Linear.

    Attributes:
        name: module path.
        kind: "depthwise" (as many groups as input channels, more than one), "pointwise" (1x1, one group), "conv",
            "linear".
        kernel_size, stride, dilation: (height, width); (1, 1) for linear layers.
        input_shapes, output_shapes: of every call, without the batch axis.
        num_weights, num_biases: elements of the parameters.
        num_macs: multiply-accumulates for one image, all calls together; biases are not counted.
        reads: the tensors that its input is made of, over all calls.
    """

    name: str
    kind: str
    in_channels: int
    out_channels: int
    kernel_size: tuple[int, int]
    stride: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    input_shapes: tuple[tuple[int, ...], ...]
    output_shapes: tuple[tuple[int, ...], ...]
    num_weights: int
    num_biases: int
    num_macs: int
    reads: tuple[Read, ...]
    has_bias: bool

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of the first call."""
        return self.input_shapes[0]

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Of the first call."""
        return self.output_shapes[0]

    @property
    def calls(self) -> int:
        """How often one forward pass runs the layer."""
        return len(self.output_shapes)

    @property
    def input_tensor(self) -> str:
        """Name of the tensor site that feeds the first call, back through reshapes and dropouts."""
        return self.reads[0].names[0]


def layer_table(graph_module: torch.fx.GraphModule, example_input: Tensor | tuple[Tensor, ...]) -> tuple[Layer, ...]:
    """Every Conv2d and Linear that the network calls, in the order of first calls.

    Args:
        example_input: one input batch (N, ...) or a tuple of inputs; only its shape counts.
    """
    shapes = propagate(graph_module, example_input)
    view = GraphView(graph_module)
    return tuple(_layer(view, name, nodes, shapes) for name, nodes in view.layer_calls().items())


def uncounted_operators(graph_module: torch.fx.GraphModule) -> dict[str, str]:
    """What multiplies activations and is not in the layer table: node or module path -> kind of operator.

    Transposed, one- and three-dimensional convolutions, convolutions written as functions, recurrent and attention
    modules, products of two activations. Normalization and element-wise scaling do not count.
    """
    view, found = GraphView(graph_module), {}
    for node in graph_module.graph.nodes:
        if view.layer(node) is not None or is_quantizer_target(node.target):
            continue
        word = view.operator(node)
        if word in ("conv", "linear", "matmul"):
            is_module = node.op == "call_module"
            found[str(node.target) if is_module else node.name] = (
                type(graph_module.get_submodule(str(node.target))).__name__ if is_module else word
            )
        elif word != CONSTANT and node.op == "call_module":
            module = graph_module.get_submodule(str(node.target))
            if any(p.ndim > 1 for p in module.parameters()):  # scales and slopes of normalizations are vectors
                found[str(node.target)] = type(module).__name__
    return found


def _layer(view: GraphView, name: str, calls: list[torch.fx.Node], shapes: dict[str, Tensor]) -> Layer:
    module = view.layer(calls[0])
    assert isinstance(module, (nn.Conv2d, nn.Linear))
    output_shapes = tuple(tuple(shapes[call.name].shape[1:]) for call in calls)
    weights_per_output = module.weight.numel() // module.weight.shape[0]
    if isinstance(module, nn.Conv2d):
        kind = _kind_of_convolution(module)
        in_channels, out_channels, groups = module.in_channels, module.out_channels, module.groups
        kernel_size, stride, dilation = module.kernel_size, module.stride, module.dilation
    else:
        kind = "linear"
        in_channels, out_channels, groups = module.in_features, module.out_features, 1
        kernel_size = stride = dilation = (1, 1)
    return Layer(
        name=name,
        kind=kind,
        in_channels=in_channels,
        out_channels=out_channels,
        kernel_size=(kernel_size[0], kernel_size[1]),
        stride=(stride[0], stride[1]),
        dilation=(dilation[0], dilation[1]),
        groups=groups,
        input_shapes=tuple(tuple(shapes[call.all_input_nodes[0].name].shape[1:]) for call in calls),
        output_shapes=output_shapes,
        num_weights=module.weight.numel(),
        num_biases=0 if module.bias is None else module.bias.numel(),
        num_macs=sum(math.prod(shape) for shape in output_shapes) * weights_per_output,
        reads=tuple(dict.fromkeys(read for call in calls for read in _reads(view, call.all_input_nodes[0]))),
        has_bias=module.bias is not None,
    )


def _reads(view: GraphView, node: torch.fx.Node) -> list[Read]:
    """The tensors that a node's output is made of."""
    source = view.source(node)
    word = view.operator(source)
    name = f"{source.name}.output"
    if word not in ("pool", "pad", "concat"):
        return [Read((name,), is_image=word == "input")]
    inputs = [n for n in source.all_input_nodes if view.operator(n) != CONSTANT]
    if word != "concat":
        inputs = inputs[:1]
    return [Read((name, *read.names), read.is_image) for n in inputs for read in _reads(view, n)]


def _kind_of_convolution(conv: nn.Conv2d) -> str:
    if conv.groups == conv.in_channels and conv.groups > 1:
        return "depthwise"
    return "pointwise" if tuple(conv.kernel_size) == (1, 1) and conv.groups == 1 else "conv"
