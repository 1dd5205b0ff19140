"""HWGQ as a method: binary weights per channel, levels scaled to their input, statistics of the final weights."""

import pytest
import torch

from common.errors import UserError
from common.quantizers.half_wave import HWGQ as Grid
from methods.hwgq import HWGQ


def images(count=32):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_weights_are_a_sign_and_a_mean_per_channel():
    module = HWGQ()
    module.calibrate([images()])
    weight = module.network.conv2.weight.detach()
    y = module.quantizers["conv2.weight"](weight)
    expected = torch.where(weight >= 0, 1.0, -1.0) * weight.abs().mean((1, 2, 3), keepdim=True)
    torch.testing.assert_close(y, expected)
    assert "conv1.weight" not in module.quantizers and "linear.weight" not in module.quantizers


@pytest.mark.parametrize("factor", [1.0, 0.1, 7.0])
def test_levels_follow_the_scale_of_the_input(factor):
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(1)).relu() * factor
    grid = Grid(2)
    grid.calibrate(x)
    assert grid.scale.item() == pytest.approx(factor, rel=0.01)
    levels = grid(x).unique()
    torch.testing.assert_close(levels, factor * torch.tensor([0, 0.538812, 1.077624, 1.616436]), rtol=0.01, atol=1e-6)


def test_an_input_without_positive_values():
    grid = Grid(2)
    grid.calibrate(torch.zeros(10))
    assert grid.scale == 1


def test_scales_are_those_of_the_final_weights(fit):
    module = HWGQ(learning_rate=0.1)
    fit(module, steps=4)
    for site, quantizer in module.quantizers_of("weight").items():
        weight = module.network.get_parameter(site).detach()
        torch.testing.assert_close(quantizer.scales[:, 0], weight.flatten(1).abs().mean(1))


def test_scaled_gradient_ends_at_the_largest_level():
    grid = Grid(2)
    grid.scale.fill_(2.0)
    top = 2 * grid.levels[-1].item()
    x = torch.tensor([-0.1, 0.0, 0.1, top - 0.01, top + 0.01], requires_grad=True)
    grid(x).sum().backward()
    assert x.grad.tolist() == [0, 0, 1, 1, 0]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"weight_bit_width": 2}, "HWGQ, layer block.conv1: bit_width of BWN must be one of"),
        ({"gradient": "ste"}, "gradient must be one of clipped, relu, log_tailed, got 'ste'"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        HWGQ(**settings)
