"""TTQ: the start of its scales, their range, the threshold of the final weights."""

import pytest
import torch

from common.errors import UserError
from common.packing import load_packed
from common.quantizers import ternary
from methods.ttq import TTQ


def started(**settings):
    module = TTQ(**settings)
    module.calibrate([])
    return module, module.quantizers["conv2.weight"], module.network.get_parameter("conv2.weight").detach()


def test_first_and_last_layer_stay_in_float():
    found = TTQ().quantizers
    assert set(found) == {f"{name}.weight" for name in ("block.conv1", "block.conv2", "conv2", "conv3")}
    assert all(type(q) is ternary.TTQ for q in found.values())


def test_scales_start_at_the_means_beyond_the_threshold():
    _, quantizer, weight = started()
    threshold = 0.05 * weight.abs().max()
    assert quantizer.threshold.item() == pytest.approx(threshold.item())
    assert quantizer.positive.item() == pytest.approx(weight[weight > threshold].mean().item(), rel=1e-5)
    assert quantizer.negative.item() == pytest.approx(-weight[weight < -threshold].mean().item(), rel=1e-5)


def test_scales_start_at_one():
    _, quantizer, weight = started(start="ones", factor=0.2)
    assert (quantizer.positive.item(), quantizer.negative.item()) == (1.0, 1.0)
    assert quantizer.threshold.item() == pytest.approx(0.2 * weight.abs().max().item())


def test_ends_at_eight_bits_start_as_those_of_lsq():
    module, _, _ = started(first_last="8bit")
    weight = module.network.get_parameter("linear.weight").detach()
    scale = module.quantizers["linear.weight"].scale.item()
    assert scale == pytest.approx(2 * weight.abs().mean().item() / 127**0.5, rel=1e-5)


def test_file_has_the_trained_scales_and_the_threshold_of_the_final_weights(fit, tmp_path):
    module = TTQ(learning_rate=0.05, quantizer_learning_rate=0.01)
    fit(module, steps=5)
    quantizer, weight = module.quantizers["conv2.weight"], module.network.get_parameter("conv2.weight").detach()
    assert quantizer.threshold.item() == pytest.approx(0.05 * weight.abs().max().item(), rel=1e-6)
    _, start, _ = started()
    assert quantizer.positive.item() != start.positive.item() != start.negative.item() != quantizer.negative.item()
    packed = load_packed(tmp_path / "packed.safetensors")[0].get_parameter("conv2.weight")
    levels = sorted([-quantizer.negative.item(), 0.0, quantizer.positive.item()])
    assert packed.detach().unique().tolist() == pytest.approx(levels)
    assert torch.equal(packed > 0, weight > quantizer.threshold)


def test_scales_stay_positive(fit):
    module = TTQ(learning_rate=0.1, quantizer_learning_rate=10.0)
    fit(module, steps=5)
    scales = [p.item() for q in module.quantizers.values() for p in q.parameters()]
    assert min(scales) == pytest.approx(1e-4)


def test_unknown_start():
    with pytest.raises(UserError, match="start must be one of means, ones, got 'zeros'"):
        TTQ(start="zeros")
