"""In-place operations made out of place, so that a tensor keeps the value that its site names.

`relu_(x)` overwrites x: what a quantizer or an observer at x's site saved would silently turn into something else, and
autograd refuses to go back through it. Values and gradients stay the same to the last bit. (`x += y` needs no care:
torch.fx traces it as x + y, and where that shows, `trace` finds other outputs and refuses.)
"""

from typing import Any

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor

from common.graph.operators import CARRIES, operator_of
from common.graph.sharing import replace_module, share_state


def make_out_of_place(graph_module: torch.fx.GraphModule) -> None:
    """Rewrite in-place nodes of a traced network, in place; modules get a copy without `inplace`.

    An operation stays in place where its effect can be seen through another name: on the network's input, on a
    parameter or buffer, and on a tensor of which a view (or what may be one) is read later. So does ELU, whose
    in-place gradient is computed from its result and rounds differently.
    """
    order = {node: index for index, node in enumerate(graph_module.graph.nodes)}
    for node in graph_module.graph.nodes:
        target = node.args[0] if node.args else None
        if not isinstance(target, torch.fx.Node) or not _is_in_place(node, graph_module):
            continue
        if operator_of(node, graph_module) == "elu":
            continue
        source = target
        while operator_of(source, graph_module) == CARRIES and source.all_input_nodes:
            source = source.all_input_nodes[0]
        if source.op in ("placeholder", "get_attr"):
            continue
        aliases = _carriers(source, graph_module)
        later = {user: alias for alias in aliases for user in alias.users if order[user] > order[node]}
        if any(alias is not target for alias in later.values()):
            continue
        # The same object under an older name: read what the operation wrote.
        target.replace_all_uses_with(node, delete_user_cb=lambda user, now=node: order[user] > order[now])
        _rewrite(node, graph_module)
    graph_module.recompile()


def _carriers(source: torch.fx.Node, graph_module: torch.fx.GraphModule) -> list[torch.fx.Node]:
    """The node and all that may share its memory: views, slices, dropouts (in eval mode)."""
    found = [source]
    for node in found:
        found += [u for u in node.users if operator_of(u, graph_module) == CARRIES and u not in found]
    return found


def _is_in_place(node: torch.fx.Node, graph_module: torch.fx.GraphModule) -> bool:
    if node.op == "call_module":
        return getattr(graph_module.get_submodule(str(node.target)), "inplace", False) is True
    if node.op == "call_method":
        name = str(node.target)
        return name.endswith("_") and not name.endswith("__") and hasattr(Tensor, name[:-1])
    if node.op == "call_function":
        return node.kwargs.get("inplace") is True or _plain_function(node.target) is not None
    return False


def _plain_function(function: Any) -> Any:
    """torch.relu for torch.relu_, F.elu for F.elu_; None where the function is not an in-place one."""
    name = getattr(function, "__name__", "")
    if not name.endswith("_") or name.endswith("__"):
        return None
    for namespace in (torch, F):
        if getattr(namespace, name, None) is function:
            return getattr(namespace, name[:-1], None)
    return None


def _rewrite(node: torch.fx.Node, graph_module: torch.fx.GraphModule) -> None:
    if node.op == "call_module":
        module = graph_module.get_submodule(str(node.target))
        copy = share_state(module, type(module))
        copy.inplace = False
        replace_module(graph_module, module, copy)
    elif node.op == "call_method":
        node.target = str(node.target)[:-1]
    elif node.kwargs.get("inplace") is True:
        node.kwargs = {**node.kwargs, "inplace": False}
    else:
        node.target = _plain_function(node.target)
