"""TQT: the golden numbers, gradients at half a step beyond the range, exact powers of two."""

import math

import pytest
import torch

from common.quantizers.tqt import TQT, power_of_two, power_of_two_ste

X = [-1.3, -0.45, -0.2, 0.0, 0.12, 0.3, 0.38, 0.9]


def quantizer(bit_width, signed, log2_threshold):
    module = TQT(bit_width, signed).double()
    with torch.no_grad():
        module.log2_threshold.fill_(log2_threshold)
    return module


def per_element(module, values):
    """y, dy/dx and dy/dlog2 t of each value by itself."""
    rows = []
    for value in values:
        x, module.log2_threshold.grad = torch.tensor(value, dtype=torch.double, requires_grad=True), None
        y = module(x)
        y.backward()
        rows.append((y.item(), x.grad.item(), module.log2_threshold.grad.item()))
    return [list(column) for column in zip(*rows, strict=True)]


def test_golden_tqt_signed_3bit():
    module = quantizer(3, True, -0.3)
    assert module.step_size() == 0.25
    y, mask, gradient = per_element(module, X)
    assert y == [-1.0, -0.5, -0.25, 0.0, 0.0, 0.25, 0.5, 0.75]
    assert mask == [0, 1, 1, 1, 1, 1, 1, 0]
    expected = [-0.6931471805599453, -0.034657359027997256, -0.034657359027997256, 0.0]
    expected += [-0.08317766166719343, -0.034657359027997256, 0.08317766166719343, 0.5198603854199589]
    assert gradient == pytest.approx(expected, abs=1e-9)
    assert sum(gradient) == pytest.approx(-0.27725887222397816, abs=1e-9)


def test_golden_tqt_unsigned_4bit():
    module = quantizer(4, False, 0.4)
    assert module.step_size() == 0.125
    y, mask, gradient = per_element(module, X)
    assert y == [0.0, 0.0, 0.0, 0.0, 0.125, 0.25, 0.375, 0.875]
    assert mask == [0, 0, 0, 1, 1, 1, 1, 1]
    assert sum(gradient) == pytest.approx(-0.051986038541995905, abs=1e-9)


@pytest.mark.parametrize(
    "signed, x, y, dx, dsteps",
    [  # scale 1, integers -4 .. 3 and 0 .. 7
        (True, -4.6, -4, 0, -4),
        (True, -4.5, -4, 1, 0.5),  # rounds to -4
        (True, 3.4, 3, 1, -0.4),
        (True, 3.5, 3, 0, 3),  # rounds to 4
        (False, -0.6, 0, 0, 0),
        (False, -0.5, 0, 1, 0.5),  # rounds to -0
        (False, -0.2, 0, 1, 0.2),
        (False, 7.4, 7, 1, -0.4),
        (False, 7.5, 7, 0, 7),  # rounds to 8
    ],
)
def test_the_rounded_value_decides(signed, x, y, dx, dsteps):
    result = per_element(quantizer(3, signed, 2.0 if signed else 3.0), [x])
    assert result == [[y], [dx], [pytest.approx(dsteps * math.log(2), abs=1e-12)]]


@pytest.mark.parametrize("bit_width", [2, 5, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_by_the_book(bit_width, signed):
    x = torch.randn(500, generator=torch.Generator().manual_seed(bit_width), dtype=torch.double)
    module = quantizer(bit_width, signed, 0.3)
    low, high = (-(2 ** (bit_width - 1)), 2 ** (bit_width - 1) - 1) if signed else (0, 2**bit_width - 1)
    scale = 2 / (2 ** (bit_width - 1) if signed else 2**bit_width)
    y, mask, gradient = per_element(module, x.tolist())
    for value, *result in zip(x.tolist(), y, mask, gradient, strict=True):
        rounded = round(value / scale)
        if low <= rounded <= high:
            expected = [rounded * scale, 1, scale * math.log(2) * (rounded - value / scale)]
        else:
            end = low if rounded < low else high
            expected = [end * scale, 0, scale * math.log(2) * end]
        assert result == pytest.approx(expected, abs=1e-12)


def test_powers_of_two_are_exact():
    exponents = torch.arange(-126.0, 128.0)
    assert power_of_two(exponents).tolist() == [2.0**e for e in range(-126, 128)]
    assert power_of_two(torch.tensor([-1000.0, 1000.0])).tolist() == [2.0**-126, 2.0**127]


@pytest.mark.parametrize("log2_x, value", [(-0.3, 1.0), (0.0, 1.0), (0.01, 2.0), (2.5, 8.0), (-3.0, 0.125)])
def test_ceiling_passes_the_gradient(log2_x, value):
    x = torch.tensor(log2_x, requires_grad=True)
    y = power_of_two_ste(x)
    y.backward()
    assert y.item() == value and x.grad.item() == pytest.approx(value * math.log(2))


@pytest.mark.parametrize("max_abs, threshold", [(0.7, 1.0), (1.0, 1.0), (1.01, 2.0), (0.25, 0.25)])
def test_static_calibration_covers_the_largest_value(max_abs, threshold):
    module = TQT(4)
    module.calibrate(torch.tensor([-max_abs, 0.1]))
    assert module.step_size() * 8 == threshold
    module.calibrate(torch.tensor([0.1]), max_abs)  # a sample
    assert module.step_size() * 8 == threshold


def test_calibration_for_retraining_takes_three_deviations():
    x = torch.randn(1000) * 0.2
    module = TQT(4, start="3std")
    module.calibrate(x, 100.0)
    assert module.log2_threshold.item() == pytest.approx(math.log2(3 * x.std().item()), abs=1e-5)


def test_calibration_of_zeros():
    module = TQT(4)
    module.calibrate(torch.zeros(5))
    assert torch.equal(module(torch.zeros(5)), torch.zeros(5)) and module.log2_threshold.isfinite()


@pytest.mark.parametrize("signed", [True, False])
def test_compiled_is_eager(signed):
    torch._dynamo.reset()
    module = TQT(4, signed)
    x = torch.cat([torch.randn(500), torch.arange(-20, 20) / 32])
    results = []
    for function in (module, torch.compile(module, backend="aot_eager", fullgraph=True)):
        v, module.log2_threshold.grad = x.clone().requires_grad_(), None
        y = function(v)
        (y * torch.linspace(-1, 2, 540)).sum().backward()
        results.append((y.detach(), v.grad, module.log2_threshold.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    torch.testing.assert_close(results[0][2], results[1][2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bit_width", [2, 8, 16])
@pytest.mark.parametrize("signed", [True, False])
def test_inference_form_has_the_same_power_of_two(bit_width, signed):
    module = TQT(bit_width, signed)
    module.set_threshold(3.1)
    x = torch.linspace(-5, 5, 2001)
    assert torch.equal(module.inference_form()(x) + 0.0, module(x) + 0.0)
    assert module.inference_form().scale == 4 / 2 ** (bit_width - signed)


def test_width_can_change():
    module = TQT(8)
    module.set_bit_width(3)
    assert module.step_size() == 0.25 and module(torch.linspace(-2, 2, 500)).unique().numel() == 8


def test_autocast_leaves_float32_weights_alone():
    w = torch.randn(50)
    module = TQT(4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = module(w)
    assert y.dtype == torch.float32 and torch.equal(y, module(w))


def test_unknown_start():
    with pytest.raises(ValueError, match="start must be max, 3std or a function, got 'kl'"):
        TQT(4, start="kl")
