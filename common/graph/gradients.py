"""Sites of gradients: what flows back into a layer's output.

    <layer>.gradient   module  gradient_quantizers.<node>, called by a node of its own after each call of the layer

A quantizer there is the identity forward. It exists in training alone: bit policies, packed files and the other sites
know nothing of it, and `find_sites` and `layer_table` look through it.
"""

from collections.abc import Mapping

import torch.fx
from torch import nn

from common.errors import UserError
from common.graph.view import GraphView

GRADIENTS = "gradient_quantizers"  # the module that holds them


def insert_gradient_quantizers(graph_module: torch.fx.GraphModule, site_quantizers: Mapping[str, nn.Module]) -> None:
    """Put each quantizer behind its layer, in place; call it once.

    The gradient that it passes on enters both of the layer's products, for its weights and for its input.

    Args:
        graph_module: a traced network.
        site_quantizers: `<layer>.gradient` -> module with forward(x) = x and without saved state.

    Raises:
        UserError: unknown site. Nothing is changed then.
    """
    calls = {f"{layer}.gradient": nodes for layer, nodes in GraphView(graph_module).layer_calls().items()}
    if unknown := [site for site in site_quantizers if site not in calls]:
        raise UserError(f"unknown site {unknown[0]}")
    container = nn.Module()
    container.training = graph_module.training
    graph_module.add_module(GRADIENTS, container)
    for site, quantizer in site_quantizers.items():
        name = calls[site][0].name
        container.add_module(name, quantizer.train(graph_module.training))
        for node in calls[site]:
            with graph_module.graph.inserting_after(node):
                call = graph_module.graph.call_module(f"{GRADIENTS}.{name}", (node,))
            node.replace_all_uses_with(call, delete_user_cb=lambda user, own=call: user is not own)
    graph_module.graph.lint()
    graph_module.recompile()


def gradient_quantizers(graph_module: torch.fx.GraphModule) -> dict[str, nn.Module]:
    """Site name -> quantizer, in execution order."""
    return {
        f"{node.args[0].target}.gradient": graph_module.get_submodule(node.target)
        for node in graph_module.graph.nodes
        if node.op == "call_module" and node.target.startswith(f"{GRADIENTS}.")
    }
