"""AIWQ: the divergence by the book, and a measurement that leaves the network as it is."""

import math

import pytest
import torch
import torch.nn.functional as F

from methods.profit import PROFIT
from methods.profit.instability import gaussian_divergence, weight_divergences


def by_the_book(new, old):
    total = 0.0
    for c in range(new.shape[1]):
        a, b = (y[:, c].reshape(-1) for y in (new, old))
        (ma, sa), (mb, sb) = ((y.mean().item(), y.std(correction=0).item()) for y in (a, b))
        total += math.log(sb / sa) + (sa**2 + (ma - mb) ** 2) / (2 * sb**2) - 0.5
    return total / new.shape[1]


@pytest.mark.parametrize("shape", [(8, 3, 5, 5), (50, 4)])
def test_divergence_by_the_book(shape):
    generator = torch.Generator().manual_seed(1)
    new, old = (torch.randn(shape, generator=generator, dtype=torch.double) for _ in range(2))
    new = 1.3 * new + 0.2
    assert gaussian_divergence(new, old).item() == pytest.approx(by_the_book(new, old), rel=1e-9)


def test_worked_numbers():
    # One channel: N(0, 1) before; N(1, 1) after: 1/2. N(0, 4) after: log(1/2) + 2 - 1/2.
    old = torch.tensor([[-1.0], [1.0]])
    assert gaussian_divergence(old + 1, old).item() == pytest.approx(0.5)
    assert gaussian_divergence(2 * old, old).item() == pytest.approx(0.8068528)
    assert gaussian_divergence(old, old).item() == 0.0


def test_channels_without_any_variance():
    zeros = torch.zeros(4, 2, 3, 3)
    assert gaussian_divergence(zeros, zeros).item() == 0.0
    assert gaussian_divergence(torch.randn(4, 2, 3, 3), zeros).item() > 1  # ignored later on
    assert gaussian_divergence(zeros, torch.randn(4, 2, 3, 3)).isfinite()


def test_a_measurement_compares_the_layers_on_their_quantized_inputs():
    torch.manual_seed(0)
    module = PROFIT()
    images = torch.randn(16, 1, 8, 8)
    module.calibrate([images])
    module.train()
    module.network.bn1.eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    weights = {site: module.quantizers[site](w).detach() for site, w in module.latent_weights().items()}
    pairs = {site: (w, w) for site, w in weights.items()}
    changed = weights["block.conv1.weight"] + 0.1
    pairs["block.conv1.weight"] = changed, weights["block.conv1.weight"]
    found = dict(zip(pairs, weight_divergences(module.network, images, pairs).tolist(), strict=True))
    assert {site for site, value in found.items() if value} == {"block.conv1.weight"}
    network = module.network
    with torch.no_grad():
        x = F.conv2d(images, weights["conv1.weight"], padding=1)
        x = network.block.conv1.input_quantizer(network.relu1(network.bn1.eval()(x)))
        new, old = (F.conv2d(x, w, padding=1) for w in pairs["block.conv1.weight"])
    assert found["block.conv1.weight"] == pytest.approx(by_the_book(new, old), rel=1e-4)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert network.training and network.conv2.training and not network.bn1.training
