"""Bias correction: the shift of a layer's mean output that quantization causes, taken out of its bias.

Source: Nagel et al. 2019 (arXiv 1906.04721), section 4.2: E[Q(W) x] - E[W x] = (Q(W) - W) E[x].
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.fx
from torch import Tensor, nn

from common.errors import UserError
from common.graph.equalization import grouped_product
from common.graph.folding import own_parameters
from common.graph.operators import is_quantizer_target
from common.graph.view import GraphView


def bias_correction(weight_error: Tensor, expected_input: Tensor, groups: int = 1) -> Tensor:
    """What is to be added to the bias: -sum_j (sum over the kernel of Q(W)[i, j] - W[i, j]) E[x_j].

    Args:
        weight_error: Q(W) - W, (out, in / groups[, kh, kw]).
        expected_input: E[x], (in,).
    Returns:
        (out,)
    """
    kernel_sums = weight_error.flatten(2).sum(2) if weight_error.dim() > 2 else weight_error
    return -grouped_product(kernel_sums, expected_input, groups)


@torch.no_grad()
def correct_biases(
    network: torch.fx.GraphModule,
    expected_inputs: Mapping[str, Tensor],
    float_weights: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """Correct the bias of every quantized layer whose expected input is known, in place: no data.

    Args:
        network: traced network whose weight quantizers are calibrated.
        expected_inputs: layer -> E[x] of the unquantized network, (in,): see `common.calibration.batch_norm`.
        float_weights: layer -> W where the network's own weights are no longer those before quantization.
    Returns:
        layer -> what was added to its bias, (out,).
    """
    corrections: dict[str, Tensor] = {}
    for name in GraphView(network).layer_calls():
        layer = network.get_submodule(name)
        quantizer = getattr(layer, "weight_quantizer", None)
        if quantizer is None or name not in expected_inputs:
            continue
        original = layer.weight if float_weights is None else float_weights.get(name, layer.weight)
        training = quantizer.training
        error = quantizer.eval()(layer.weight) - original
        quantizer.train(training)
        correction = bias_correction(error, expected_inputs[name], getattr(layer, "groups", 1))
        own_parameters(network, name, bias=True).bias += correction
        corrections[name] = correction
    return corrections


@torch.no_grad()
def correct_biases_from_data(
    network: torch.fx.GraphModule,
    reference: torch.fx.GraphModule,
    batches: Iterable[Tensor],
    layers: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Give every layer the channel means of the unquantized network on the batches, in place, layer after layer.

    A layer's inputs are those of the corrected layers before it. Of a layer that is called more than once, the first
    call counts. Means are all that comes back: where coarse weights take spread out of the pre-activations, what passes
    a ReLU shrinks from layer to layer, and below 4 bits the corrected network can be worse than the uncorrected one.

    Args:
        network: traced network with quantizers.
        reference: the same network without.
        batches: images, (N, C, H, W) each; their activations are held in memory, both networks' of one layer at a time.
        layers: those to correct; None is all.
    Returns:
        layer -> what was added to its bias, (out,).
    Raises:
        UserError: the two are not the same network, or a name in `layers` is no layer's.
    """
    check_layers(network, layers)
    corrections: dict[str, Tensor] = {}
    for call in walk_together(network, reference, batches):
        if call.name in corrections or (layers is not None and call.name not in layers):
            continue
        layer, original = network.get_submodule(call.name), reference.get_submodule(call.name)
        axis = 1 if isinstance(layer, nn.Conv2d) else -1
        difference, count = 0.0, 0
        for x, x_float in zip(call.inputs, call.reference_inputs, strict=True):
            shift = (original(x_float) - layer(x)).double().movedim(axis, 0).flatten(1)
            difference, count = difference + shift.sum(1), count + shift.shape[1]
        corrections[call.name] = (difference / count).to(layer.weight.dtype)
        own_parameters(network, call.name, bias=True).bias += corrections[call.name]
    return corrections


def check_layers(network: torch.fx.GraphModule, layers: Collection[str] | None) -> None:
    """UserError where a name is not that of a Conv2d or Linear of the network."""
    known = GraphView(network).layer_calls()
    if unknown := [name for name in layers or () if name not in known]:
        raise UserError(f"unknown layer {unknown[0]}; layers are {', '.join(list(known)[:5])}, ...")


@dataclass(frozen=True)
class LayerCall:
    """A layer about to run, on all batches.

    Attributes:
        name: path of the layer.
        node: the node that calls it, of the quantized network.
        inputs, reference_inputs: what it reads in the quantized and in the unquantized network, batch by batch.
    """

    name: str
    node: torch.fx.Node
    inputs: list[Tensor]
    reference_inputs: list[Tensor]


@torch.no_grad()
def walk_together(
    network: torch.fx.GraphModule, reference: torch.fx.GraphModule, batches: Iterable[Tensor]
) -> Iterator[LayerCall]:
    """Run two copies of a network side by side, node by node, stopping before every layer.

    A layer that the caller changes at a stop runs changed: one pass serves a layer-by-layer procedure. Both networks
    are in eval mode meanwhile. Tensors are dropped after their last reader.

    Args:
        network: traced network, with quantizers or without.
        reference: the same without quantizers.
    Raises:
        UserError: a node of one is not in the other.
    """
    reference_nodes = {node.name: node for node in reference.graph.nodes}
    modes = [(module, module.training) for module in (*network.modules(), *reference.modules())]
    view, batches = GraphView(network), list(batches)
    runs = [_Run(network, images) for images in batches]
    reference_runs = [_Run(reference, images) for images in batches]
    try:
        network.eval()
        reference.eval()
        for node in network.graph.nodes:
            is_quantizer = node.op == "call_module" and is_quantizer_target(node.target)
            twin = None if is_quantizer else reference_nodes.get(node.name)
            if twin is None and not is_quantizer:
                raise UserError(f"node {node.name} is not in the reference: trace and fold both networks alike")
            if view.layer(node) is not None:
                yield LayerCall(
                    str(node.target),
                    node,
                    [run.env[node.all_input_nodes[0]] for run in runs],
                    [run.env[twin.all_input_nodes[0]] for run in reference_runs],
                )
            for run in runs:
                run.step(node)
            for run in reference_runs if twin is not None else ():
                run.step(twin)
    finally:
        for module, mode in modes:
            module.training = mode


class _Run(torch.fx.Interpreter):
    """One batch on its way through a graph, a node at a time."""

    def __init__(self, network: torch.fx.GraphModule, images: Tensor) -> None:
        super().__init__(network)
        self.env, self.args_iter = {}, iter((images,))

    def step(self, node: torch.fx.Node) -> None:
        self.env[node] = self.run_node(node)
        for read in self.user_to_last_uses.get(node, ()):
            del self.env[read]
