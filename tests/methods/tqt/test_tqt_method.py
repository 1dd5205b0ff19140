"""TQT as a method: thresholds at the start, the rates of weights and thresholds, freezing one by one."""

import math

import pytest
import torch

from common.errors import UserError
from methods.tqt import TQT
from methods.tqt.module import kl_threshold


def images(count=64):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def test_weights_start_at_three_deviations_and_inputs_by_kl():
    module = TQT(weight_bit_width=4, activation_bit_width=4)
    module.calibrate([images()])
    weight, quantizer = module.network.conv2.weight, module.quantizers["conv2.weight"]
    assert quantizer.log2_threshold.item() == pytest.approx(math.log2(3 * weight.std().item()), abs=1e-5)
    assert module.quantizers["conv2.input"].start is kl_threshold


def test_kl_clips_a_long_tail_and_keeps_a_flat_range():
    x = torch.cat([torch.linspace(0.001, 1, 100_000), torch.tensor([30.0])])
    assert kl_threshold(x, 4, False) < 2
    assert kl_threshold(x[:-1], 4, False) == pytest.approx(1.0, abs=0.01)
    assert kl_threshold(torch.zeros(10), 4, False) < 1e-6


def test_inputs_behind_a_relu_are_unsigned_and_every_scale_is_a_power_of_two():
    module = TQT()
    module.calibrate([images()])
    assert not any(q.signed for q in module.quantizers_of("edge").values())
    steps = [float(q.step_size()) for q in module.quantizers.values()]
    assert all(math.frexp(step)[0] == 0.5 for step in steps)


def test_thresholds_learn_at_their_own_rate(fit):
    module = TQT(learning_rate=1e-3, quantizer_learning_rate=10.0, threshold_rate_interval=0.25)
    trainer = fit(module, steps=8)
    learned = {id(p) for p in module.thresholds()}
    rates = {id(g["params"][0]) in learned: g["lr"] for g in trainer.optimizers[0].param_groups}
    assert rates == {False: pytest.approx(1e-3), True: pytest.approx(1e-2 * 0.5**4)}


def test_rates_fall_like_stairs(fit):
    module = TQT(weight_rate_interval=0.5, threshold_rate_interval=0.25)
    fit(module, steps=8)
    factors = {f for scheduler in [module.lr_schedulers()] for f in scheduler.lr_lambdas}
    assert [sorted(f(step) for f in factors) for step in (0, 1, 2, 4)] == [[1, 1], [1, 1], [0.5, 1], [0.25, 0.94]]


def test_thresholds_freeze_one_by_one_and_stay(fit):
    module = TQT(learning_rate=1e-3, quantizer_learning_rate=10.0, freeze_thresholds_at=0.25, freeze_every=2)
    fit(module, steps=8)
    assert module.frozen.sum() == 4  # after steps 2, 4, 6 and 8
    for frozen, held, parameter in zip(module.frozen, module.held, module.thresholds(), strict=True):
        assert not frozen or parameter.item() == held.item()


def test_a_frozen_threshold_is_the_one_with_the_smallest_gradient():
    module = TQT(freeze_thresholds_at=0.0, freeze_every=1)
    for i, parameter in enumerate(module.thresholds()):
        parameter.grad = torch.tensor(-1.0 - (i + 3) % 5)
    module.thresholds()[2].data.fill_(0.5)
    module.step, module.total_steps = 1, 10
    module.after_optimizer_step()
    assert module.frozen.nonzero().flatten().tolist() == [2]
    module.thresholds()[2].data.fill_(7.0)  # momentum
    module.after_optimizer_step()
    assert module.thresholds()[2].item() == 0.5


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"weight_start": "mse"}, "a threshold starts at max, 3std or kl, got 'mse'"),
        ({"freeze_thresholds_at": 2}, "freeze_thresholds_at must be a fraction of the training, got 2"),
        ({"freeze_every": 0}, "freeze_every must be at least 1, got 0"),
        ({"weight_rate_interval": 0}, "weight_rate_interval must be a fraction of the training above 0, got 0"),
        ({"weight_bit_width": 1}, "TQT, layer block.conv1: bit_width of TQT must be one of"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(UserError, match=message):
        TQT(**settings)
