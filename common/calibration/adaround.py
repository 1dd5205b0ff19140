"""AdaRound: rounding weights up or down so that the layer's output stays (Nagel et al. 2020, arXiv 2004.10568).

    W_hat = S clamp(floor(W / S) + h(V), quant_min, quant_max),   h(V) = clamp(1.2 sigmoid(V) - 0.1, 0, 1)
    loss = mean over positions of |f(W x) - f(W_hat x_hat)|^2 + lambda sum (1 - |2 h(V) - 1|^beta)

x is the layer's input in the unquantized network, x_hat in the network whose earlier layers are rounded already, f the
activation function behind the layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.graph.bias_correction import check_layers, walk_together
from common.graph.folding import own_parameters
from common.graph.operators import ACTIVATIONS
from common.graph.view import GraphView
from common.quantizers import AffineQuantizer, Quantizer
from common.quantizers.functional import clip
from common.random import stream_key

ZETA, GAMMA = 1.1, -0.1  # of the stretched sigmoid
SATURATED = math.log(-ZETA / GAMMA)  # beyond |V| = log 11, h is 0 or 1 and its gradient 0


def rectified_sigmoid(v: Tensor) -> Tensor:
    """h(V) = clamp((zeta - gamma) sigmoid(V) + gamma, 0, 1), eq. 23."""
    return clip(torch.sigmoid(v) * (ZETA - GAMMA) + GAMMA, 0.0, 1.0)


def initial_rounding(fraction: Tensor) -> Tensor:
    """V with h(V) = fraction, for 0 <= fraction < 1: the soft weights start as the real ones."""
    return -torch.log((ZETA - GAMMA) / (fraction - GAMMA) - 1)


def rounding_regularizer(v: Tensor, beta: float) -> Tensor:
    """1 - |2 h(V) - 1|^beta per element, eq. 24: 0 where h is 0 or 1."""
    return 1 - (2 * rectified_sigmoid(v) - 1).abs() ** beta


def annealed_beta(step: int, steps: int, start: float = 20.0, end: float = 2.0, warm_start: float = 0.2) -> float:
    """Cosine from `start`, held for the first `warm_start` of the steps (no regularizer then), down to `end`."""
    progress = max(0.0, (step - warm_start * steps) / ((1 - warm_start) * steps))
    return end + 0.5 * (start - end) * (1 + math.cos(progress * math.pi))


class AdaptiveRounding(nn.Module):
    """The trained roundings of one weight tensor.

    Args:
        weight: real weights, (out, ...).
        grid: quantizer with the scale, which stays fixed.
    """

    def __init__(self, weight: Tensor, grid: AffineQuantizer) -> None:
        super().__init__()
        shape = () if grid.channels is None else (-1, *[1] * (weight.dim() - 1))
        self.register_buffer("scale", grid.scale.detach().reshape(shape))
        zero_point = grid.zero_point.reshape(shape)
        self.register_buffer("lowest", grid.quant_min - zero_point)
        self.register_buffer("highest", grid.quant_max - zero_point)
        steps = weight.detach() / self.scale
        self.register_buffer("floor", torch.floor(steps))
        self.v = nn.Parameter(initial_rounding(steps - self.floor))

    def forward(self) -> Tensor:
        """Soft weights, differentiable in V."""
        return self.scale * clip(self.floor + rectified_sigmoid(self.v), self.lowest, self.highest)

    @torch.no_grad()
    def rounded(self) -> Tensor:
        """Weights on the grid: up where h > 0.5."""
        return self.scale * clip(self.floor + (rectified_sigmoid(self.v) > 0.5), self.lowest, self.highest)

    @torch.no_grad()
    def is_settled(self) -> bool:
        """Whether every element is saturated, so that no gradient is left."""
        return bool((self.v.abs() > SATURATED).all())


@dataclass(frozen=True)
class RoundingReport:
    """What became of one layer; losses are mean squared output errors over the calibration set, summed over channels.

    Attributes:
        nearest_loss: with every weight rounded to nearest.
        trained_loss: with the trained roundings.
        steps: of Adam; fewer than asked for where every rounding had settled.
        changed: weights whose rounding is not the nearest, of the roundings kept.
    """

    nearest_loss: float
    trained_loss: float
    steps: int
    changed: int

    @property
    def loss(self) -> float:
        """Of the roundings kept: the trained ones if they are better on the calibration set."""
        return min(self.nearest_loss, self.trained_loss)


def adaround(
    network: torch.fx.GraphModule,
    reference: torch.fx.GraphModule,
    batches: Iterable[Tensor],
    steps: int = 10_000,
    batch_size: int = 32,
    learning_rate: float = 1e-2,
    regularization: float = 0.01,
    layers: Collection[str] | None = None,
    seed: int = 0,
    progress: Callable[[str, RoundingReport], None] | None = None,
) -> dict[str, RoundingReport]:
    """Round the weights of every layer that has an affine weight quantizer, in place, in execution order.

    Afterwards the weights lie on their quantizers' grids. Where the trained roundings are no better than the nearest
    ones on the calibration set, the nearest are kept.

    Args:
        network: traced network with calibrated quantizers; batch norms are best folded before. Activation quantizers
            act, if there are any.
        reference: the same network without quantizers.
        batches: calibration images, (N, C, H, W) each; 1,000 to 2,000 in the paper, held in memory with their
            activations.
        steps, batch_size, learning_rate, regularization: of Adam, per layer; 10,000 steps on 32 images, lambda 0.01
            (paper); learning rate 1e-2 (open implementations; the paper has 1e-3).
        layers: those to round; None is all that have a weight quantizer.
        seed: of the order of images.
        progress: called after each layer.
    Returns:
        layer -> report.
    Raises:
        UserError: the two are not the same network, or a layer of `layers` has no affine weight quantizer.
    """
    reports: dict[str, RoundingReport] = {}
    check_layers(network, layers)
    view = GraphView(reference)
    nodes = {node.name: node for node in reference.graph.nodes}
    for call in walk_together(network, reference, batches):
        quantizer = getattr(network.get_submodule(call.name), "weight_quantizer", None)
        if call.name in reports or (quantizer is None if layers is None else call.name not in layers):
            continue
        if not isinstance(quantizer, Quantizer) or not isinstance(grid := quantizer.inference_form(), AffineQuantizer):
            raise UserError(f"layer {call.name} has no affine weight quantizer to round for")
        layer = own_parameters(network, call.name)
        activation = _activation_behind(nodes[call.node.name], view)
        original = reference.get_submodule(call.name)
        targets = torch.cat([activation(original(x)) for x in call.reference_inputs])
        inputs = torch.cat(call.inputs)
        if layer.input_quantizer is not None:
            inputs = layer.input_quantizer(inputs)
        reports[call.name] = _round_layer(
            layer, grid, inputs, targets, activation, steps, batch_size, learning_rate, regularization,
            torch.Generator().manual_seed(stream_key(seed, call.name)),
        )  # fmt: skip
        if progress is not None:
            progress(call.name, reports[call.name])
    return reports


@torch.enable_grad()
def _round_layer(
    layer: nn.Module,
    grid: AffineQuantizer,
    inputs: Tensor,
    targets: Tensor,
    activation: Callable[[Tensor], Tensor],
    steps: int,
    batch_size: int,
    learning_rate: float,
    regularization: float,
    generator: torch.Generator,
) -> RoundingReport:
    axis = 1 if isinstance(layer, nn.Conv2d) else -1

    def loss_of(weight: Tensor, chosen: Tensor | slice) -> Tensor:
        output = activation(_apply(layer, inputs[chosen], weight))
        return (output - targets[chosen]).square().sum(axis).mean()

    def loss_of_all(weight: Tensor) -> float:
        parts = [slice(i, i + 256) for i in range(0, len(inputs), 256)]
        with torch.no_grad():
            return sum(float(loss_of(weight, part)) * len(inputs[part]) for part in parts) / len(inputs)

    rounding = AdaptiveRounding(layer.weight, grid)
    optimizer = torch.optim.Adam([rounding.v], lr=learning_rate)
    done = 0
    while done < steps and not rounding.is_settled():
        chosen = torch.randint(len(inputs), (min(batch_size, len(inputs)),), generator=generator).to(inputs.device)
        loss = loss_of(rounding(), chosen)
        if done >= 0.2 * steps:
            loss = loss + regularization * rounding_regularizer(rounding.v, annealed_beta(done, steps)).sum()
        (rounding.v.grad,) = torch.autograd.grad(loss, rounding.v)
        optimizer.step()
        done += 1
    with torch.no_grad():
        nearest, trained = grid(layer.weight), rounding.rounded()
        losses = loss_of_all(nearest), loss_of_all(trained)
        kept = trained if losses[1] < losses[0] else nearest
        layer.weight.copy_(kept)
        changed = int(((kept - nearest).abs() > rounding.scale / 2).sum())
    return RoundingReport(*losses, steps=done, changed=changed)


def _apply(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    bias = layer.bias
    if bias is not None and layer.bias_quantizer is not None:
        bias = layer.bias_quantizer(bias)
    return layer._conv_forward(x, weight, bias) if isinstance(layer, nn.Conv2d) else F.linear(x, weight, bias)


def _activation_behind(node: torch.fx.Node, view: GraphView) -> Callable[[Tensor], Tensor]:
    """The activation function that alone reads the layer's output; the identity where there is none."""
    readers = list(node.users)
    if len(readers) == 1 and view.operator(readers[0]) in ACTIVATIONS and len(readers[0].all_input_nodes) == 1:
        reader = readers[0]
        if reader.op == "call_module":
            return view.graph_module.get_submodule(str(reader.target))
        function = getattr(Tensor, reader.target) if reader.op == "call_method" else reader.target
        return lambda x: function(x, *reader.args[1:], **reader.kwargs)
    return lambda x: x
