"""Expected values and ranges of activations from batch norm alone, without data.

A folded batch norm says that its layer's output is N(beta_c, gamma_c^2) over images and positions. What activation
functions and sums make of it follows in closed form (Nagel et al. 2019, arXiv 1906.04721).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

import torch
import torch.fx
from torch import Tensor, nn

from common.calibration.observers import Observer
from common.graph import Site
from common.graph.equalization import ChannelCappedReLU, keeps_channels, pools_positions
from common.graph.folding import NormStatistics
from common.graph.operators import CARRIES, CONSTANT, is_quantizer_target
from common.graph.view import GraphView


@dataclass(frozen=True)
class ClippedNormal:
    """clip(x, low, high) of x ~ N(mean_c, std_c^2), per channel; everything float64, shape (C,).

    Attributes:
        mean, std: of x; a std of 0 is a constant.
        low, high: infinite where nothing is clipped. ReLU: 0 and infinity; ReLU6: 0 and 6.
    """

    mean: Tensor
    std: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, mean: Tensor, std: Tensor) -> ClippedNormal:
        """Not clipped."""
        mean = mean.detach().double()
        infinite = torch.full_like(mean, torch.inf)
        return cls(mean, std.detach().double(), -infinite, infinite)

    def clipped(self, low: float, high: float | Tensor) -> ClippedNormal:
        """This one clipped once more; `high` is a number or one per channel."""
        high = torch.as_tensor(high, dtype=self.mean.dtype, device=self.mean.device)
        return replace(self, low=self.low.clamp(min=low), high=torch.minimum(self.high, high))

    def expectation(self) -> Tensor:
        """E[y], (C,). With A = (mean - low) / std, B = (mean - high) / std and g(z) = phi(z) + z Phi(z):
        low + std (g(A) - g(B)); the closed forms for ReLU and ReLU6 are its special cases.
        """
        low, high, (density_a, mass_a), (density_b, mass_b) = self._bounds()
        above_low = self.std * density_a + (self.mean - low) * mass_a
        above_high = self.std * density_b + (self.mean - high) * mass_b
        return torch.clamp(low + above_low - above_high, low, high)  # against rounding noise below 0

    def variance(self) -> Tensor:
        """E[y^2] - E[y]^2, (C,)."""
        low, high, (density_a, mass_a), (density_b, mass_b) = self._bounds()
        inside = (self.mean**2 + self.std**2) * (mass_a - mass_b)
        inside += self.std * ((self.mean + low) * density_a - (self.mean + high) * density_b)
        return (low**2 * (1 - mass_a) + inside + high**2 * mass_b - self.expectation() ** 2).clamp(min=0)

    def range(self, deviations: float = 6.0) -> tuple[Tensor, Tensor]:
        """(min over channels of mean - deviations std, max of mean + deviations std), clipped; float32 scalars."""
        low, high = self._reach(deviations)
        return low.min().float(), high.max().float()

    def _reach(self, deviations: float) -> tuple[Tensor, Tensor]:
        reach = deviations * self.std
        return torch.clamp(self.mean - reach, self.low, self.high), torch.clamp(self.mean + reach, self.low, self.high)

    def _bounds(self) -> tuple[Tensor, Tensor, tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        """Finite bounds, and of the standard normal at (mean - bound) / std the density and the mass below.

        What lies 38 standard deviations away is 0 in double precision.
        """
        low, high = self._reach(38.0)
        divisor = torch.where(self.std > 0, self.std, torch.ones_like(self.std))

        def normal(bound: Tensor) -> tuple[Tensor, Tensor]:
            z = (self.mean - bound) / divisor
            return torch.exp(-(z**2) / 2) / math.sqrt(2 * math.pi), torch.special.ndtr(z)

        return low, high, normal(low), normal(high)


class BatchNormObserver(Observer):
    """[min_c (beta_c - 6 |gamma_c|), max_c (beta_c + 6 |gamma_c|)], clipped by the activation; sees no data.

    Args:
        distribution: of the tensor.
        deviations: 6 standard deviations in the data-free method.
    """

    def __init__(self, distribution: ClippedNormal, deviations: float = 6.0) -> None:
        super().__init__()
        self.register_buffer("ends", torch.stack(distribution.range(deviations)))

    def update(self, x: Tensor) -> None:
        """Nothing: the range is known."""

    def merge(self, other: BatchNormObserver) -> None:
        """Nothing: every process has the same."""

    def range(self, bit_width: int, signed: bool = True) -> tuple[Tensor, Tensor]:
        return self._ends(self.ends[0], self.ends[1], signed)


def activation_distributions(
    network: torch.fx.GraphModule, statistics: Mapping[str, NormStatistics], input_mean: Tensor | None = None
) -> dict[torch.fx.Node, ClippedNormal]:
    """Node -> distribution of its output, for all nodes where batch norm tells.

    The terms of a sum are taken as independent, pooling over positions as changing nothing (which is true of the
    expectation of average pooling only), zero padding of positions as absent.

    Args:
        network: traced network, quantizers looked through. Batch norms that were not folded count as well.
        statistics: of `fold_batch_norms`, as equalization and absorption have left them.
        input_mean: expected value of each input channel, (C,); without it the layers that read images are unknown.
    """
    view = GraphView(network)
    found: dict[torch.fx.Node, ClippedNormal] = {}
    for node in network.graph.nodes:
        if node.op == "placeholder":
            known = None if input_mean is None else ClippedNormal.of(input_mean, torch.zeros_like(input_mean))
        elif view.layer(node) is not None:
            own = statistics.get(str(node.target))
            known = None if own is None else ClippedNormal.of(own.mean, own.std)
        else:
            known = _distribution(
                node, view, [found.get(n) for n in _tensor_inputs(node) if view.operator(n) != CONSTANT]
            )
        if known is not None:
            found[node] = known
    return found


def expected_inputs(
    network: torch.fx.GraphModule, statistics: Mapping[str, NormStatistics], input_mean: Tensor | None = None
) -> dict[str, Tensor]:
    """Layer -> E[x] of every input channel, (in,), in the weights' dtype; where the distribution is known.

    Arguments: see `activation_distributions`. A layer that is called more than once gets the mean over its calls.
    """
    distributions = activation_distributions(network, statistics, input_mean)
    expected: dict[str, Tensor] = {}
    for name, calls in GraphView(network).layer_calls().items():
        sources = [distributions.get(call.all_input_nodes[0]) for call in calls]
        if None in sources:
            continue
        layer = network.get_submodule(name)
        inputs = layer.in_channels if isinstance(layer, nn.Conv2d) else layer.in_features
        mean = torch.stack([source.expectation() for source in sources]).mean(0)
        if inputs % len(mean) == 0:  # flattened positions of one channel lie side by side
            expected[name] = mean.repeat_interleave(inputs // len(mean)).to(layer.weight.dtype)
    return expected


def batch_norm_observers(
    network: torch.fx.GraphModule,
    statistics: Mapping[str, NormStatistics],
    sites: Iterable[Site],
    deviations: float = 6.0,
) -> dict[str, BatchNormObserver]:
    """Tensor site -> its data-free observer, where the distribution is known; arguments as above."""
    by_name = {node.name: known for node, known in activation_distributions(network, statistics).items()}
    return {site.name: BatchNormObserver(by_name[site.node], deviations) for site in sites if site.node in by_name}


def _tensor_inputs(node: torch.fx.Node) -> list[torch.fx.Node]:
    """With repetitions: x + x has two."""
    found: list[torch.fx.Node] = []
    torch.fx.node.map_arg((node.args, node.kwargs), found.append)
    return found


def _distribution(node: torch.fx.Node, view: GraphView, inputs: list[ClippedNormal | None]) -> ClippedNormal | None:
    """Of the output of a node that is no layer, from those of its inputs; None where it is not known."""
    word = view.operator(node)
    module = view.graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
    if word == "batch_norm" and module is not None and module.affine:
        return ClippedNormal.of(module.bias, module.weight.abs())
    if not inputs or None in inputs:
        return None
    x, *others = inputs
    if is_quantizer_target(node.target) or (word == CARRIES and keeps_channels(node, view.graph_module)):
        return x
    if word == "relu":
        return x.clipped(0.0, torch.inf)
    if word == "relu6":
        return x.clipped(0.0, module.caps if isinstance(module, ChannelCappedReLU) else 6.0)
    if word == "pool" and pools_positions(node):
        return x
    if word == "pad":
        return _padded(node, x)
    if word == "concat" and (node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 0)) == 1:
        parts = zip(*((part.mean, part.std, part.low, part.high) for part in inputs), strict=True)
        return ClippedNormal(*(torch.cat(part) for part in parts))
    if word == "add" and all(len(other.mean) == len(x.mean) for other in others):
        mean = torch.stack([part.expectation() for part in inputs]).sum(0)
        return ClippedNormal.of(mean, torch.stack([part.variance() for part in inputs]).sum(0).sqrt())
    return None


def _padded(node: torch.fx.Node, x: ClippedNormal) -> ClippedNormal | None:
    """Zero channels before and after (option A of ResNets for CIFAR); padded positions are ignored."""
    amounts = node.args[1] if node.op != "call_module" and len(node.args) > 1 else ()
    if len(amounts) < 6:
        return x
    if len(node.args) > 2 or node.kwargs.get("mode") != "constant" or node.kwargs.get("value") or min(amounts[4:]) < 0:
        return None
    before, after = amounts[4:6]

    def pad(values: Tensor) -> Tensor:
        return torch.nn.functional.pad(values, (before, after))

    return ClippedNormal(pad(x.mean), pad(x.std), pad(x.low), pad(x.high))
