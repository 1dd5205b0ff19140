"""The trainer that quantization-aware methods share: sites by rule, groups, calibration, sizes."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn

from common.errors import UserError
from common.quantizers import SymmetricQuantizer
from common.quantizers.lsq import LSQ
from common.training.quantization_aware import QuantizationAware
from data import DigitsData

LAYERS = ("conv1", "block.conv1", "block.conv2", "conv2", "conv3", "linear")


class Scaled(SymmetricQuantizer):
    """A grid with a learned factor, which is told what it sees."""

    def __init__(self, bit_width, signed):
        super().__init__(bit_width, signed)
        self.factor = nn.Parameter(torch.ones(()))
        self.seen, self.steps = None, 0

    def calibrate(self, x):
        self.seen = x.clone()
        super().calibrate(x, float(x.abs().max()))

    def after_step(self):
        self.steps += 1

    def forward(self, x):
        return super().forward(x) * self.factor if self.training else super().forward(x)


class Invented(QuantizationAware):
    def weight_quantizer(self, layer, bit_width):
        return Scaled(bit_width, True)

    def input_quantizer(self, site, bit_width):
        return Scaled(bit_width, not site.non_negative)


def bits(module):
    return {name: int(width) for name, width in module.policy().sites.items()}


@pytest.mark.parametrize(
    "first_last, first, last, last_input",
    [("8bit", 8, 8, 8), ("float", None, None, None), ("same", 2, 2, 4)],
)
def test_the_rule_for_the_first_and_the_last_layer(first_last, first, last, last_input):
    widths = bits(Invented(weight_bit_width=2, activation_bit_width=4, first_last=first_last))
    assert (widths.get("conv1.weight"), widths.get("linear.weight"), widths.get("linear.input")) == (
        first, last, last_input,
    )  # fmt: skip
    assert "conv1.input" not in widths  # the image
    assert all(widths[f"{name}.weight"] == 2 and widths[f"{name}.input"] == 4 for name in LAYERS[1:-1])


def test_weights_alone():
    widths = bits(Invented(weight_bit_width=2, activation_bit_width=32))
    assert set(widths) == {f"{name}.weight" for name in LAYERS}


def test_inputs_alone():
    module = Invented(weight_bit_width=32, activation_bit_width=4, first_last="same")
    assert set(bits(module)) == {f"{name}.input" for name in LAYERS[1:]}
    assert (module.wcr(), module.acr()) == (1.0, 8.0)


def test_sizes_count_float_layers():
    module = Invented(weight_bit_width=2, activation_bit_width=4, first_last="float")
    sizes = {"conv1": 144, "block.conv1": 2304, "block.conv2": 2304, "conv2": 4608, "conv3": 9216, "linear": 320}
    assert module.num_float_weights() == 144 + 320
    body = sum(sizes.values()) - 464
    assert module.wcr() == pytest.approx(4 * (body + 464) / (body / 4 + 4 * 464))
    assert module.acr() == 8.0
    assert Invented(weight_bit_width=32, activation_bit_width=32).acr() == 1.0


def test_quantizers_see_their_weights_and_the_first_batch(fit):
    module = Invented(calibration_batches=1)
    weight = module.network.state_dict()["conv2.weight"].clone()
    fit(module, steps=1)
    assert torch.equal(module.quantizers["conv2.weight"].seen, weight)
    seen = module.quantizers["block.conv1.input"].seen
    assert seen.shape == (16 * 16 * 8 * 8,) and seen.min() >= 0  # behind a ReLU, whole
    assert {q.steps for q in module.quantizers.values()} == {1}


def test_groups_learn_at_their_own_rates():
    module = Invented(learning_rate=0.1, quantizer_learning_rate=0.01, weight_decay=1e-3, decay_norms=False)
    weights, norms, learned = module.parameter_groups()
    assert len(learned["params"]) == len(module.quantizers) and learned["lr"] == pytest.approx(0.001)
    assert (weights["weight_decay"], norms["weight_decay"], learned["weight_decay"]) == (1e-3, 0.0, 0.0)
    assert all(p.ndim > 1 for p in weights["params"]) and all(p.ndim == 1 for p in norms["params"])
    count = sum(len(group["params"]) for group in (weights, norms, learned))
    assert count == len(list(module.parameters()))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "radam"])
def test_every_optimizer_trains(fit, optimizer):
    module = Invented(optimizer=optimizer, learning_rate=1e-3)
    before = module.network.state_dict()["conv3.weight"].clone()
    fit(module, steps=3)
    assert not torch.equal(module.network.state_dict()["conv3.weight"], before)


def test_frozen_batch_norm_keeps_its_statistics(fit):
    def statistics(**settings):
        module = Invented(**settings)
        before = {k: v.clone() for k, v in module.network.state_dict().items() if "running" in k}
        fit(module, steps=2)
        return [torch.equal(module.network.state_dict()[k], v) for k, v in before.items()]

    assert all(statistics(batch_norm="freeze"))
    assert not any(statistics(batch_norm="train"))


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"first_last": "wide"}, "first_last must be one of float, 8bit, same, got 'wide'"),
        ({"batch_norm": "fold"}, "batch_norm must be one of train, freeze"),
        ({"optimizer": "lion"}, "optimizer must be one of sgd, adam, radam"),
        ({"learning_rate_schedule": "steps"}, "unknown learning_rate_schedule"),
        ({"weight_bit_width": 17}, "Invented, layer block.conv1: bit_width must be in"),
    ],
)
def test_settings_that_do_not_exist_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        Invented(**settings)
    assert "\n" not in str(caught.value)


def test_several_batches_are_sampled(monkeypatch):
    from common.training import quantization_aware

    monkeypatch.setattr(quantization_aware, "CALIBRATION_VALUES", 100)
    module = Invented(calibration_batches=3)
    data = DigitsData(batch_size=32)
    data.setup()
    module.calibrate(images for images, _ in data.calibration_batches(3))
    assert module.quantizers["linear.input"].seen.shape == (300,)


class Lent(Invented):
    own_eight_bits = False


def test_a_method_without_eight_bits_takes_those_of_lsq_at_both_ends():
    module = Lent(weight_bit_width=2, activation_bit_width=4, first_last="8bit")
    kinds = {name: type(quantizer) for name, quantizer in module.quantizers.items()}
    assert {name for name, kind in kinds.items() if kind is LSQ} == {"conv1.weight", "linear.weight", "linear.input"}
    assert {name for name, width in bits(module).items() if width == 8} == {
        "conv1.weight", "linear.weight", "linear.input",
    }  # fmt: skip
    assert LSQ not in {type(q) for q in Lent(first_last="same").quantizers.values()}


def test_random_numbers_are_drawn_before_every_step(fit, monkeypatch):
    drawn = []
    monkeypatch.setattr(Scaled, "draw", lambda self, key, step: drawn.append((key, step)), raising=False)
    module = Invented(seed=4)
    fit(module, steps=2)
    sites = list(module.quantizers)
    assert drawn == [(module.noise_key(site), step) for step in (0, 1) for site in sites]


def test_batch_norm_freezes_on_the_way(fit):
    seen = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            norms = [m for m in pl_module.network.modules() if isinstance(m, nn.BatchNorm2d)]
            seen.append({norm.training for norm in norms})

    fit(Invented(batch_norm="freeze", batch_norm_freeze_at=0.5), max_epochs=2, callbacks=[Watch()])
    assert len(seen) == 16 and seen == [{True}] * 8 + [{False}] * 8


def test_the_latent_weights_are_those_behind_quantizers():
    module = Invented(first_last="float")
    assert list(module.latent_weights()) == [f"{name}.weight" for name in LAYERS[1:-1]]
    assert module.latent_weights()["conv3.weight"] is module.network.get_parameter("conv3.weight")
