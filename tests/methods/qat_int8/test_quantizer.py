"""Min-max weights, moving ranges, and weights seen through their batch norm."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from methods.qat_int8.quantizer import FoldedWeights, MinMaxWeights, MovingRange

W = [[2.09, -0.98, 1.48, 0.09], [0.05, -0.14, -1.08, 2.12], [-0.91, 1.92, 0.0, -1.03], [1.87, 0.0, 1.53, 1.49]]


def gradient(module, x, upstream=None):
    v = x.clone().requires_grad_()
    y = module(v)
    y.backward(torch.ones_like(y) if upstream is None else upstream)
    return v.grad


def test_golden_affine_weights():
    quantizer = MinMaxWeights(2, narrow=False)
    quantizer.calibrate(torch.tensor(W))
    assert float(quantizer.grid.scale) == pytest.approx(16 / 15) and float(quantizer.grid.zero_point) == -1
    codes = quantizer.encode(torch.tensor(W)).codes - 2
    assert codes.tolist() == [[1, -2, 0, -1], [-1, -1, -2, 1], [-2, 1, -1, -2], [1, -1, 0, 0]]


def test_golden_symmetric_weights():
    quantizer = MinMaxWeights(2, symmetric=True)
    quantizer.calibrate(torch.tensor(W))
    assert float(quantizer.grid.scale) == pytest.approx(2.12)
    assert float((quantizer(torch.tensor(W)) - torch.tensor(W)).norm()) == pytest.approx(2.284557, abs=1e-6)
    quantizer = MinMaxWeights(2, symmetric=True, channels=4)
    quantizer.calibrate(torch.tensor(W))
    assert quantizer.grid.scale.tolist() == pytest.approx([2.09, 2.12, 1.92, 1.87])
    assert float((quantizer(torch.tensor(W)) - torch.tensor(W)).norm()) == pytest.approx(2.079543, abs=1e-6)


def test_narrow_weights_leave_out_the_lowest_code():
    x = torch.linspace(0, 1, 1001)
    for narrow, lowest in ((True, -127), (False, -128)):
        quantizer = MinMaxWeights(8, narrow=narrow)
        quantizer.calibrate(x)
        assert quantizer.encode(x).codes.unique().numel() == 128 - lowest
        assert float(quantizer.grid.zero_point) == quantizer.range[0] == lowest


@pytest.mark.parametrize("symmetric", [True, False])
def test_per_channel_is_a_loop_over_channels(symmetric):
    x = torch.randn(3, 4, 2, 2, generator=torch.Generator().manual_seed(0))
    x = x * torch.tensor([1, 10, 0]).reshape(-1, 1, 1, 1)
    together = MinMaxWeights(4, channels=3, symmetric=symmetric)
    together.calibrate(x)
    for i in range(3):
        one = MinMaxWeights(4, symmetric=symmetric)
        one.calibrate(x[i : i + 1])
        assert torch.equal(together(x)[i : i + 1], one(x[i : i + 1]))


def test_the_gradient_of_weights_passes_everywhere():
    x, g = torch.tensor([-3.0, -1, 0, 0.4, 5]), torch.tensor([1.0, 2, 3, 4, 5])
    quantizer = MinMaxWeights(2)
    quantizer.calibrate(torch.tensor([-1.0, 1]))
    assert torch.equal(gradient(quantizer, x, g), g)


def test_golden_moving_range():
    quantizer = MovingRange(8, momentum=0.1)
    batches = [[-1.0, 2.0], [-1.5, 4.0], [-0.5, 3.0]]
    expected = [[-1.0, 2.0], [-1.05, 2.2], [-0.995, 2.28]]
    for batch, (low, high) in zip(batches, expected, strict=True):
        quantizer(torch.tensor(batch))
        quantizer.after_step()
        assert quantizer.observer.average.tolist() == pytest.approx([low, high])
        assert float(quantizer.grid.scale) == pytest.approx((high - low) / 255)


def test_a_step_uses_the_range_before_it():
    quantizer = MovingRange(4, signed=False, momentum=0.5)
    quantizer.calibrate(torch.tensor([0.0, 1.5]))
    assert quantizer(torch.tensor([3.5])).item() == pytest.approx(1.5)
    assert quantizer.grid.scale.item() == pytest.approx(0.1)
    quantizer.after_step()
    assert quantizer(torch.tensor([3.5])).item() == pytest.approx(2.5)


def test_evaluation_leaves_the_range_alone():
    quantizer = MovingRange(4)
    quantizer.calibrate(torch.tensor([-1.0, 1.5]))
    quantizer.eval()(torch.tensor([-9.0, 9.0]))
    assert quantizer.observer.average.tolist() == [-1.0, 1.5]


def test_the_gradient_of_activations_ends_at_the_range():
    quantizer = MovingRange(2, momentum=0.5)
    quantizer.calibrate(torch.tensor([-1.0, 2.0]))  # scale 1, integers -2..1, zero point -1: values -1..2
    x = torch.tensor([-1.01, -1.0, 0.2, 2.0, 2.01])
    assert gradient(quantizer, x).tolist() == [0, 1, 1, 1, 0]
    quantizer = MovingRange(2, signed=False)
    quantizer.calibrate(torch.tensor([0.0, 3.0]))
    assert gradient(quantizer, torch.tensor([-0.1, 0.0, 3.0, 3.1])).tolist() == [0, 1, 1, 0]


def test_form_and_module_agree():
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    for bits in range(2, 9):
        quantizer = MovingRange(bits)
        quantizer.calibrate(x)
        assert torch.equal(quantizer.eval()(2 * x) + 0.0, quantizer.inference_form()(2 * x) + 0.0)


def test_delayed_activations_pass_until_they_are_active():
    quantizer = MovingRange(2, delayed=True, momentum=0.5)
    x = torch.tensor([-3.0, 0.3, 0.9])
    quantizer.calibrate(torch.tensor([-1.0, 2.0]))
    assert torch.equal(quantizer(x), x) and gradient(quantizer, x).tolist() == [1, 1, 1]
    assert quantizer.observer.average[0] < -1  # followed from the start
    assert not torch.equal(quantizer.eval()(x), x)
    quantizer.train().active.fill_(True)
    assert gradient(quantizer, x).tolist() == [0, 1, 1]
    assert "active" not in quantizer.state_dict()


def norm_of(channels):
    norm = nn.BatchNorm2d(channels).eval()
    generator = torch.Generator().manual_seed(1)
    for values in (norm.weight, norm.bias, norm.running_mean):
        values.data.copy_(torch.randn(channels, generator=generator))
    norm.running_var.copy_(torch.rand(channels, generator=generator) + 0.1)
    return norm


@pytest.mark.parametrize("channels", [None, 5])
def test_with_frozen_statistics_it_is_the_folded_convolution(channels):
    generator = torch.Generator().manual_seed(2)
    w, x = torch.randn(5, 3, 3, 3, generator=generator), torch.randn(2, 3, 6, 6, generator=generator)
    norm, quantizer = norm_of(5), FoldedWeights(MinMaxWeights(3, channels=channels), 5)
    quantizer.fold(w, norm)
    factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
    folded = w * factor[:, None, None, None]
    own = MinMaxWeights(3, channels=channels)
    own.calibrate(folded)
    expected = F.conv2d(x, own(folded), norm.bias - norm.running_mean * factor)
    torch.testing.assert_close(norm(F.conv2d(x, quantizer(w))), expected, atol=1e-5, rtol=1e-5)


def test_batch_statistics_are_seen_in_training():
    # conv(quantized folded weights) over the factor, normalized with its own statistics.
    generator = torch.Generator().manual_seed(2)
    w, x = torch.randn(5, 3, 3, 3, generator=generator), torch.randn(4, 3, 6, 6, generator=generator)
    norm, quantizer = norm_of(5).train(), FoldedWeights(MinMaxWeights(8), 5)
    quantizer.fold(w, norm)
    factor = quantizer.factor.reshape(-1, 1, 1)
    y = F.conv2d(x, quantizer.grid(w * factor.unsqueeze(-1))) / factor
    var, mean = torch.var_mean(y, (0, 2, 3), unbiased=False, keepdim=True)
    expected = (y - mean) / torch.sqrt(var + norm.eps) * norm.weight.reshape(-1, 1, 1) + norm.bias.reshape(-1, 1, 1)
    torch.testing.assert_close(norm(F.conv2d(x, quantizer(w))), expected, atol=1e-5, rtol=1e-5)


def test_the_gradient_of_folded_weights_passes_everywhere_whatever_the_factor():
    w, g = torch.randn(3, 2, 1, 1), torch.randn(3, 2, 1, 1)
    quantizer = FoldedWeights(MinMaxWeights(2), 3)
    quantizer.factor.copy_(torch.tensor([0.3, -7.0, 1e-20]))
    assert torch.equal(gradient(quantizer, w, g), g)


def test_a_channel_whose_gain_is_zero_has_no_weights():
    norm, quantizer = norm_of(3), FoldedWeights(MinMaxWeights(8), 3)
    norm.weight.data[1] = 0
    w = torch.randn(3, 2, 1, 1, generator=torch.Generator().manual_seed(3))
    quantizer.fold(w, norm)
    y = quantizer(w)
    assert y.isfinite().all() and not y[1].any() and y[0].any()


@pytest.mark.parametrize("cls, match", [(MinMaxWeights, "bit_width of MinMaxWeights"), (MovingRange, "of MovingRange")])
def test_widths_they_do_not_have(cls, match):
    for bits in (1, 9):
        with pytest.raises(ValueError, match=match):
            cls(bits)
