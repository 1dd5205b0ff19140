"""Run training images through a network and look at the tensors at its sites."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, fx

from common.graph import Site, quantizers


@contextmanager
def quantizers_off(network: fx.GraphModule) -> Iterator[None]:
    """Every quantizer of the network hands on its input unchanged while the context lasts."""
    hooks = [q.register_forward_hook(lambda module, inputs, output: inputs[0]) for q in quantizers(network).values()]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


class _Watcher(fx.Interpreter):
    """Executes the graph node by node and shows the watched nodes' results."""

    def __init__(self, network: fx.GraphModule, watched: Mapping[str, list[str]], show: Callable[[str, Tensor], None]):
        super().__init__(network)
        self.watched, self.show = watched, show

    def run_node(self, node: fx.Node) -> object:
        result = super().run_node(node)
        for site in self.watched.get(node.name, ()):
            self.show(site, result)
        return result


@torch.no_grad()
def observe_activations(
    network: fx.GraphModule,
    batches: Iterable[Tensor],
    sites: Iterable[Site],
    show: Callable[[str, Tensor], None],
    at_input: bool = False,
) -> int:
    """Call `show(site name, tensor)` for every site and batch, with the network in eval mode.

    Args:
        network: traced network; its quantizers act as they are (`quantizers_off` switches them off).
        batches: images, (N, C, H, W) each, on the network's device.
        sites: tensor sites to look at.
        show: called with (N, ...) tensors, which it must not change.
        at_input: look at the first input of the site's operator instead of its output (a ReLU's pre-activation).

    Returns:
        number of batches.
    """
    by_name = {node.name: node for node in network.graph.nodes}
    watched: dict[str, list[str]] = {}
    for site in sites:
        node = by_name[site.node]
        watched.setdefault((node.all_input_nodes[0] if at_input else node).name, []).append(site.name)
    training, count = network.training, 0
    network.eval()
    watcher = _Watcher(network, watched, show)
    for images in batches:
        watcher.run(images)
        count += 1
    network.train(training)
    return count

