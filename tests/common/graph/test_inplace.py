"""In-place operations: rewritten where nobody can tell, left where the overwriting is visible."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.graph import insert_quantizers, trace


class Net(nn.Module):
    def __init__(self, rule) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU(inplace=True)
        self.drop = nn.Dropout(0.5)
        self.rule = rule

    def forward(self, x: Tensor) -> Tensor:
        return self.rule(self, self.conv(x), self.conv(x * 2))


def images() -> Tensor:
    return torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(7))


def iadd(x: Tensor, y: Tensor) -> Tensor:
    x += y
    return x


REWRITTEN = {
    "module": lambda m, x, y: m.relu(x),
    "method": lambda m, x, y: x.sigmoid_(),
    "function": lambda m, x, y: torch.relu_(x),
    "functional": lambda m, x, y: F.leaky_relu_(x),
    "flag": lambda m, x, y: F.silu(x, inplace=True),
    "iadd": lambda m, x, y: iadd(x, y),
    "old name": lambda m, x, y: m.relu(x) + x * 3,
    "old name again": lambda m, x, y: (x.add_(1.0), x.mul_(2.0), x + y)[-1],
    "after dropout": lambda m, x, y: iadd(m.drop(x), y),
}
LEFT = {
    "later view": lambda m, x, y: (lambda view: m.relu(x).flatten(1) + view)(x.flatten(1)),
    "on a view": lambda m, x, y: (m.relu(x[:, :2]), x)[-1],
    "dropped": lambda m, x, y: m.relu(m.drop(x)) + x,
    "elu": lambda m, x, y: F.elu_(x),
}


def in_place_nodes(graph_module: torch.fx.GraphModule) -> list[str]:
    calls = [node for node in graph_module.graph.nodes if node.op == "call_module"]
    flags = [node.name for node in calls if getattr(graph_module.get_submodule(node.target), "inplace", False)]
    return flags + [word for word in ("_(", "inplace = True") if word in graph_module.code]


@pytest.mark.parametrize("rule", REWRITTEN.values(), ids=REWRITTEN.keys())
def test_in_place_operations_are_rewritten(rule, traced_copy, assert_same_behaviour):
    network = Net(rule)
    graph_module, reference = traced_copy(network, images())
    assert in_place_nodes(graph_module) == []
    assert network.relu.inplace  # the network's own module is left as it is
    assert_same_behaviour(reference, graph_module, images())


@pytest.mark.parametrize("rule", LEFT.values(), ids=LEFT.keys())
def test_operations_whose_overwriting_shows_are_left(rule, traced_copy, assert_same_behaviour):
    graph_module, reference = traced_copy(Net(rule), images())
    assert in_place_nodes(graph_module) != []
    assert_same_behaviour(reference, graph_module, images())


def test_a_network_that_overwrites_its_input_still_does():
    graph_module = trace(nn.Sequential(nn.Flatten(), nn.ReLU(inplace=True)), images())
    x = images()
    assert torch.equal(graph_module(x), images().relu().flatten(1))
    assert torch.equal(x, images().relu())


def test_an_augmented_assignment_that_shows_is_refused():
    network = Net(lambda m, x, y: (lambda kept: iadd(m.drop(kept), y) + kept)(x))
    with pytest.raises(UserError, match=r"other outputs than the network.*an in-place operation \(x \+= y\) changes"):
        trace(network, images())


def test_what_a_quantizer_saw_is_not_overwritten():
    class Keep(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.seen, self.value = x, x.detach().clone()
            return x

    keep = Keep()
    graph_module = trace(Net(lambda m, x, y: m.relu(iadd(x, y))), images())
    insert_quantizers(graph_module, {"conv.output": keep})
    graph_module(images())
    assert torch.equal(keep.seen, keep.value)
