"""Expectations and ranges from batch norm: closed forms, golden numbers, and what the graph makes of them."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.calibration.batch_norm import (
    BatchNormObserver,
    ClippedNormal,
    activation_distributions,
    batch_norm_observers,
    expected_inputs,
)
from common.graph import activation_outputs, find_sites, insert_quantizers, trace
from common.graph.equalization import equalize
from common.graph.folding import NormStatistics, fold_batch_norms
from common.models import build_model
from common.quantizers import AffineQuantizer


def normal(mean, std) -> ClippedNormal:
    return ClippedNormal.of(torch.as_tensor(mean, dtype=torch.float64), torch.as_tensor(std, dtype=torch.float64))


@pytest.mark.parametrize(
    "beta, gamma, relu, relu6",
    [
        (0.5, 1.0, 0.6977965574013061, 0.6977965541462993),
        (0.0, 1.0, 0.3989422804014327, 0.39894228024507605),
        (-1.0, 0.5, 0.004245351308414823, 0.004245351308414823),
        (1.0, 2.0, 1.3955931148026122, 1.3915848404443558),
    ],
)
def test_bn_expected_activation(beta, gamma, relu, relu6):
    x = normal([beta], [gamma])
    assert x.expectation().item() == pytest.approx(beta, abs=1e-12)
    assert x.clipped(0, math.inf).expectation().item() == pytest.approx(relu, abs=1e-9)
    assert x.clipped(0, 6).expectation().item() == pytest.approx(relu6, abs=1e-9)
    # gamma phi(beta / gamma) + beta Phi(beta / gamma), and the formula for a clip to [lo, hi]
    phi, mass = (lambda z: math.exp(-z * z / 2) / math.sqrt(2 * math.pi)), (lambda z: math.erfc(-z / math.sqrt(2)) / 2)
    assert gamma * phi(beta / gamma) + beta * mass(beta / gamma) == pytest.approx(relu, abs=1e-12)
    a, b = -beta / gamma, (6 - beta) / gamma
    by_formula = gamma * (phi(a) - phi(b)) + beta * (mass(b) - mass(a)) + 6 * (1 - mass(b))
    assert by_formula == pytest.approx(relu6, abs=1e-12)


def test_range_6_sigma():
    x = normal([0.5, -1.0], [1.0, 0.5])
    for distribution, expected in [
        (x, (-5.5, 6.5)),
        (x.clipped(0, math.inf), (0.0, 6.5)),
        (x.clipped(0, 6), (0.0, 6.0)),
    ]:
        observer = BatchNormObserver(distribution)
        observer.update(torch.tensor([1000.0]))
        observer.merge(observer)
        assert tuple(end.item() for end in observer.range(8)) == expected
    assert BatchNormObserver(x).range(8, signed=False)[0] == 0


@pytest.mark.parametrize("low, high", [(-math.inf, math.inf), (0, math.inf), (0, 6), (-1, 0.5), (2, 3), (-3, math.inf)])
@pytest.mark.parametrize("mean, std", [(0.0, 1.0), (-2.0, 0.7), (3.0, 2.5), (30.0, 1e-3), (-30.0, 1.0), (0.4, 0.0)])
def test_moments_are_those_of_the_integral(mean, std, low, high):
    x = ClippedNormal.of(torch.tensor([mean]), torch.tensor([std])).clipped(low, high)
    z = torch.linspace(-12, 12, 2_000_001, dtype=torch.float64)
    weights = torch.exp(-(z**2) / 2)
    y = (mean + torch.tensor([std]).double() * z).clamp(low, high)
    expected = (weights * y).sum() / weights.sum()
    variance = (weights * (y - expected) ** 2).sum() / weights.sum()
    assert x.expectation().item() == pytest.approx(expected.item(), abs=1e-6)
    assert x.variance().item() == pytest.approx(variance.item(), abs=1e-5)
    assert low <= x.expectation().item() <= high


def test_expectations_are_not_negative_after_relu():
    x = normal(torch.linspace(-60, 60, 10_001), torch.linspace(1e-6, 3, 10_001)).clipped(0, 6)
    assert x.expectation().min() >= 0 and x.expectation().max() <= 6 and x.variance().min() >= 0


class Paths(nn.Module):
    """What a distribution goes through: residual sum, concatenation, channels of zeros, strides, pools, a flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)
        self.left, self.bn_left = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.after_add, self.bn_after = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.after_cat, self.after_pad, self.after_other = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 2, 1), nn.Conv2d(4, 2, 1)
        self.bn_alone = nn.BatchNorm2d(2)
        self.fc = nn.Linear(2 * 2 * 2, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.bn(self.stem(x)))
        y = F.relu(self.bn_left(self.left(x)) + x)
        z = self.bn_after(self.after_add(y))
        other = self.after_other(torch.sigmoid(z))
        z = self.after_cat(torch.cat([y, z], 1)).relu()
        z = F.pad(y[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2))
        z = self.after_pad(z)
        z = F.relu(self.bn_alone(F.max_pool2d(z + other[:, :, ::2, ::2], 2)))
        return self.fc(torch.flatten(z, 1))


@pytest.fixture
def paths():
    torch.manual_seed(0)
    network = Paths().eval()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    graph = trace(network, torch.randn(1, 3, 8, 8))
    return graph, fold_batch_norms(graph)


def test_expected_inputs_along_the_graph(paths):
    graph, statistics = paths
    assert list(statistics) == ["stem", "left", "after_add"]
    expected = expected_inputs(graph, statistics)
    assert list(expected) == ["left", "after_add", "after_cat", "after_pad", "fc"]  # image and sigmoid: unknown

    stem = ClippedNormal.of(statistics["stem"].mean, statistics["stem"].std).clipped(0, 6)
    torch.testing.assert_close(expected["left"], stem.expectation().float())
    left = statistics["left"]
    total = normal(left.mean + stem.expectation(), (left.std**2 + stem.variance()).sqrt()).clipped(0, math.inf)
    torch.testing.assert_close(expected["after_add"], total.expectation().float())
    after = statistics["after_add"].mean
    torch.testing.assert_close(expected["after_cat"], torch.cat([total.expectation().float(), after]))
    torch.testing.assert_close(expected["after_pad"], F.pad(total.expectation(), (2, 2)).float())
    norm = graph.bn_alone
    behind = normal(norm.bias.detach(), norm.weight.detach().abs()).clipped(0, math.inf).expectation().float()
    torch.testing.assert_close(expected["fc"], behind.repeat_interleave(4))


def test_the_mean_of_the_images_makes_the_first_layer_known(paths):
    graph, statistics = paths
    mean = torch.tensor([0.1, -0.2, 0.3])
    torch.testing.assert_close(expected_inputs(graph, statistics, mean)["stem"], mean)


def test_a_sum_of_a_tensor_with_itself_has_twice_its_mean():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.a(x)
            return self.b(x + x)

    graph = trace(Twice(), torch.randn(1, 2, 4, 4))
    statistics = {"a": NormStatistics(torch.tensor([1.0, -2.0]), torch.ones(2))}
    assert expected_inputs(graph, statistics)["b"].tolist() == [2.0, -4.0]


def test_expectations_on_gaussian_inputs_are_the_measured_ones():
    """One layer on white noise is exactly Gaussian, so that nothing is approximate but the sample."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU6(), nn.Conv2d(8, 4, 1))
    nn.init.uniform_(network[1].weight, -2, 2)
    nn.init.normal_(network[1].bias, std=2)
    network[1].momentum = None
    images = torch.randn(64, 3, 32, 32)
    with torch.no_grad():
        network.train()(images)
        measured = network.eval()[:3](images).mean((0, 2, 3))
    graph = trace(network, images)
    statistics = fold_batch_norms(graph)
    torch.testing.assert_close(expected_inputs(graph, statistics)["3"], measured, atol=0.02, rtol=0.02)
    equalize(graph, statistics)  # caps and statistics are scaled alike
    with torch.no_grad():
        measured = graph.get_submodule(next(n.target for n in graph.graph.nodes if n.name == "_2"))(
            graph.get_submodule("0")(images)
        ).mean((0, 2, 3))
    torch.testing.assert_close(expected_inputs(graph, statistics)["3"], measured, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    "name, size, layers", [("mobilenet_v2", 64, 53), ("mobilenet_v2_relu", 64, 54), ("resnet20", 32, 20)]
)
def test_every_layer_but_the_first_is_known(name, size, layers):
    images = torch.randn(1, 3, size, size)
    graph = trace(build_model(name).eval(), images)
    statistics = fold_batch_norms(graph)
    known = expected_inputs(graph, statistics)
    assert len(known) == layers - 1
    for layer, mean in known.items():
        module = graph.get_submodule(layer)
        assert len(mean) == (module.in_channels if isinstance(module, nn.Conv2d) else module.in_features)
    sites = activation_outputs(find_sites(graph, images), graph)
    observers = batch_norm_observers(graph, statistics, sites)
    assert list(observers) == [site.name for site in sites]
    for site in sites:
        low, high = observers[site.name].range(8)
        assert low < high and (low >= 0) == site.non_negative


def test_quantizers_are_looked_through(paths):
    graph, statistics = paths
    before = expected_inputs(graph, statistics)
    insert_quantizers(graph, {"relu6.output": AffineQuantizer(8), "left.weight": AffineQuantizer(8)})
    after = expected_inputs(graph, statistics)
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    names = {node.name for node in activation_distributions(graph, statistics)}
    assert "activation_quantizers_relu6" in names
