"""Small networks and the comparison that the graph tests share."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class SharedRelu(nn.Module):
    """One ReLU module called three times, a functional ReLU, two residual additions, a convolution called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(8)
        self.relu = nn.ReLU(inplace=True)
        self.twice = nn.Conv2d(8, 8, 3, padding=1, groups=8, padding_mode="reflect")
        self.last = nn.Conv2d(8, 8, 1)
        self.bn_last = nn.BatchNorm2d(8)
        self.fc = nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.bn(self.stem(x)))
        y = self.relu(self.twice(x) + x)
        y = F.relu(self.twice(y))
        x = self.relu(self.bn_last(self.last(y)) + x)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


@pytest.fixture(autouse=True)
def _one_thread_one_seed():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def shared_relu() -> nn.Module:
    return SharedRelu()


@pytest.fixture
def assert_same_behaviour():
    """assert_same_behaviour(reference, candidate, x): train, eval, train again: all that a user can see is equal.

    Outputs, running statistics and gradients bit for bit. The two must not share parameters: pass a deep copy that was
    made before tracing as `reference`.
    """

    def run(network: nn.Module, x: Tensor, training: bool) -> tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]:
        network.train(training)
        network.zero_grad(set_to_none=True)
        torch.manual_seed(1)
        output = network(x.clone())
        output.square().mean().backward()
        gradients = {name: p.grad for name, p in network.named_parameters() if p.grad is not None}
        return output.detach(), gradients, {name: b.clone() for name, b in network.named_buffers()}

    def check(reference: nn.Module, candidate: nn.Module, x: Tensor) -> None:
        for training in (True, False, True):
            expected, expected_gradients, expected_buffers = run(reference, x, training)
            output, gradients, buffers = run(candidate, x, training)
            mode = "train" if training else "eval"
            assert torch.equal(output, expected), f"outputs differ in {mode} mode"
            assert sorted(gradients) == sorted(expected_gradients)
            assert sorted(buffers) == sorted(expected_buffers)
            for name, gradient in expected_gradients.items():
                assert torch.equal(gradients[name], gradient), f"gradient of {name} differs in {mode} mode"
            for name, buffer in expected_buffers.items():
                assert torch.equal(buffers[name], buffer), f"buffer {name} differs in {mode} mode"

    return check


@pytest.fixture
def traced_copy():
    """traced_copy(network, x) -> (graph of the network, an untouched copy of the network)."""
    from common.graph import trace

    def make(network: nn.Module, x: Tensor) -> tuple[torch.fx.GraphModule, nn.Module]:
        reference = copy.deepcopy(network)
        return trace(network, x), reference

    return make
