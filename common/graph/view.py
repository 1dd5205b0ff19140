"""Questions about the nodes of a graph: what they compute, who reads it, whose values they carry."""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import nn

from common.graph.operators import ACTIVATIONS, CARRIES, CONSTANT, LINEAR, is_quantizer_target, operator_of


class GraphView:
    """Questions about the nodes of one graph, quantizers looked through."""

    def __init__(self, graph_module: torch.fx.GraphModule) -> None:
        self.graph_module = graph_module
        self._operators: dict[torch.fx.Node, str] = {}
        self._non_negative: dict[torch.fx.Node, bool] = {}
        for node in graph_module.graph.nodes:
            word = operator_of(node, graph_module)
            if node.op != "placeholder" and all(self._operators[n] == CONSTANT for n in node.all_input_nodes):
                word = CONSTANT  # sizes, parameters and what is computed from them alone
            elif word in ("add", "mul") and any(self._operators[n] == CONSTANT for n in node.all_input_nodes):
                word = "other"  # a bias or a gain, not a residual addition or a gate
            self._operators[node] = word
            self._non_negative[node] = self._compute_non_negative(node)

    def operator(self, node: torch.fx.Node) -> str:
        """A word of `operator_of`; CONSTANT also for all that does not depend on the network's input."""
        return self._operators[node]

    def is_tensor_node(self, node: torch.fx.Node) -> bool:
        """Whether the node's output can be a tensor site (its shape and dtype permitting)."""
        return self.operator(node) not in (CARRIES, CONSTANT)

    def non_negative(self, node: torch.fx.Node) -> bool:
        """Whether the node's output is known to hold no value below 0."""
        return self._non_negative[node]

    def layer(self, node: torch.fx.Node) -> nn.Module | None:
        """The Conv2d or Linear that the node calls."""
        if node.op != "call_module" or is_quantizer_target(node.target):
            return None
        module = self.graph_module.get_submodule(str(node.target))
        return module if isinstance(module, (nn.Conv2d, nn.Linear)) else None

    def layer_calls(self) -> dict[str, list[torch.fx.Node]]:
        """Path of each Conv2d and Linear -> the nodes that call it, in execution order."""
        calls: dict[str, list[torch.fx.Node]] = {}
        for node in self.graph_module.graph.nodes:
            if self.layer(node) is not None:
                calls.setdefault(node.target, []).append(node)
        return calls

    def source(self, node: torch.fx.Node) -> torch.fx.Node:
        """The node that computes what `node` carries: back through reshapes, slices and dropouts."""
        while self.operator(node) == CARRIES:
            node = next(n for n in node.all_input_nodes if self.operator(n) != CONSTANT)
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
        inputs = [n for n in node.all_input_nodes if self._operators[n] != CONSTANT]
        if word in ("relu", "relu6", "sigmoid", "hardsigmoid", "softmax", "softplus"):
            return True
        if word in ("hardtanh", "clamp") and _lower_bound(node, self.graph_module) >= 0:
            return True
        if word == "pad" and _padding_value(node, self.graph_module) < 0:
            return False
        if word in ("concat", "add", "mul"):  # all of them: the sign of a parameter is not known
            return all(self._non_negative[n] for n in node.all_input_nodes)
        if word in (CARRIES, "pool", "pad"):
            return all(self._non_negative[n] for n in inputs)
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
