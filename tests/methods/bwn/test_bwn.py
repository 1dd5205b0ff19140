"""BWN: scales, gradients and what is stored."""

import pytest
import torch

from common.errors import UserError
from methods.bwn import BWN


def test_one_scale_per_output_channel_or_per_layer():
    assert BWN().network.conv2.weight_quantizer.scales.shape == (32, 1)
    assert BWN(per_channel=False).network.conv2.weight_quantizer.scales.shape == (1, 1)


def test_first_and_last_layer_stay_in_float_by_default():
    assert set(BWN().quantizers) == {f"{n}.weight" for n in ("block.conv1", "block.conv2", "conv2", "conv3")}


def test_trained_weights_are_two_values_a_channel_with_the_least_error(fit):
    module = BWN()
    fit(module, steps=4)
    layer = module.eval().network.conv3
    binary, latent = layer.weight_quantizer(layer.weight), layer.weight
    assert all(channel.unique().numel() == 2 for channel in binary)
    error = (binary - latent).square().sum()
    for factor in (0.99, 1.01):
        assert (factor * binary - latent).square().sum() > error


def test_the_paper_s_gradient_is_smaller_by_alpha_and_one_over_n():
    grads = {}
    for rule in ("ste", "xnor"):
        module = BWN(gradient=rule)
        layer = module.train().network.conv2
        layer(torch.randn(2, 16, 8, 8, generator=torch.Generator().manual_seed(0))).sum().backward()
        grads[rule] = layer.weight.grad
    slope = layer.weight.detach().abs().mean((1, 2, 3), keepdim=True) + 1 / 144
    torch.testing.assert_close(grads["xnor"], grads["ste"] * slope)


def test_another_width_is_refused():
    with pytest.raises(UserError, match=r"BWN, layer block\.conv1: bit_width of BWN must be one of"):
        BWN(weight_bit_width=2)
