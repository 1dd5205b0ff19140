"""APoT as a method: what stands where, the start of its clipping levels, its gradients by setting."""

import pytest
import torch

from common.errors import UserError
from common.quantizers.apot import CANDIDATES
from common.quantizers.apot import APoT as Grid
from common.quantizers.lsq import LSQ
from methods.apot import APoT


def images(count=32):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_normalized_weights_within_and_a_uniform_grid_at_both_ends():
    module = APoT(weight_bit_width=2, activation_bit_width=3)
    module.calibrate([images()])
    kinds = {site: type(q).__name__ for site, q in module.quantizers.items()}
    assert kinds["conv1.weight"] == kinds["linear.weight"] == kinds["linear.input"] == "LSQ"
    assert kinds["conv2.weight"] == "TransformedQuantizer" and kinds["conv2.input"] == "APoT"
    weight = module.network.conv2.weight
    y = module.quantizers["conv2.weight"](weight)
    assert y.unique().tolist() == [-3.0, 0.0, 3.0]
    assert torch.equal(module.quantizers["conv2.weight"](10 * weight + 1), y)
    assert isinstance(module.quantizers["linear.weight"], LSQ)


def test_constant_start_keeps_the_alphas():
    module = APoT(weight_alpha=2.0, activation_alpha=6.0)
    module.calibrate([images()])
    assert module.quantizers["conv2.weight"].grid.scale == 2 and module.quantizers["conv2.input"].scale == 6


@pytest.mark.parametrize("bit_width, signed", [(2, True), (2, False), (4, True), (3, False)])
def test_least_squares_start(bit_width, signed):
    x = torch.randn(5000, generator=torch.Generator().manual_seed(1))
    x = x if signed else x.relu()
    grid = Grid(bit_width, signed, start="mse")
    grid.calibrate(x)
    found, largest = grid.scale.item(), x.abs().max().item()

    def error(alpha):
        grid.scale.data.fill_(alpha)
        return (grid(x) - x).square().mean().item()

    neighbours = [error(found * 0.9), error(found * 1.1), error(3.0 if signed else 8.0)]
    assert error(found) <= min(neighbours) and found * CANDIDATES / largest == pytest.approx(
        round(found * CANDIDATES / largest), abs=1e-3
    )
    grid.calibrate(torch.zeros(4))
    assert grid.scale.isfinite()


@pytest.mark.parametrize("settings, straight", [({}, True), ({"straight": False}, False)])
def test_two_bit_weights_pass_the_gradient_beyond_the_range(settings, straight):
    assert APoT(weight_bit_width=2, **settings).quantizers["conv2.weight"].grid.straight is straight
    assert APoT(weight_bit_width=3).quantizers["conv2.weight"].grid.straight is False


@pytest.mark.parametrize("differentiate, gradient", [(True, 0.0), (False, 3.0)])
def test_a_shift_of_all_weights_is_undone_by_the_normalization(differentiate, gradient):
    module = APoT(straight=True, differentiate_statistics=differentiate, weight_bit_width=4)
    weight = torch.tensor([-0.4, -0.1, 0.2, 0.3], requires_grad=True)
    y = module.quantizers["conv2.weight"](weight)
    y.backward(torch.tensor([1.0, 0.0, 0.0, 2.0]))
    total = weight.grad.sum() * weight.detach().std()
    assert total.item() == pytest.approx(gradient, abs=1e-5)


def test_settings_that_it_does_not_have():
    with pytest.raises(UserError, match="start must be constant or mse, got 'kl'"):
        APoT(start="kl")
    with pytest.raises(UserError, match="bit_width of APoT must be one of"):
        APoT(weight_bit_width=1)
