"""Cross-layer equalization and high-bias absorption (Nagel et al. 2019, arXiv 1906.04721, section 4.1)."""

from __future__ import annotations

from collections.abc import Callable, MutableMapping
from dataclasses import dataclass

import torch
import torch.fx
from torch import Tensor, nn

from common.graph.folding import NormStatistics, check_unquantized, own_parameters
from common.graph.operators import CARRIES
from common.graph.view import GraphView
from common.quantizers.functional import clip

_SMALLEST, _LARGEST = 1e-8, 1e8  # scales, of the authors' code


@dataclass(frozen=True)
class Pair:
    """Two layers between which every output channel of the first can be scaled and its reader scaled back.

    Attributes:
        first, second: paths of the layers.
        between: the nodes from one to the other; each has one reader.
    """

    first: str
    second: str
    between: tuple[torch.fx.Node, ...]


class ChannelCappedReLU(nn.ReLU6):
    """min(max(x, 0), cap_c) with a cap for every channel (axis 1): what ReLU6 is after its input was scaled.

    Args:
        caps: shape (C,).
    """

    def __init__(self, caps: Tensor) -> None:
        super().__init__()
        self.register_buffer("caps", caps)

    def forward(self, x: Tensor) -> Tensor:
        return clip(x, 0.0, self.caps.to(x.dtype).reshape(-1, *[1] * (x.dim() - 2)))

    def extra_repr(self) -> str:
        return f"channels={self.caps.numel()}"


def equalizable_pairs(graph_module: torch.fx.GraphModule) -> tuple[Pair, ...]:
    """All pairs of layers, called once each, whose tensor in between has no other reader, in execution order.

    In between may stand what commutes with a positive factor per channel: ReLU, leaky and parametric ReLU, pooling over
    positions, flattening of single positions, dropout; and ReLU6, which needs a cap per channel. A residual sum or a
    batch norm that was not folded ends the search.
    """
    view = GraphView(graph_module)
    calls = view.layer_calls()
    once = {nodes[0] for nodes in calls.values() if len(nodes) == 1}
    pairs = []
    for name, (start, *_) in calls.items():
        if start not in once:
            continue
        between: list[torch.fx.Node] = []
        node = start
        while len(node.users) == 1:
            (node,) = node.users
            if view.layer(node) is not None:
                if node in once and _channels_meet(view, start, between, node):
                    pairs.append(Pair(name, str(node.target), tuple(between)))
                break
            if not (_is_homogeneous(node, view) or view.operator(node) == "relu6"):
                break
            between.append(node)
    return tuple(pairs)


@torch.no_grad()
def equalize(
    graph_module: torch.fx.GraphModule,
    statistics: MutableMapping[str, NormStatistics] | None = None,
    symmetric: bool = True,
    tolerance: float = 2e-7,
    patience: int = 20,
    max_rounds: int = 1000,
) -> tuple[Pair, ...]:
    """Give both sides of every pair the same range per channel, in place, without changing the network's outputs.

    Output channel j of the first layer is divided by s_j = sqrt(r1_j / r2_j) and input channel j of the second is
    multiplied by it, pair after pair, until the mean |change| of weights, summed over layers, is below `tolerance` or
    has not changed for `patience` rounds. Channels of range 0 keep s_j = 1. ReLU6 becomes `ChannelCappedReLU` with caps
    6 / s_j; call `replace_relu6` before to have plain ReLU instead, which changes outputs.

    Args:
        graph_module: traced network, batch norms folded, no quantizers. Layers get parameters of their own.
        statistics: of `fold_batch_norms`; those of scaled layers are divided by s as well.
        symmetric: range is max |w|, as for symmetric weight grids; otherwise max w - min w.
    Returns:
        the pairs.
    Raises:
        UserError: the network holds quantizers.
    """
    check_unquantized(graph_module)
    pairs = equalizable_pairs(graph_module)
    names = dict.fromkeys(name for pair in pairs for name in (pair.first, pair.second))
    layers = {name: own_parameters(graph_module, name) for name in names}
    weights = {name: layer.weight.double().contiguous() for name, layer in layers.items()}
    factors = [torch.ones_like(weights[pair.first].flatten(1)[:, 0]) for pair in pairs]
    before = {name: torch.empty_like(weight) for name, weight in weights.items()}
    last_change, same = None, 0
    for _ in range(max_rounds):
        for name, weight in weights.items():
            before[name].copy_(weight)
        for factor, pair in zip(factors, pairs, strict=True):
            groups = getattr(layers[pair.second], "groups", 1)
            first = _range(_blocks(weights[pair.first], 1), (0, 2, 3), symmetric)
            second = _range(_blocks(weights[pair.second], groups), (1, 3), symmetric).flatten()
            scale = (first / second).sqrt().clamp(_SMALLEST, _LARGEST)
            scale = torch.where((first > 0) & (second > 0), scale, torch.ones_like(scale))
            _blocks(weights[pair.first], 1).div_(scale.reshape(1, -1, 1, 1))
            _blocks(weights[pair.second], groups).mul_(scale.reshape(groups, 1, -1, 1))
            factor *= scale
        change = sum(float(before[name].sub_(weight).abs_().mean()) for name, weight in weights.items())
        same = same + 1 if change == last_change else 0
        last_change = change
        if change < tolerance or same >= patience:
            break

    for name, weight in weights.items():
        layers[name].weight.copy_(weight)
    for factor, pair in zip(factors, pairs, strict=True):
        if (bias := layers[pair.first].bias) is not None:
            bias.copy_(bias.double() / factor)
        if statistics is not None and pair.first in statistics:
            old = statistics[pair.first]
            statistics[pair.first] = NormStatistics(
                (old.mean / factor).to(old.mean.dtype), (old.std / factor).to(old.std.dtype)
            )
        _cap(graph_module, pair, lambda caps, factor=factor: caps / factor)
    graph_module.recompile()
    return pairs


@torch.no_grad()
def absorb_high_biases(
    graph_module: torch.fx.GraphModule,
    statistics: MutableMapping[str, NormStatistics],
    deviations: float = 3.0,
    skip_padded: bool = False,
) -> dict[str, Tensor]:
    """Move c_j = max(0, mean_j - 3 std_j) from the first bias of every pair into the second's, in place.

    relu(x - c) = relu(x) - c where x > c, which holds for 99.87 % of a normal distribution; the second layer's bias
    gets what its weights make of c. With zero padding that is too much at the border, whose padding holds no c.

    Args:
        statistics: of `fold_batch_norms` (and `equalize`); the absorbing layers' means are lowered by c.
        deviations: how many standard deviations below the mean c lies.
        skip_padded: leave pairs whose second layer pads its input as they are.
    Returns:
        first layer -> c, shape (C,), where any of it is above 0.
    Raises:
        UserError: the network holds quantizers.
    """
    check_unquantized(graph_module)
    absorbed: dict[str, Tensor] = {}
    view = GraphView(graph_module)
    for pair in equalizable_pairs(graph_module):
        second = graph_module.get_submodule(pair.second)
        padded = isinstance(second, nn.Conv2d) and second.padding not in ((0, 0), "valid")
        if pair.first not in statistics or (skip_padded and padded and second.padding_mode == "zeros"):
            continue
        old = statistics[pair.first]
        amount = (old.mean - deviations * old.std).clamp(min=0)
        for node in pair.between:
            if view.operator(node) == "relu6":
                amount = torch.minimum(amount, _caps(graph_module, node, amount))
        if not bool((amount > 0).any()):
            continue
        first, second = (own_parameters(graph_module, name, bias=True) for name in (pair.first, pair.second))
        first.bias -= amount
        kernel_sums = second.weight.flatten(2).sum(2) if second.weight.dim() > 2 else second.weight
        second.bias += grouped_product(kernel_sums, amount, getattr(second, "groups", 1))
        statistics[pair.first] = NormStatistics(old.mean - amount, old.std)
        _cap(graph_module, pair, lambda caps, amount=amount: caps - amount)
        absorbed[pair.first] = amount
    graph_module.recompile()
    return absorbed


def replace_relu6(graph_module: torch.fx.GraphModule) -> int:
    """Turn every ReLU6 of the graph into a ReLU, in place; the number of them is returned. Outputs change."""
    view, count = GraphView(graph_module), 0
    for node in graph_module.graph.nodes:
        if view.operator(node) == "relu6":
            _call(graph_module, node, nn.ReLU())
            count += 1
    graph_module.recompile()
    return count


def grouped_product(matrix: Tensor, vector: Tensor, groups: int = 1) -> Tensor:
    """sum_j matrix[i, j] vector[j] of a grouped layer: matrix (out, in / groups), vector (in,), result (out,)."""
    out_channels = matrix.shape[0]
    blocks = matrix.reshape(groups, out_channels // groups, -1)
    return (blocks @ vector.to(matrix.dtype).reshape(groups, -1, 1)).reshape(out_channels)


def keeps_channels(node: torch.fx.Node, graph_module: torch.fx.GraphModule) -> bool:
    """Whether a CARRIES node leaves axis 1 as it is, or flattens it with all that follows."""
    if node.op == "call_module":
        module = graph_module.get_submodule(str(node.target))
        if isinstance(module, nn.Flatten):
            return module.start_dim == 1 and module.end_dim == -1
        return isinstance(module, (nn.Identity, nn.modules.dropout._DropoutNd))
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name == "flatten":
        arguments = dict(zip(("start_dim", "end_dim"), node.args[1:], strict=False)) | dict(node.kwargs)
        return arguments.get("start_dim", 0) == 1 and arguments.get("end_dim", -1) == -1
    if name == "getitem":
        index = node.args[1]
        return isinstance(index, tuple) and len(index) > 1 and index[:2] == (slice(None), slice(None))
    return name.startswith("dropout") or name in ("contiguous", "clone", "detach")


def _is_homogeneous(node: torch.fx.Node, view: GraphView) -> bool:
    """f(s x) = s f(x) for a positive s per channel, and channels stay where they are."""
    word = view.operator(node)
    if word == "leaky_relu":
        return node.op != "call_module" or not isinstance(view.graph_module.get_submodule(str(node.target)), nn.RReLU)
    if word == "pool":
        return pools_positions(node)
    return word in ("relu", "prelu") or (word == CARRIES and keeps_channels(node, view.graph_module))


def _flattens(node: torch.fx.Node, graph_module: torch.fx.GraphModule) -> bool:
    if node.op == "call_module":
        return isinstance(graph_module.get_submodule(str(node.target)), nn.Flatten)
    return (node.target if isinstance(node.target, str) else node.target.__name__) in ("flatten", "mean", "amax")


def pools_positions(node: torch.fx.Node) -> bool:
    """Whether a pooling node leaves the channels alone: `mean` and `amax` can go over any axes."""
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_module" or name not in ("mean", "amax"):
        return True
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return isinstance(axes, (tuple, list)) and sorted(axes) in ([2, 3], [-2, -1])


def _channels_meet(view: GraphView, start: torch.fx.Node, between: list[torch.fx.Node], end: torch.fx.Node) -> bool:
    """Whether output channel j of one layer is input channel j of the other."""
    first, second = view.layer(start), view.layer(end)
    inputs = second.in_channels if isinstance(second, nn.Conv2d) else second.in_features
    if isinstance(first, nn.Conv2d) and isinstance(second, nn.Linear):
        is_flat = any(_flattens(node, view.graph_module) for node in between)
        return is_flat and first.out_channels == inputs  # equal: flattened positions are single ones
    return first.weight.shape[0] == inputs


def _blocks(weight: Tensor, groups: int) -> Tensor:
    """A view as (groups, outputs per group, inputs per group, kernel positions)."""
    return weight.view(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _range(blocks: Tensor, axes: tuple[int, ...], symmetric: bool) -> Tensor:
    low, high = blocks.amin(axes), blocks.amax(axes)
    return torch.maximum(-low, high) if symmetric else high - low


def _cap(graph_module: torch.fx.GraphModule, pair: Pair, change: Callable[[Tensor], Tensor]) -> None:
    """Give the ReLU6 nodes of a pair the changed caps."""
    view = GraphView(graph_module)
    like = graph_module.get_submodule(pair.first).weight.detach().flatten(1)[:, 0]
    for node in pair.between:
        if view.operator(node) == "relu6":
            _call(graph_module, node, ChannelCappedReLU(change(_caps(graph_module, node, like)).to(like.dtype)))


def _caps(graph_module: torch.fx.GraphModule, node: torch.fx.Node, like: Tensor) -> Tensor:
    module = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module.caps if isinstance(module, ChannelCappedReLU) else torch.full_like(like, 6.0)


def _call(graph_module: torch.fx.GraphModule, node: torch.fx.Node, module: nn.Module) -> None:
    """Let a node with one input call a module of its own instead; the node, and with it its site, keeps its name."""
    module.train(graph_module.training)
    name = f"own_activations.{node.name}"
    graph_module.add_submodule(name, module)
    node.op, node.target, node.args, node.kwargs = "call_module", name, (node.all_input_nodes[0],), {}
