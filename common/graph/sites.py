"""The places of a traced network where a tensor can be quantized."""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from common.graph.operators import ACTIVATIONS, CARRIES, CONSTANT, LINEAR, is_quantizer_target, operator_of
from common.graph.shapes import propagate


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
    calls: dict[str, list[torch.fx.Node]] = {}
    for node in graph_module.graph.nodes:
        if view.layer(node) is not None:
            calls.setdefault(node.target, []).append(node)
    sites: list[Site] = []
    for node in graph_module.graph.nodes:
        layer = view.layer(node)
        if layer is not None and node is calls[node.target][0]:
            sites += _layer_sites(view, node.target, layer, calls[node.target], shapes)
        if view.operator(node) in (CARRIES, CONSTANT) or node.name not in shapes or not view.depends_on_input(node):
            continue
        if not shapes[node.name].is_floating_point():
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
    view: "GraphView", name: str, layer: nn.Module, calls: list[torch.fx.Node], shapes: dict[str, Tensor]
) -> list[Site]:
    word = view.operator(calls[0])
    names = tuple(call.name for call in calls)
    sources = [view.source(call.args[0]) for call in calls]
    shape = tuple(shapes[view.argument(calls[0]).name].shape[1:])
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


class GraphView:
    """Questions about the nodes of one graph, quantizers looked through."""

    def __init__(self, graph_module: torch.fx.GraphModule) -> None:
        self.graph_module = graph_module
        self._operators = {node: operator_of(node, graph_module) for node in graph_module.graph.nodes}
        self._non_negative: dict[torch.fx.Node, bool] = {}
        self._depends: dict[torch.fx.Node, bool] = {}
        for node in graph_module.graph.nodes:
            self._depends[node] = node.op == "placeholder" or any(self._depends[n] for n in node.all_input_nodes)
            self._non_negative[node] = self._compute_non_negative(node)

    def operator(self, node: torch.fx.Node) -> str:
        return self._operators[node]

    def depends_on_input(self, node: torch.fx.Node) -> bool:
        return self._depends[node]

    def non_negative(self, node: torch.fx.Node) -> bool:
        return self._non_negative[node]

    def layer(self, node: torch.fx.Node) -> nn.Module | None:
        """The Conv2d or Linear that the node calls."""
        if node.op != "call_module" or is_quantizer_target(node.target):
            return None
        module = self.graph_module.get_submodule(str(node.target))
        return module if isinstance(module, (nn.Conv2d, nn.Linear)) else None

    def argument(self, node: torch.fx.Node) -> torch.fx.Node:
        """The first argument, in front of its quantizer if it has one."""
        argument = node.args[0]
        while is_quantizer_target(argument.target):
            argument = argument.args[0]
        return argument

    def source(self, node: torch.fx.Node) -> torch.fx.Node:
        """The node that computes what `node` carries: back through reshapes, slices and dropouts."""
        while self.operator(node) == CARRIES and node.all_input_nodes:
            node = node.all_input_nodes[0]
        return node

    def consumers(self, node: torch.fx.Node) -> list[torch.fx.Node]:
        """Nodes that read the tensor, forward through reshapes, slices and dropouts; sizes are not reads."""
        return self._readers(node, lambda n: self.operator(n) == CARRIES)

    def _readers(self, node: torch.fx.Node, look_through: Callable[[torch.fx.Node], bool]) -> list[torch.fx.Node]:
        found: dict[torch.fx.Node, None] = {}
        for user in node.users:
            if user.op != "output" and self.operator(user) == CONSTANT:
                continue
            for reader in self._readers(user, look_through) if look_through(user) else [user]:
                found[reader] = None
        return list(found)

    def is_activation_output(self, node: torch.fx.Node) -> bool:
        """The rule of `activation_outputs`, for one node."""
        word = self.operator(node)
        readers = self.consumers(node)
        if all(reader.op == "output" for reader in readers):
            return False
        if word in ACTIVATIONS:
            return True
        if word in LINEAR and all(self.operator(reader) == "batch_norm" for reader in readers):
            return False
        if word in LINEAR or word in ("batch_norm", "add", "mul"):
            return not all(self._absorbs(reader) for reader in self._readers(node, self._between))
        return False

    def _between(self, node: torch.fx.Node) -> bool:
        return self.operator(node) in (CARRIES, "batch_norm", "pool", "pad")

    def _absorbs(self, node: torch.fx.Node) -> bool:
        if self.operator(node) in ACTIVATIONS:
            return True
        return self.operator(node) == "add" and all(
            self.operator(reader) in ACTIVATIONS for reader in self._readers(node, self._between)
        )

    def _compute_non_negative(self, node: torch.fx.Node) -> bool:
        word = self._operators[node]
        inputs = [self._non_negative[n] for n in node.all_input_nodes if self._depends[n]]
        if word in ("relu", "relu6", "sigmoid", "hardsigmoid", "softmax", "softplus"):
            return True
        if word in ("hardtanh", "clamp") and _lower_bound(node, self.graph_module) >= 0:
            return True
        if word == "pad" and _padding_value(node, self.graph_module) < 0:
            return False
        if word in (CARRIES, "pool", "pad", "concat", "add", "mul", "clamp", "hardtanh"):
            return bool(inputs) and all(inputs) and all(self._depends[n] for n in node.all_input_nodes)
        return False


def _module_attribute(node: torch.fx.Node, graph_module: torch.fx.GraphModule, name: str, default: Any) -> Any:
    return getattr(graph_module.get_submodule(str(node.target)), name, default) if node.op == "call_module" else default


def _literal(value: Any, default: float) -> float:
    return float(value) if isinstance(value, (int, float)) else default


def _lower_bound(node: torch.fx.Node, graph_module: torch.fx.GraphModule) -> float:
    """The smallest value a clamp or hardtanh can give, as far as the graph says."""
    if node.op == "call_module":
        return _literal(_module_attribute(node, graph_module, "min_val", None), -math.inf)
    name = "min_val" if node.target is F.hardtanh else "min"
    position = node.args[1] if len(node.args) > 1 else None
    default = -1.0 if node.target is F.hardtanh else -math.inf
    if (node.target if isinstance(node.target, str) else node.target.__name__).startswith("clamp_max"):
        return -math.inf
    return _literal(node.kwargs.get(name, position), default)


def _padding_value(node: torch.fx.Node, graph_module: torch.fx.GraphModule) -> float:
    """What constant padding writes; reflection and replication write values of the input, here 0."""
    if node.op == "call_module":
        return _literal(_module_attribute(node, graph_module, "value", 0.0), 0.0)
    return _literal(node.kwargs.get("value", node.args[3] if len(node.args) > 3 else 0.0), 0.0)
