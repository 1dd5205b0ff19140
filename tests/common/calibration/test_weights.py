"""Ranges of weights, against plain loops over channels."""

import pytest
import torch

from common.calibration.weights import fit_weight_grid, quantile
from common.quantizers import AffineQuantizer


@pytest.fixture
def weight():
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(5, 4, 3, 3, generator=generator) * torch.tensor([0.1, 1, 3, 0.01, 10]).reshape(-1, 1, 1, 1)
    return values + 0.2


def fitted(weight, bits=4, channels=None, **settings):
    quantizer = AffineQuantizer(bits, channels=channels)
    fit_weight_grid(quantizer, weight, **settings)
    return quantizer


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("rule", ["minmax", "mse", "percentile"])
def test_per_channel_is_a_loop_over_channels(weight, rule, symmetric):
    whole = fitted(weight, channels=5, rule=rule, symmetric=symmetric, percentile=95.0)
    for i in range(5):
        own = fitted(weight[i : i + 1], rule=rule, symmetric=symmetric, percentile=95.0)
        torch.testing.assert_close((whole.scale[i], whole.zero_point[i]), (own.scale, own.zero_point))


def test_minmax_covers_all_values(weight):
    symmetric, affine = fitted(weight), fitted(weight, symmetric=False)
    assert float(symmetric.scale) == pytest.approx(float(weight.abs().max()) / 7)
    assert (float(symmetric.quant_min), float(symmetric.zero_point)) == (-7, 0)
    low, high = float(weight.min()), float(weight.max())
    assert float(affine.scale) == pytest.approx((high - low) / 15)
    assert float(affine.zero_point) == round(-8 - low / ((high - low) / 15))


def test_percentiles_leave_out_outliers():
    weight = torch.arange(101.0)[None] - 50  # -50 .. 50: the 90th percentile of the magnitudes is 45
    assert float(fitted(weight, rule="percentile", percentile=90.0).scale) == pytest.approx(45 / 7)
    affine = fitted(weight, rule="percentile", percentile=90.0, symmetric=False)
    assert float(affine.scale) == pytest.approx(80 / 15)  # from -40 to 40


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("channels", [None, 5])
def test_least_squares_is_no_worse_than_any_range_of_a_fine_grid(weight, symmetric, channels):
    def error(quantizer):
        return float((quantizer(weight) - weight).square().mean())

    best = error(fitted(weight, bits=3, channels=channels, rule="mse", symmetric=symmetric))
    assert best < error(fitted(weight, bits=3, channels=channels, symmetric=symmetric))
    for share in torch.linspace(0.2, 1, 33):
        scaled = fitted(weight * share, bits=3, channels=channels, symmetric=symmetric)
        assert best <= error(scaled) * (1 + 1e-5)


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.5, 0.999, 1.0])
def test_quantile_is_torchs(weight, fraction):
    rows = weight.flatten(1)
    torch.testing.assert_close(quantile(rows, fraction), torch.quantile(rows, fraction, dim=1))


def test_zero_weights_get_a_scale():
    for symmetric in (True, False):
        for rule in ("minmax", "mse", "percentile"):
            quantizer = fitted(torch.zeros(2, 3), channels=2, rule=rule, symmetric=symmetric)
            assert torch.equal(quantizer(torch.zeros(2, 3)), torch.zeros(2, 3)) and (quantizer.scale > 0).all()


def test_unknown_rules_and_percentiles_are_refused(weight):
    with pytest.raises(ValueError, match="rule must be one of minmax, mse, percentile, got 'kl'"):
        fitted(weight, rule="kl")
    with pytest.raises(ValueError, match=r"percentile must be in \(50, 100\], got 50"):
        fitted(weight, rule="percentile", percentile=50)
