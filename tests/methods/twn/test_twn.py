"""TWN: what it quantizes, and that evaluation and file rest on the final weights."""

import pytest
import torch

from common.errors import UserError
from common.packing import load_packed
from common.quantizers import ternary
from common.quantizers.lsq import LSQ
from methods.twn import TWN


def test_weights_alone_are_ternary():
    module = TWN()
    sites = {f"{name}.weight" for name in ("block.conv1", "block.conv2", "conv2", "conv3")}
    assert set(module.quantizers) == sites  # first and last layer in float
    assert all(type(q) is ternary.TWN and q.channels is None for q in module.quantizers.values())
    assert module.acr() == 1.0


def test_eight_bits_of_the_ends_are_those_of_lsq():
    found = TWN(first_last="8bit").quantizers
    assert [type(found[f"{name}.weight"]) for name in ("conv1", "conv2", "linear")] == [LSQ, ternary.TWN, LSQ]


def test_settings_reach_the_quantizers():
    quantizer = TWN(factor=0.5, per_channel=True).quantizers["conv2.weight"]
    assert quantizer.factor == 0.5 and quantizer.scale.shape == (32,)


def test_evaluation_and_file_have_the_threshold_of_the_final_weights(fit, tmp_path):
    module = TWN(learning_rate=0.1)
    before = module.network.get_parameter("conv2.weight").detach().clone()
    fit(module, steps=5)
    weight, quantizer = module.network.get_parameter("conv2.weight").detach(), module.quantizers["conv2.weight"]
    assert not torch.equal(weight, before)
    threshold = 0.7 * weight.abs().mean()
    kept = weight.abs() > threshold
    alpha = weight.abs()[kept].mean()
    assert quantizer.threshold.item() == pytest.approx(threshold.item(), rel=1e-6)
    assert quantizer.scale.item() == pytest.approx(alpha.item(), rel=1e-5)
    packed = load_packed(tmp_path / "packed.safetensors")[0].get_parameter("conv2.weight")
    torch.testing.assert_close(packed.detach(), alpha * weight.sign() * kept)


def test_validation_follows_the_weights(fit):
    module = TWN()
    fit(module, steps=1)
    with torch.no_grad():
        module.network.get_parameter("conv2.weight").mul_(3.0)
    scale = module.quantizers["conv2.weight"].scale.clone()
    module.on_validation_start()
    assert module.quantizers["conv2.weight"].scale.item() == pytest.approx(3 * scale.item())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"weight_bit_width": 3}, r"TWN, layer block.conv1: bit_width of TWN must be one of \(2,\), got 3"),
        ({"activation_bit_width": 4}, "quantizes weights alone, activation_bit_width must be 32, got 4"),
    ],
)
def test_widths_that_it_does_not_have(settings, message):
    with pytest.raises(UserError, match=message):
        TWN(**settings)
