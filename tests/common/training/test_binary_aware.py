"""What binary methods share: clipped and centred latent weights, their learning rate, fresh statistics, the loss."""

import math

import pytest
import torch
from torch import nn

from common.errors import UserError
from common.quantizers.binary import BWN, SignQuantizer
from common.training.binary_aware import BinaryAware, square_hinge


class Invented(BinaryAware):
    def weight_quantizer(self, layer, bit_width):
        return BWN(bit_width, channels=layer.out_channels)


class Both(Invented):
    def input_quantizer(self, site, bit_width):
        return SignQuantizer(bit_width, signed=not site.non_negative)


def glorot(weight):
    out, into, area = weight.shape[0], weight.shape[1], math.prod(weight.shape[2:])
    return math.sqrt(1.5 / (area * (out + into)))


def test_float_inputs_only_unless_a_method_says_otherwise():
    assert set(Invented().quantizers) == {f"{n}.weight" for n in ("block.conv1", "block.conv2", "conv2", "conv3")}
    with pytest.raises(UserError, match="its inputs stay in float: activation_bit_width must be 32, got 1"):
        Invented(activation_bit_width=1)


@pytest.mark.parametrize(
    "settings, match",
    [({"clip_weights": "two"}, "clip_weights"), ({"learning_rate_scale": "none"}, "scale"), ({"loss": "l2"}, "loss")],
)
def test_unknown_words_are_refused(settings, match):
    with pytest.raises(UserError, match=match):
        Invented(**settings)


@pytest.mark.parametrize("clip", ["one", "glorot"])
def test_latent_weights_stay_in_range_and_others_do_not_notice(fit, clip):
    module = Invented(clip_weights=clip, learning_rate=1.0, first_last="8bit")
    for weight in module.latent_weights().values():
        weight.data.mul_(100)
    fit(module, steps=2)
    for site in module.planes():
        weight = module.network.get_parameter(site)
        bound = 1.0 if clip == "one" else glorot(weight)
        assert float(weight.detach().abs().max()) == pytest.approx(bound)
    assert module.network.conv1.weight.abs().max() > 1


def test_centred_weights_have_mean_zero_over_the_input_channels(fit):
    module = Invented(center_weights=True)
    fit(module, steps=2)
    assert module.network.conv2.weight.mean(1).abs().max() < 1e-6
    assert module.network.conv1.weight.mean(1).abs().max() > 1e-3


def test_glorot_learning_rates_are_those_of_the_latent_weights():
    module = Invented(learning_rate_scale="glorot", learning_rate=0.5, weight_decay=1e-3)
    rates = {id(p): g.get("lr", 0.5) for g in module.parameter_groups() for p in g["params"]}
    assert len(rates) == len(list(module.network.parameters()))
    for name, p in module.network.named_parameters():
        latent = name in ("block.conv1.weight", "block.conv2.weight", "conv2.weight", "conv3.weight")
        assert rates[id(p)] == pytest.approx(0.5 / glorot(p) if latent else 0.5)


def test_scales_are_those_of_the_final_weights(fit):
    module = Invented(learning_rate=0.1)
    fit(module, steps=3)
    weight, quantizer = module.network.conv2.weight, module.network.conv2.weight_quantizer
    torch.testing.assert_close(quantizer.scales[:, 0], weight.abs().mean((1, 2, 3)))


def test_relus_go_before_binary_inputs_alone():
    kinds = {n.name for n in Both(activation_bit_width=1).network.graph.nodes}
    assert "relu3" in kinds and not {"relu1", "block_relu1", "block_relu2", "relu2"} & kinds
    kinds = {n.name for n in Both(activation_bit_width=1, first_last="same").network.graph.nodes}
    assert "relu3" not in kinds
    assert {"relu1", "relu2", "relu3"} <= {n.name for n in Invented().network.graph.nodes}


def test_signs_behind_a_relu_are_refused():
    with pytest.raises(UserError, match=r"layer block\.conv1: SignQuantizer has no unsigned range"):
        Both(activation_bit_width=1, remove_relus=False)


def test_inputs_are_calibrated_through_the_binary_layers_before_them():
    module = Both(activation_bit_width=1, first_last="8bit").train()
    seen = {}
    last = module.network.linear.input_quantizer
    last.register_forward_pre_hook(lambda q, args: seen.update(x=args[0].clone()))
    images = torch.randn(64, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    module.calibrate(iter([images, images]))
    step = 2 * seen["x"].abs().mean() / 255**0.5  # LSQ's start value
    torch.testing.assert_close(last.scale.detach().reshape(()), step)
    module.eval()
    assert module.network.linear.input_quantizer(seen["x"]).unique().numel() > 10
    assert module.network.bn2.momentum == 0.1


def test_square_hinge_by_hand():
    logits = torch.tensor([[2.0, -0.5], [0.5, 0.0]])
    # label 0: max(0, 1 - 2)^2 + max(0, 1 - 0.5)^2; label 1: (1 + 0.5)^2 + 1
    assert float(square_hinge(logits, torch.tensor([0, 1]))) == pytest.approx((0 + 0.25 + 2.25 + 1) / 4)


def test_square_hinge_trains(fit):
    module = Invented(loss="square_hinge")
    fit(module, steps=2)
    assert isinstance(module.network, nn.Module) and module.network.conv2.weight.isfinite().all()
