"""The places of a traced network where a tensor can be quantized."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
import torch.fx
from torch import Tensor, nn

from common.graph.shapes import propagate
from common.graph.view import GraphView


@dataclass(frozen=True)
class Site:
    """One place where a tensor is quantized.

    Attributes:
        name: `<layer>.weight`, `<layer>.bias`, `<layer>.input` (edge) or `<node>.output` (tensor).
        kind: "weight", "bias", "tensor" (the output of one node) or "edge" (what one layer reads).
        shape: of a weight or bias all of it; of a tensor without the batch axis.
        num_elements: product of `shape`: per sample for tensors.
        layer: path of the layer (weight, bias, edge); None for tensors.
        node: the node that computes the tensor (tensor, edge); None for weights and biases.
        operator: what that node does, a word of `common.graph.operators.operator_of`; of a weight, bias: the layer's.
        non_negative: known to hold no value below 0 (ReLU, sigmoid, and what keeps their sign).
        consumers: nodes that read the tensor, looked up through reshapes and dropouts; "output" is the network's
            output. For weights and biases: the calls of the layer.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    num_elements: int
    layer: str | None
    node: str | None
    operator: str
    non_negative: bool
    consumers: tuple[str, ...]


def find_sites(graph_module: torch.fx.GraphModule, example_input: Tensor | tuple[Tensor, ...]) -> tuple[Site, ...]:
    """All sites in execution order: a layer's input, weight and bias stand before its output.

    Reshapes, slices and dropouts carry the site of their input and have none of their own. A layer called twice has
    one weight. Statistics, mode and random state of the network stay as they are; quantizers already inserted do not
    change the result.

    Args:
        example_input: one input batch (N, ...) or a tuple of inputs; only its shape counts.
    """
    shapes = propagate(graph_module, example_input)
    view = GraphView(graph_module)
    calls = view.layer_calls()
    sites: list[Site] = []
    for node in graph_module.graph.nodes:
        layer = view.layer(node)
        if layer is not None and node is calls[node.target][0]:
            sites += _layer_sites(view, node.target, layer, calls[node.target], shapes)
        if not view.is_tensor_node(node) or node.name not in shapes or not shapes[node.name].is_floating_point():
            continue
        shape = tuple(shapes[node.name].shape[1:])
        sites.append(
            Site(
                name=f"{node.name}.output",
                kind="tensor",
                shape=shape,
                num_elements=math.prod(shape),
                layer=None,
                node=node.name,
                operator=view.operator(node),
                non_negative=view.non_negative(node),
                consumers=tuple(user.name for user in view.consumers(node)),
            )
        )
    return tuple(sites)


def _layer_sites(
    view: GraphView, name: str, layer: nn.Module, calls: list[torch.fx.Node], shapes: dict[str, Tensor]
) -> list[Site]:
    word = view.operator(calls[0])
    names = tuple(call.name for call in calls)
    sources = [view.source(call.all_input_nodes[0]) for call in calls]
    shape = tuple(shapes[calls[0].all_input_nodes[0].name].shape[1:])
    edge = Site(
        name=f"{name}.input",
        kind="edge",
        shape=shape,
        num_elements=math.prod(shape),
        layer=name,
        node=sources[0].name,
        operator=view.operator(sources[0]),
        non_negative=all(view.non_negative(source) for source in sources),
        consumers=names,
    )
    parameters = [(kind, getattr(layer, kind)) for kind in ("weight", "bias")]
    return [
        edge,
        *(
            Site(f"{name}.{kind}", kind, tuple(p.shape), p.numel(), name, None, word, False, names)
            for kind, p in parameters
            if p is not None
        ),
    ]


def activation_outputs(sites: Iterable[Site], graph_module: torch.fx.GraphModule) -> tuple[Site, ...]:
    """The tensor sites that most papers quantize: what a fused convolution, batch norm and activation writes.

    - outputs of activation functions, those inside squeeze-and-excitation included;
    - outputs of linear operators (of the batch norm behind them if there is one), additions of two tensors and
      gating products, unless every reader absorbs them: an activation function, or an addition that is itself read
      by activation functions only. (ResNet's third convolution and shortcut are absorbed, MobileNetV2's projections
      and residual sums are not.) Batch norm, pooling and padding between the two are looked through.
    - neither the network's input nor its output.

    Counts: ResNet-50 49, MobileNetV1 27, MobileNetV2 62 (35 ReLU6, 17 projections, 10 residual sums), ResNet-20 19.
    """
    view = GraphView(graph_module)
    nodes = {node.name: node for node in graph_module.graph.nodes}
    return tuple(site for site in sites if site.kind == "tensor" and view.is_activation_output(nodes[str(site.node)]))
