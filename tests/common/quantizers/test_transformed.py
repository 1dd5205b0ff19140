"""Transforms before a grid: normalizations with their gradients, and what becomes of the quantizer contract."""

import pytest
import torch

from common.quantizers import AffineQuantizer
from common.quantizers.levels import LevelsQuantizer
from common.quantizers.lsq import LSQ
from common.quantizers.transformed import TanhNormalization, TransformedQuantizer, WeightNormalization

NORMALIZATIONS = [TanhNormalization(), TanhNormalization(False), WeightNormalization(), WeightNormalization(False)]


def weights(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=dtype) * 0.3 + 0.1


def test_it_quantizes_what_the_transform_gives():
    w = weights(4, 3, 2)
    quantizer = TransformedQuantizer(TanhNormalization(), AffineQuantizer(3))
    quantizer.grid.scale.fill_(0.25)
    expected = quantizer.grid(torch.tanh(w) / torch.tanh(w).abs().max())
    assert torch.equal(quantizer(w), expected)
    assert torch.equal(quantizer.encode(w).decode(), expected)
    assert quantizer.bit_width == 3


def test_the_grid_is_the_idempotent_part():
    w = weights(40)
    quantizer = TransformedQuantizer(WeightNormalization(), LevelsQuantizer(3))
    y = quantizer(w)
    assert torch.equal(quantizer.grid(y), y) and not torch.equal(quantizer(y), y)


def test_calibration_sees_transformed_values():
    w = weights(50)
    quantizer = TransformedQuantizer(WeightNormalization(), LSQ(3))
    quantizer.calibrate(w, 1.0)
    direct = LSQ(3)
    direct.calibrate(WeightNormalization()(w))
    assert torch.equal(quantizer.grid.scale, direct.scale) and quantizer.grid.scale.requires_grad
    TransformedQuantizer(WeightNormalization(), AffineQuantizer(3)).calibrate(w)  # nothing to fill


def test_an_activation_has_no_plain_form():
    with pytest.raises(TypeError, match="TanhNormalization stands before its grid"):
        TransformedQuantizer(TanhNormalization(), AffineQuantizer(3)).inference_form()


@pytest.mark.parametrize("transform", NORMALIZATIONS[::2])
def test_gradients_are_those_of_finite_differences(transform):
    w = weights(3, 4, dtype=torch.double).requires_grad_()
    assert torch.autograd.gradcheck(transform, w)


@pytest.mark.parametrize(
    "transform, full", [(NORMALIZATIONS[1], NORMALIZATIONS[0]), (NORMALIZATIONS[3], NORMALIZATIONS[2])]
)
def test_constant_statistics(transform, full):
    w = weights(3, 4, dtype=torch.double).requires_grad_()
    upstream = weights(4, 3, dtype=torch.double).T
    assert torch.equal(transform(w), full(w))
    (grad,) = torch.autograd.grad(transform(w), w, upstream)
    if isinstance(transform, TanhNormalization):
        slope = (1 - torch.tanh(w) ** 2) / torch.tanh(w).abs().max()
    else:
        slope = 1 / w.std()
    torch.testing.assert_close(grad, slope * upstream)


def test_only_the_largest_weight_notices_the_maximum():
    w = weights(10, dtype=torch.double).requires_grad_()
    upstream = weights(10, dtype=torch.double) - 0.2
    constant, full = (
        torch.autograd.grad(t(w), w, upstream)[0] for t in (TanhNormalization(False), TanhNormalization())
    )
    t = torch.tanh(w.detach())
    m = int(t.abs().argmax())
    expected = torch.zeros(10, dtype=torch.double)
    expected[m] = -(t[m].sign() * (1 - t[m] ** 2) / t[m] ** 2) * (upstream * t).sum()
    torch.testing.assert_close(full - constant, expected)


def test_normalized_weights_have_mean_0_and_deviation_1():
    w = WeightNormalization()(weights(1000))
    assert w.mean().abs() < 1e-6 and w.std() == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("transform", NORMALIZATIONS)
def test_equal_weights_stay_finite(transform):
    w = torch.zeros(5, requires_grad=True)
    y = transform(w)
    y.sum().backward()
    assert torch.equal(y, torch.zeros(5)) and w.grad.isfinite().all()


@pytest.mark.parametrize("transform", NORMALIZATIONS)
def test_compiled_is_eager(transform):
    torch._dynamo.reset()
    quantizer = TransformedQuantizer(transform, LSQ(4))
    compiled = torch.compile(quantizer, backend="aot_eager", fullgraph=True)
    results = []
    for function in (quantizer, compiled):
        w = weights(4, 5).requires_grad_()
        y = function(w)
        y.square().sum().backward()
        results.append((y.detach(), w.grad))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


@pytest.mark.parametrize("transform", NORMALIZATIONS)
def test_autocast_leaves_float32_weights_alone(transform):
    w = weights(4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = transform(w)
    assert y.dtype == torch.float32 and torch.equal(y, transform(w))
