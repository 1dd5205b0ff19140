"""Folding batch norms: same outputs, ranges known, and what cannot be folded stays."""

import copy

import pytest
import torch
from torch import Tensor, nn

from common.errors import UserError
from common.graph import find_sites, insert_quantizers, layer_table, trace
from common.graph.folding import fold_batch_norms, own_parameters
from common.models import build_model
from common.quantizers import AffineQuantizer


def randomize(network: nn.Module, images: Tensor) -> nn.Module:
    """Batch norms with statistics of the images and uneven gains, some of them negative."""
    for module in network.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = None
            if module.affine:
                nn.init.uniform_(module.weight, -0.5, 1.5)
                nn.init.normal_(module.bias)
    network.train()
    with torch.no_grad():
        network(images)
    return network.eval()


def outputs(network: nn.Module, images: Tensor) -> Tensor:
    with torch.no_grad():
        return network(images)


@pytest.mark.parametrize(
    "name, size, folded", [("mobilenet_v2", 64, 52), ("mobilenet_v2_relu", 64, 53), ("resnet20", 32, 19)]
)
def test_outputs_stay_and_the_traced_network_keeps_its_parameters(name, size, folded):
    images = torch.randn(4, 3, size, size)
    network = randomize(build_model(name), images)
    expected, state = outputs(network, images), copy.deepcopy(network.state_dict())
    graph = trace(network, images)
    statistics = fold_batch_norms(graph)
    assert len(statistics) == folded
    assert not [m for m in graph.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not [key for key in graph.state_dict() if "running" in key]
    torch.testing.assert_close(outputs(graph, images), expected, atol=1e-4, rtol=1e-4)
    assert torch.equal(outputs(network, images), expected)
    assert all(torch.equal(state[key], value) for key, value in network.state_dict().items())
    assert all(layer.has_bias for layer in layer_table(graph, images))


def test_the_formula_and_the_statistics():
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU())
    images = torch.randn(2, 3, 8, 8)
    randomize(network, images)
    conv, norm = copy.deepcopy(network[0]), network[1]
    graph = trace(network, images)
    statistics = fold_batch_norms(graph)
    folded = graph.get_submodule("0")
    for c in range(4):
        factor = norm.weight[c] / torch.sqrt(norm.running_var[c] + norm.eps)
        torch.testing.assert_close(folded.weight[c], conv.weight[c] * factor)
        torch.testing.assert_close(folded.bias[c], norm.bias[c] + (conv.bias[c] - norm.running_mean[c]) * factor)
    assert list(statistics) == ["0"]
    assert torch.equal(statistics["0"].mean, norm.bias) and torch.equal(statistics["0"].std, norm.weight.abs())
    # the pre-activation is N(beta, gamma^2): exactly so in its first two moments on the images of the statistics
    y = outputs(folded, images).transpose(0, 1).flatten(1)
    torch.testing.assert_close(y.mean(1), statistics["0"].mean, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(y.std(1), statistics["0"].std, atol=1e-3, rtol=2e-2)


def test_sites_and_layers_keep_their_names():
    images = torch.randn(2, 3, 32, 32)
    graph = trace(build_model("resnet20"), images)
    before = [site.name for site in find_sites(graph, images)]
    fold_batch_norms(graph)
    after = [site.name for site in find_sites(graph, images)]
    kept = [name for name in before if "bn" not in name]
    assert [name for name in after if not name.endswith(".bias")] == [n for n in kept if not n.endswith(".bias")]


class Unfoldable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.twice, self.read_twice, self.shared_norm = (nn.Conv2d(4, 4, 1) for _ in range(3))
        self.first, self.second = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in range(4))
        self.without_statistics = nn.BatchNorm2d(4, track_running_stats=False)
        self.behind = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norms[0](self.twice(x)) + self.norms[1](self.twice(x))
        y = self.read_twice(x)
        x = self.norms[2](y) + y
        x = self.norms[3](self.first(x)) + self.norms[3](self.second(x))
        return self.without_statistics(self.behind(x))


def test_what_is_shared_or_read_elsewhere_is_not_folded():
    images = torch.randn(2, 4, 5, 5)
    network = randomize(Unfoldable(), images)
    graph = trace(network, images)
    assert fold_batch_norms(graph) == {}
    assert torch.equal(outputs(graph, images), outputs(network, images))
    assert len([m for m in graph.modules() if isinstance(m, nn.BatchNorm2d)]) == 5


def test_a_shared_convolution_stays_beside_one_that_folds(shared_relu):
    images = torch.randn(2, 3, 8, 8)
    randomize(shared_relu, images)
    expected = outputs(shared_relu, images)
    graph = trace(shared_relu, images)
    assert list(fold_batch_norms(graph)) == ["stem", "last"]
    torch.testing.assert_close(outputs(graph, images), expected, atol=1e-5, rtol=1e-5)


def test_linear_layers_and_norms_without_parameters():
    network = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5, affine=False), nn.ReLU(), nn.Linear(5, 3, bias=False))
    x = torch.randn(16, 6)
    randomize(network, x)
    graph = trace(network, x)
    statistics = fold_batch_norms(graph)
    assert statistics["0"].mean.tolist() == [0] * 5 and statistics["0"].std.tolist() == [1] * 5
    torch.testing.assert_close(outputs(graph, x), outputs(network, x), atol=1e-6, rtol=1e-5)
    assert graph.get_submodule("3").bias is None


def test_an_activation_inside_timms_batch_norm_stays():
    layers = pytest.importorskip("timm.layers")
    network = nn.Sequential(nn.Conv2d(3, 4, 3), layers.BatchNormAct2d(4), nn.Conv2d(4, 2, 1))
    images = torch.randn(2, 3, 6, 6)
    randomize(network, images)
    expected = outputs(network, images)
    graph = trace(network, images)
    assert list(fold_batch_norms(graph)) == ["0"]
    torch.testing.assert_close(outputs(graph, images), expected, atol=1e-5, rtol=1e-5)
    assert [node.target for node in graph.graph.nodes if node.op == "call_module"] == ["0", "1.act", "2"]


def test_a_folded_network_can_be_copied_quantized_and_trained():
    images = torch.randn(2, 3, 32, 32)
    graph = trace(build_model("resnet20"), images)
    fold_batch_norms(graph)
    duplicate = copy.deepcopy(graph)
    insert_quantizers(
        duplicate, {"layer1.0.conv1.weight": AffineQuantizer(8), "layer1.0.conv1.bias": AffineQuantizer(8)}
    )
    duplicate(images).sum().backward()
    assert duplicate.get_submodule("conv1").bias.grad is not None
    with pytest.raises(UserError, match=r"layer1\.0\.conv1\.weight is quantized already"):
        fold_batch_norms(duplicate)


def test_own_parameters_are_copies_under_every_name():
    conv = nn.Conv2d(3, 3, 1, bias=False)
    conv.weight.requires_grad_(False)
    network = nn.Sequential(conv, nn.ReLU(), conv)
    graph = trace(network, torch.randn(1, 3, 4, 4))
    own = own_parameters(graph, "0", bias=True)
    assert own is graph.get_submodule("0") is graph.get_submodule("2")
    assert own.weight is not conv.weight and torch.equal(own.weight, conv.weight) and not own.weight.requires_grad
    assert own.bias.tolist() == [0, 0, 0] and conv.bias is None
    assert own_parameters(trace(network, torch.randn(1, 3, 4, 4)), "0").bias is None
