"""Uniform quantization: HMQ's sites at one width, calibrated scales, weights that train straight through."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from common.errors import UserError
from common.quantizers import PowerOfTwoQuantizer
from methods.hmq import HMQ
from methods.uniform import Uniform


def images(count=16, seed=0):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def test_sites_are_those_of_hmq():
    assert list(Uniform().quantizers) == list(HMQ().quantizers)


@pytest.mark.parametrize("bits, wcr", [(8, 4.0), (4, 8.0), (2, 16.0), (1, 32.0)])
def test_one_width_for_all_weights(bits, wcr):
    module = Uniform(weight_bit_width=bits)
    assert {int(q.bit_width) for q in module.quantizers_of("weight").values()} == {bits}
    assert module.wcr() == wcr


def test_first_and_last_layer_may_have_a_width_of_their_own():
    module = Uniform(weight_bit_width=2, first_last_weight_bit_width=8)
    assert [int(q.bit_width) for q in module.quantizers_of("weight").values()] == [8, 2, 2, 2, 2, 8]
    assert module.wcr() == 4 * 18896 / (144 + 320 + (18896 - 464) / 4)


@pytest.mark.parametrize("target, widths", [(4, (8, 8, 8)), (8, (4, 8, 8)), (16, (2, 4, 8)), (20, (1, 3, 6))])
def test_activation_widths_follow_from_the_memory_bound(target, widths):
    module = Uniform(model="resnet20", target_acr=target)
    found = [int(q.bit_width) for q in module.quantizers_of("tensor").values()]
    assert found == [widths[0]] * 7 + [widths[1]] * 6 + [widths[2]] * 6


def test_weights_are_signed_and_relu_outputs_unsigned():
    module = Uniform()
    assert all(q.signed for q in module.quantizers_of("weight").values())
    assert not any(q.signed for q in module.quantizers_of("tensor").values())


def test_calibration_sees_the_float_network():
    # The second activation's scale must not depend on the quantizer before it, here one that gives nothing but 0.
    scales = []
    for broken in (False, True):
        module = Uniform()
        if broken:
            grid = module.quantizers["relu1.output"].grid
            grid.quant_max.fill_(0.0)
        module.calibrate([images()])
        scales.append(float(module.quantizers["relu2.output"].grid.scale))
    assert scales[0] == scales[1] > 0


def test_calibrated_weights_have_a_small_error():
    module = Uniform(weight_bit_width=8)
    module.calibrate([images()])
    weight = module.network.conv2.weight
    quantizer = module.quantizers["conv2.weight"]
    assert (quantizer(weight) - weight).abs().max() <= weight.abs().max() / 128


def test_calibration_is_the_same_for_the_same_seed():
    scales = []
    for _ in range(2):
        module = Uniform(seed=2)
        module.calibrate([images(seed=i) for i in range(3)])
        scales.append([float(q.grid.scale) for q in module.quantizers.values()])
    assert scales[0] == scales[1]


def test_thresholds_may_be_restricted_to_powers_of_two():
    module = Uniform(power_of_two=True)
    module.calibrate([images()])
    for quantizer in module.quantizers.values():
        assert isinstance(quantizer, PowerOfTwoQuantizer)
        assert torch.frexp(quantizer.grid.scale).mantissa == 0.5


class Watch(Callback):
    """Scales and weights after every step."""

    def __init__(self):
        self.scales, self.weights = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.scales.append([float(q.grid.scale) for q in pl_module.quantizers.values()])
        self.weights.append({name: p.detach().clone() for name, p in pl_module.network.named_parameters()})


def test_scales_stay_and_weights_move(fit):
    watch = Watch()
    fit(Uniform(learning_rate=0.01), steps=4, callbacks=[watch])
    assert watch.scales[0] == watch.scales[3]
    assert not [name for name, first in watch.weights[0].items() if torch.equal(first, watch.weights[3][name])]


def test_less_than_one_bit_is_refused():
    with pytest.raises(UserError, match="activation compression 40 leaves"):
        Uniform(target_acr=40)


@pytest.mark.parametrize("bits", [0, 17])
def test_widths_that_there_are_not_are_refused(bits):
    with pytest.raises(ValueError, match=r"bit_width must be in \[1, 16\]"):
        Uniform(weight_bit_width=bits)


def test_an_unknown_learning_rate_schedule_is_refused():
    with pytest.raises(UserError, match="unknown learning_rate_schedule 'linear'"):
        Uniform(learning_rate_schedule="linear")
