"""Which layers choose their bit-width together, and which of them may be skipped."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import torch.fx


def block_of(layer: str, layers: Iterable[str]) -> str:
    """The innermost module that holds the layer and others; the layer itself where only the network does.

    Args:
        layer: path of a layer.
        layers: paths of all of them.
    """
    others = [name for name in layers if name != layer]
    parent = layer.rpartition(".")[0]
    while parent:
        if any(name.startswith(f"{parent}.") for name in others):
            return parent
        parent = parent.rpartition(".")[0]
    return layer


def can_be_skipped(graph: torch.fx.Graph, layers: Collection[str]) -> bool:
    """Whether the network's input still reaches its output past these layers: over a shortcut."""
    reached: set[torch.fx.Node] = set()
    for node in graph.nodes:
        if node.op == "placeholder" or (
            any(n in reached for n in node.all_input_nodes) and not (node.op == "call_module" and node.target in layers)
        ):
            reached.add(node)
    return any(node in reached for node in graph.nodes if node.op == "output")
