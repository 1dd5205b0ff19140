"""What post-training methods change about a traced network, as data: told by one network, repeated on another.

Folding, equalization and bias correction leave a graph that is no longer the one that its model's name gives: batch
norms are gone, layers have got biases, activation functions have become per-channel ones. Values are not told here.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from typing import Any

import torch
import torch.fx
from torch import nn

from common.errors import UserError
from common.graph.equalization import ChannelCappedReLU
from common.graph.folding import fold_batch_norms, own_parameters
from common.graph.view import GraphView

_OWN = "own_activations."  # where equalization puts activation functions


def describe_changes(network: torch.fx.GraphModule) -> dict[str, Any]:
    """{"folded": True, "activations": {node: channels with a cap of their own}}, each only where it applies.

    0 channels: a ReLU instead of a ReLU6. A network without any batch norm that could be folded counts as folded.

    Args:
        network: traced network without quantizers; it stays as it is.
    """
    changes: dict[str, Any] = {}
    activations: dict[str, int] = {}
    for node in network.graph.nodes:
        if node.op == "call_module" and node.target.startswith(_OWN):
            own = network.get_submodule(node.target)
            activations[node.name] = own.caps.numel() if isinstance(own, ChannelCappedReLU) else 0
    if not fold_batch_norms(copy.deepcopy(network)):
        changes["folded"] = True
    return changes | ({"activations": activations} if activations else {})


def repeat_changes(
    network: torch.fx.GraphModule, changes: Mapping[str, Any], entries: Collection[str], source: str = "file"
) -> None:
    """Give a freshly traced network the structure of the one that was described, in place.

    Args:
        changes: of `describe_changes`; other keys are passed over.
        entries: names of the state dict that is to be loaded: a bias among them that a layer lacks is made.
        source: what a message calls the origin of `changes`.
    Raises:
        UserError: an activation function that the network does not have.
    """
    if changes.get("folded"):
        fold_batch_norms(network)
    for name in GraphView(network).layer_calls():
        if network.get_submodule(name).bias is None and f"{name}.bias" in entries:
            own_parameters(network, name, bias=True)
    view = GraphView(network)
    nodes = {node.name: node for node in network.graph.nodes if view.operator(node) == "relu6"}
    activations = changes.get("activations") or {}
    for name in activations:
        channels = activations[name] if isinstance(activations, Mapping) else None
        if name not in nodes or not isinstance(channels, int):
            raise UserError(f"{source} does not fit: the network has no ReLU6 {name} to replace")
        node, own = nodes[name], ChannelCappedReLU(torch.zeros(channels)) if channels else nn.ReLU()
        network.add_submodule(f"{_OWN}{name}", own)
        node.op, node.target, node.args, node.kwargs = "call_module", f"{_OWN}{name}", (node.all_input_nodes[0],), {}
    network.recompile()
