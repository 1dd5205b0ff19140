"""The uniform primitives: ranges, channels, calibration."""

import numpy as np
import pytest
import torch

from common.quantizers import AffineQuantizer, PowerOfTwoQuantizer, SymmetricQuantizer


@pytest.mark.parametrize(
    "bit_width, signed, levels",
    [
        (2, True, [-1.0, -0.5, 0.0, 0.5]),
        (2, False, [0.0, 0.5, 1.0, 1.5]),
        (1, True, [-0.5, 0.0]),
        (1, False, [0.0, 0.5]),
    ],
)
@pytest.mark.parametrize("kind", [AffineQuantizer, SymmetricQuantizer, PowerOfTwoQuantizer])
def test_levels(kind, bit_width, signed, levels):
    quantizer = kind(bit_width, signed)
    quantizer.inference_form().scale.fill_(0.5)
    assert (quantizer(torch.linspace(-3, 3, 1001)).unique() + 0.0).unique().tolist() == levels


def test_one_scale_per_channel_equals_a_loop_over_channels():
    x = torch.randn(4, 3, 2, 2)
    scales, zero_points = [0.1, 0.5, 0.02, 1.0], [0.0, 3.0, -2.0, 1.0]
    together = AffineQuantizer(4, channels=4)
    together.scale.copy_(torch.tensor(scales))
    together.zero_point.copy_(torch.tensor(zero_points))
    loop = []
    for channel in range(4):
        single = AffineQuantizer(4)
        single.scale.fill_(scales[channel])
        single.zero_point.fill_(zero_points[channel])
        loop.append(single(x[channel]))
    assert torch.equal(together(x), torch.stack(loop))
    encoded = together.encode(x)
    assert encoded.scale.shape == (4,) and encoded.bits == (4, 4, 4, 4) and encoded.group_sizes == (1, 1, 1, 1)
    assert torch.equal(encoded.decode() + 0.0, together(x) + 0.0)


def test_state_is_complete_when_init_ends():
    assert set(AffineQuantizer().state_dict()) == {"bit_width", "scale", "zero_point", "quant_min", "quant_max"}
    source = SymmetricQuantizer(3, signed=False)
    source.calibrate(torch.rand(100), 1.0)
    target = SymmetricQuantizer(3, signed=False)
    target.load_state_dict(source.state_dict())
    x = torch.rand(50)
    assert torch.equal(target(x), source(x))


def squared_error(x, scale, low, high):
    return float(np.mean((np.clip(np.round(x / scale), low, high) * scale - x) ** 2))


@pytest.mark.parametrize("bit_width, signed, low, high", [(2, True, -2, 1), (3, False, 0, 7), (4, True, -8, 7)])
def test_symmetric_calibration_finds_the_least_squared_error(bit_width, signed, low, high):
    x = torch.randn(2000, generator=torch.Generator().manual_seed(3), dtype=torch.double).numpy()
    x = x if signed else np.abs(x)
    largest = float(np.abs(x).max())
    quantizer = SymmetricQuantizer(bit_width, signed)
    quantizer.calibrate(torch.from_numpy(x).float(), largest)
    scale = float(quantizer.grid.scale)
    best = min(squared_error(x, largest / max(-low, high) * i / 2000, low, high) for i in range(1, 2001))
    assert squared_error(x, scale, low, high) == pytest.approx(best, rel=2e-3)  # ten times finer than its candidates
    assert scale < 0.9 * largest / max(-low, high)  # clipping pays off at few bits


@pytest.mark.parametrize("bit_width, signed, low, high", [(2, True, -2, 1), (3, False, 0, 7), (8, True, -128, 127)])
def test_power_of_two_calibration_finds_the_best_threshold(bit_width, signed, low, high):
    x = torch.randn(2000, generator=torch.Generator().manual_seed(5), dtype=torch.double).numpy() * 0.3
    x = x if signed else np.abs(x)
    quantizer = PowerOfTwoQuantizer(bit_width, signed)
    quantizer.calibrate(torch.from_numpy(x).float(), float(np.abs(x).max()))
    errors = {2.0**e: squared_error(x, 2.0**e, low, high) for e in range(-20, 6)}
    assert float(quantizer.grid.scale) == min(errors, key=errors.get)


@pytest.mark.parametrize("kind, scale", [(SymmetricQuantizer, 0.25), (PowerOfTwoQuantizer, 0.25)])
def test_calibration_keeps_a_grid_that_is_exact(kind, scale):
    # -1 .. 0.75 in steps of 0.25: 3 signed bits without an error.
    quantizer = kind(3, signed=True)
    quantizer.calibrate(torch.arange(-4, 4) * 0.25, 1.0)
    assert float(quantizer.grid.scale) == scale


@pytest.mark.parametrize("kind", [SymmetricQuantizer, PowerOfTwoQuantizer])
def test_calibration_of_an_all_zero_tensor_gives_zeros(kind):
    quantizer = kind(4)
    quantizer.calibrate(torch.zeros(10), 0.0)
    assert quantizer.grid.scale > 0
    assert torch.equal(quantizer(torch.zeros(10)), torch.zeros(10))


def test_a_changed_grid_needs_no_new_module():
    quantizer = AffineQuantizer(8)
    quantizer.quant_min.fill_(-2)
    quantizer.quant_max.fill_(1)
    quantizer.bit_width.fill_(2)
    assert quantizer(torch.linspace(-9, 9, 100)).unique().numel() == 4
    assert quantizer.encode(torch.linspace(-9, 9, 100)).bits == (2,)
