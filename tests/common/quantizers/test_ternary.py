"""TWN and TTQ: thresholds, scales, gradients, modules."""

import itertools

import pytest
import torch

from common.quantizers.ternary import TTQ, TWN, mean_beyond, ternary_signs, ttq, twn

W = [[2.09, -0.98, 1.48, 0.09], [0.05, -0.14, -1.08, 2.12], [-0.91, 1.92, 0.0, -1.03], [1.87, 0.0, 1.53, 1.49]]


def example():
    return torch.tensor(W, dtype=torch.double)


def normal(*shape, seed=0, dtype=torch.double):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scalars(*values):
    return [torch.tensor(v, dtype=torch.double, requires_grad=True) for v in values]


def fitted(quantizer, x):
    """The module in float64, in eval mode, with its statistics from x."""
    quantizer.double().calibrate(x)
    return quantizer.eval()


def test_golden_ternary_twn():
    weight = example()
    quantizer = fitted(TWN(), weight)
    assert quantizer.threshold.item() == pytest.approx(0.734125, abs=1e-9)
    assert quantizer.scale.item() == pytest.approx(1.5, abs=1e-9)
    signs = ternary_signs(weight, quantizer.threshold)
    assert signs.tolist() == [[1, -1, 1, 0], [0, 0, -1, 1], [-1, 1, 0, -1], [1, 0, 1, 1]]
    assert signs.count_nonzero() == 11
    assert weight.abs()[signs != 0].sum().item() == pytest.approx(16.5, abs=1e-9)
    assert (quantizer(weight) - weight).square().sum().item() == pytest.approx(2.0932, abs=1e-9)
    assert (signs - weight).square().sum().item() == pytest.approx(4.8432, abs=1e-9)
    # Every number of weights that are not zero, with the best scale for it.
    magnitudes = weight.abs().flatten().sort(descending=True).values
    errors = [26.8432 - magnitudes[:n].sum().item() ** 2 / n for n in range(1, 17)]
    assert min(errors) == pytest.approx(2.0932, abs=1e-9) and errors.index(min(errors)) == 11 - 1


def test_golden_ternary_ttq():
    weight = example()
    quantizer = fitted(TTQ(), weight)
    assert quantizer.threshold.item() == pytest.approx(0.106, abs=1e-9)
    signs = ternary_signs(weight, quantizer.threshold)
    assert signs.tolist() == [[1, -1, 1, 0], [0, -1, -1, 1], [-1, 1, 0, -1], [1, 0, 1, 1]]

    quantizer.threshold.fill_(0.734125)
    row, threshold = weight.reshape(1, -1), quantizer.threshold.reshape(1, 1)
    w_p, w_n = mean_beyond(row, threshold).item(), mean_beyond(-row, threshold).item()
    assert (w_p, w_n) == (pytest.approx(1.785714285714286, abs=1e-9), pytest.approx(1.0, abs=1e-9))
    weight.requires_grad_()
    positive, negative = scalars(w_p, w_n)
    y = ttq(weight, positive, negative, quantizer.threshold)
    assert (y - weight).square().sum().item() == pytest.approx(0.5217714285714286, abs=1e-9)
    y.sum().backward()
    assert positive.grad.item() == 7.0 and negative.grad.item() == -4.0
    a = 1.785714285714286
    expected = [[a, 1.0, a, 1.0], [1.0, 1.0, 1.0, a], [1.0, a, 1.0, 1.0], [a, 1.0, a, a]]
    torch.testing.assert_close(weight.grad, torch.tensor(expected, dtype=torch.double), rtol=0, atol=1e-9)


@pytest.mark.parametrize("x, expected", [(0.5, 0), (-0.5, 0), (0.51, 1), (-0.51, -1), (0.0, 0), (9.0, 1)])
def test_values_on_the_threshold_are_zero(x, expected):
    assert ternary_signs(torch.tensor(x), torch.tensor(0.5)).item() == expected


def test_a_bfloat16_weight_meets_the_exact_threshold():
    # 1.01 is 1.0078125 in bfloat16, below the threshold; the threshold itself would be rounded to 1.0078125.
    x, threshold = torch.tensor([1.0, 1.0078125, 1.015625]).bfloat16(), torch.tensor(1.01)
    assert ternary_signs(x, threshold).tolist() == [0, 0, 1]
    assert ternary_signs(x, torch.tensor(1.005)).tolist() == [0, 1, 1]


def test_scale_of_twn_is_the_least_squares_one():
    weight = normal(6, 20)
    threshold = 0.7 * weight.abs().mean(1, keepdim=True)
    scale, signs = mean_beyond(weight.abs(), threshold), ternary_signs(weight, threshold)
    for change in (1e-3, -1e-3):
        better = (scale * signs - weight).square().sum(1) < ((scale + change) * signs - weight).square().sum(1)
        assert better.all()


def test_gradient_of_twn_passes_through_everywhere():
    x = torch.tensor([-3.0, -0.5, -0.1, 0.0, 0.5, 2.0], dtype=torch.double, requires_grad=True)
    upstream = torch.arange(6.0, dtype=torch.double)
    twn(x, torch.tensor(0.5).double(), torch.tensor(1.25).double()).backward(upstream)
    assert torch.equal(x.grad, upstream)


def test_gradients_of_ttq_are_the_finite_differences_of_its_surrogate():
    """With frozen codes: levels in both scales, plus a slope of w_p, 1 or w_n in x, itself a constant."""
    x, upstream = normal(40), normal(40, seed=1)
    x[:4] = torch.tensor([0.5, -0.5, 0.0, 3.0])
    above, below = (x > 0.5).double(), (x < -0.5).double()
    slopes = 1.3 * above + 0.7 * below + (1 - above - below)

    def loss(values, w_p, w_n):
        return (upstream * (w_p * above - w_n * below + slopes * (values - x))).sum().item()

    latent = x.clone().requires_grad_()
    positive, negative = scalars(1.3, 0.7)
    ttq(latent, positive, negative, torch.tensor(0.5, dtype=torch.double)).backward(upstream)
    h = 1e-3  # the surrogate is linear
    assert positive.grad.item() == pytest.approx((loss(x, 1.3 + h, 0.7) - loss(x, 1.3 - h, 0.7)) / (2 * h), abs=1e-9)
    assert negative.grad.item() == pytest.approx((loss(x, 1.3, 0.7 + h) - loss(x, 1.3, 0.7 - h)) / (2 * h), abs=1e-9)
    for i, step in enumerate(h * torch.eye(40, dtype=torch.double)):
        expected = (loss(x + step, 1.3, 0.7) - loss(x - step, 1.3, 0.7)) / (2 * h)
        assert latent.grad[i].item() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("channels", [None, 5])
def test_twn_follows_the_weights_in_training_only(channels):
    quantizer, weight = TWN(channels=channels), normal(5, 4, 3, dtype=torch.float)
    rows = weight.reshape(channels or 1, -1)
    threshold = 0.7 * rows.abs().mean(1, keepdim=True)
    expected = torch.zeros_like(rows)
    for r, i in itertools.product(range(len(rows)), range(rows.shape[1])):
        kept = rows[r].abs()[rows[r].abs() > threshold[r]]
        if rows[r, i].abs() > threshold[r]:
            expected[r, i] = kept.mean() * rows[r, i].sign()
    trained = quantizer(weight)
    torch.testing.assert_close(trained, expected.reshape(weight.shape))
    assert torch.equal(quantizer.eval()(weight), trained)
    quantizer(3 * weight)
    assert torch.equal(quantizer(weight), trained)  # eval mode keeps its numbers
    quantizer.calibrate(3 * weight)
    torch.testing.assert_close(quantizer(3 * weight), 3 * trained)


def test_twn_of_zeros_is_zero():
    quantizer = TWN(channels=2)
    assert not quantizer(torch.zeros(2, 3)).any()
    assert quantizer.scale.tolist() == [0, 0]


def test_factor_of_twn():
    weight = example()
    assert fitted(TWN(factor=0.5), weight).threshold.item() == pytest.approx(0.5 * 1.04875)


def test_grid_of_twn_is_its_inference_form():
    weight = normal(5, 40, dtype=torch.float)
    quantizer = TWN(channels=5)
    y = quantizer(weight)
    grid = quantizer.inference_form()
    assert torch.equal(grid(y), y)
    assert torch.equal(grid(torch.full((5, 1), -9.0)).flatten(), -quantizer.scale)  # no level below -alpha


def test_ttq_threshold_follows_the_weights_in_training_only():
    quantizer = TTQ()
    quantizer(torch.tensor([1.0, -8.0]))
    assert quantizer.threshold.item() == pytest.approx(0.4)
    quantizer.eval()(torch.tensor([100.0]))
    assert quantizer.threshold.item() == pytest.approx(0.4)


def test_ttq_levels_and_codes():
    quantizer = fitted(TTQ(), example())
    with torch.no_grad():
        quantizer.positive.fill_(1.5)
        quantizer.negative.fill_(0.25)
    assert quantizer(torch.tensor([[3.0, 0.1, -0.11, -5.0]]).double()).tolist() == [[1.5, 0.0, -0.25, -0.25]]
    encoding = quantizer.encode(example())
    assert encoding.levels.tolist() == [-0.25, 0.0, 1.5] and encoding.bits == (2,)
    assert encoding.codes.tolist() == [[2, 0, 2, 1], [1, 0, 0, 2], [0, 2, 1, 0], [2, 1, 2, 2]]
    assert encoding.code_bytes == 4


def test_ttq_starts_from_the_means_beyond_its_threshold():
    quantizer = TTQ(factor=0.5)
    quantizer.start_from_means(torch.tensor([4.0, 3.0, 1.0, -2.5, -0.5]))
    assert (quantizer.positive.item(), quantizer.negative.item()) == (3.5, 2.5)


def test_ttq_scales_stay_positive():
    quantizer = TTQ()
    with torch.no_grad():
        quantizer.positive.fill_(-1.0)
        quantizer.negative.fill_(0.5)
    quantizer.after_step()
    assert quantizer.positive.item() == pytest.approx(1e-4) and quantizer.negative.item() == 0.5
    quantizer.start_from_means(torch.tensor([1.0, 2.0]))
    assert quantizer.negative.item() == pytest.approx(1e-4)  # nothing on that side
