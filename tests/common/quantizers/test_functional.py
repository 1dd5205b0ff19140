"""The pure functions: values, and gradients at and near the ends of the range (equal in torch 2.11 and 2.15)."""

import pytest
import torch

from common.quantizers import clip, fake_quantize, integer_range, power_of_two_exponent, quantize, round_ste

INF, NAN = float("inf"), float("nan")


def gradients(function, *values):
    """Value and gradients of a scalar function of float64 numbers."""
    inputs = [torch.tensor(v, dtype=torch.double, requires_grad=True) for v in values]
    output = function(*inputs)
    grads = torch.autograd.grad(output, inputs, allow_unused=True)
    return output.item(), *(0.0 if g is None else pytest.approx(g.item(), abs=1e-12) for g in grads)


@pytest.mark.parametrize(
    "bit_width, signed, narrow, expected",
    [
        (8, True, False, (-128, 127)),
        (8, True, True, (-127, 127)),
        (8, False, False, (0, 255)),
        (2, True, False, (-2, 1)),
        (2, True, True, (-1, 1)),
        (1, True, False, (-1, 0)),
        (1, False, False, (0, 1)),
        (16, False, False, (0, 65535)),
    ],
)
def test_integer_ranges(bit_width, signed, narrow, expected):
    assert integer_range(bit_width, signed, narrow) == expected


def test_integer_range_of_no_bits():
    with pytest.raises(ValueError, match="bit_width must be at least 1, got 0"):
        integer_range(0, signed=True)


def test_narrow_integer_range_of_one_bit():
    with pytest.raises(ValueError, match="at least 2 for a narrow signed range"):
        integer_range(1, signed=True, narrow=True)


@pytest.mark.parametrize(
    "x, expected", [(0.5, 0.0), (1.5, 2.0), (2.5, 2.0), (-0.5, 0.0), (-1.5, -2.0), (0.49, 0.0), (-2.7, -3.0)]
)
def test_round_ste_rounds_ties_to_even_and_passes_the_gradient_through(x, expected):
    assert gradients(round_ste, x) == (expected, 1.0)


def test_round_ste_gives_exact_integers():
    x = torch.cat([torch.randn(20_000) * 10.0**p for p in range(-3, 6)])
    assert torch.equal(round_ste(x), torch.round(x))


@pytest.mark.parametrize(
    "x, y, dx, dlow, dhigh",
    [
        (-2.0, -1.0, 0.0, 1.0, 0.0),
        (-1.0001, -1.0, 0.0, 1.0, 0.0),
        (-1.0, -1.0, 1.0, 0.0, 0.0),  # on the lower end: inside
        (-0.9999, -0.9999, 1.0, 0.0, 0.0),
        (0.3, 0.3, 1.0, 0.0, 0.0),
        (2.0, 2.0, 1.0, 0.0, 0.0),  # on the upper end: inside
        (2.0001, 2.0, 0.0, 0.0, 1.0),
        (9.0, 2.0, 0.0, 0.0, 1.0),
    ],
)
def test_clip_at_and_near_its_ends(x, y, dx, dlow, dhigh):
    assert gradients(clip, x, -1.0, 2.0) == (y, dx, dlow, dhigh)
    assert gradients(lambda value: clip(value, -1.0, 2.0), x) == (y, dx)


def test_clip_keeps_dtype_and_not_a_number():
    x = torch.tensor([NAN, 5.0], dtype=torch.bfloat16)
    y = clip(x, torch.tensor(-1.0), 1.0)
    assert y.dtype == torch.bfloat16
    assert y[0].isnan() and y[1] == 1


@pytest.mark.parametrize(
    "x, y, dx, dscale",
    [
        # scale 1, integers -2 .. 1
        (-9.0, -2.0, 0.0, -2.0),
        (-2.001, -2.0, 0.0, -2.0),
        (-2.0, -2.0, 1.0, 0.0),  # on the lower end: inside, round(-2) - (-2)
        (-1.9, -2.0, 1.0, -0.1),
        (-0.3, 0.0, 1.0, 0.3),
        (0.0, 0.0, 1.0, 0.0),
        (0.5, 0.0, 1.0, -0.5),
        (0.7, 1.0, 1.0, 0.3),
        (1.0, 1.0, 1.0, 0.0),  # on the upper end: inside
        (1.001, 1.0, 0.0, 1.0),
        (9.0, 1.0, 0.0, 1.0),
    ],
)
def test_fake_quantize_is_lsq_equation_3(x, y, dx, dscale):
    zero = torch.tensor(0.0, dtype=torch.double)
    result = gradients(lambda value, scale: fake_quantize(value, scale, zero, -2, 1), x, 1.0)
    assert result == (pytest.approx(y, abs=1e-12), dx, dscale)


@pytest.mark.parametrize("x, y, dx, dscale", [(-0.6, -0.5, 0.0, -2.0), (0.2, 0.25, 1.0, 0.2), (0.26, 0.25, 0.0, 1.0)])
def test_fake_quantize_with_tensor_bounds_and_another_scale(x, y, dx, dscale):
    zero, low, high = (torch.tensor(v, dtype=torch.double) for v in (0.0, -2.0, 1.0))
    result = gradients(lambda value, scale: fake_quantize(value, scale, zero, low, high), x, 0.25)
    assert result == (pytest.approx(y, abs=1e-12), dx, dscale)


def test_fake_quantize_with_a_zero_point():
    # Integers 0..15 with 5 for real 0: real values -5 .. 10 in steps of 0.1.
    x = torch.tensor([-0.9, -0.5, -0.26, 0.0, 0.34, 1.0, 1.04, 3.0])
    scale, zero_point = torch.tensor(0.1), torch.tensor(5.0)
    expected = torch.tensor([-0.5, -0.5, -0.3, 0.0, 0.3, 1.0, 1.0, 1.0])
    torch.testing.assert_close(fake_quantize(x, scale, zero_point, 0, 15), expected, atol=1e-6, rtol=0)
    assert quantize(x, scale, zero_point, 0, 15).tolist() == [0, 0, 2, 5, 8, 15, 15, 15]


def test_quantize_gives_the_integers_of_fake_quantize_without_a_gradient():
    x = torch.randn(1000, requires_grad=True) * 3
    scale, zero = torch.tensor(0.173), torch.tensor(0.0)
    integers = quantize(x, scale, zero, -8, 7)
    assert integers.dtype == torch.int32 and not integers.requires_grad
    assert torch.equal(scale * integers, fake_quantize(x, scale, zero, -8, 7))


def test_one_scale_per_channel_equals_a_loop_over_channels():
    x = torch.randn(5, 3, 2, 2, requires_grad=True)
    scale = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5], requires_grad=True)
    zero_point = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.0])

    together = fake_quantize(x, scale.reshape(-1, 1, 1, 1), zero_point.reshape(-1, 1, 1, 1), -4, 3)
    grads = torch.autograd.grad((together * x.detach()).sum(), [x, scale])
    loop = torch.stack([fake_quantize(x[i], scale[i], zero_point[i], -4, 3) for i in range(5)])
    loop_grads = torch.autograd.grad((loop * x.detach()).sum(), [x, scale])

    assert torch.equal(together, loop)
    torch.testing.assert_close(grads, loop_grads)


def test_bfloat16_is_rounded_on_the_grid_of_the_scale():
    # In bfloat16 arithmetic 0.1 is 0.10009765625 and 25.1 / 0.1 is off by more than half a step.
    x = torch.linspace(0, 25.5, 500).bfloat16()
    scale, zero = torch.tensor(0.1), torch.tensor(0.0)
    y = fake_quantize(x, scale, zero, 0, 255)
    assert y.dtype == torch.bfloat16
    assert torch.equal(y, fake_quantize(x.float(), scale, zero, 0, 255).bfloat16())


@pytest.mark.parametrize(
    "max_abs, expected",
    [
        (0.0, 0),
        (0.13, -2),
        (0.25, -2),
        (0.2500001, -1),
        (0.7, 0),
        (1.0, 0),
        (1.01, 1),
        (2.0, 1),
        (2.0**-30, -30),
        (2.0**40, 40),
        (1.0 + 2.0**-52, 1),
    ],
)
def test_power_of_two_exponent(max_abs, expected):
    assert power_of_two_exponent(max_abs) == expected


@pytest.mark.parametrize("max_abs", [-0.1, INF, NAN])
def test_power_of_two_exponent_of_what_is_no_maximum(max_abs):
    with pytest.raises(ValueError, match="max_abs must be finite and not negative"):
        power_of_two_exponent(max_abs)
