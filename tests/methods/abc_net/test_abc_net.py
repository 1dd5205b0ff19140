"""ABC-Net: numbers of planes and of levels, thresholds that follow the data."""

import pytest
import torch

from common.errors import UserError
from methods.abc_net import ABCNet


@pytest.mark.parametrize("weights, inputs", [(1, 1), (2, 3), (5, 5)])
def test_m_planes_of_weights_and_n_of_inputs(fit, weights, inputs):
    module = ABCNet(weight_bit_width=weights, activation_bit_width=inputs)
    fit(module, steps=2)
    layer = module.eval().network.conv2
    assert layer.weight_quantizer(layer.weight).unique().numel() <= 2**weights
    assert layer.input_quantizer(torch.linspace(-9, 9, 5001)).unique().numel() == inputs + 1
    assert {module.policy().sites["conv2.weight"], module.policy().sites["conv2.input"]} == {weights, inputs}


def test_thresholds_start_around_the_inputs_and_move(fit):
    module = ABCNet(weight_bit_width=2, activation_bit_width=2)
    quantizer = module.network.conv2.input_quantizer
    quantizer.calibrate(torch.tensor([1.0, 3.0, 5.0, 7.0]))  # mean 4, standard deviation sqrt(20 / 3)
    thresholds = 0.5 - quantizer.shifts.detach()
    torch.testing.assert_close(thresholds, 4 + (20 / 3) ** 0.5 * torch.tensor([-0.5, 0.5]))
    fit(module, steps=1)
    before = quantizer.shifts.detach().clone()
    fit(module, steps=4)
    assert not torch.equal(quantizer.shifts.detach(), before)


def test_inputs_may_stay_in_float():
    assert not ABCNet(activation_bit_width=32).quantizers_of("edge")


def test_more_planes_than_there_are_is_refused():
    with pytest.raises(UserError, match=r"ABCNet, layer block\.conv1"):
        ABCNet(weight_bit_width=9)
