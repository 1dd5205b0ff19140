"""HWGQ: solved levels against the golden ones and against numerical integration, and the three gradients."""

import math

import pytest
import torch

from common.quantizers.half_wave import HWGQ, half_wave_levels, half_wave_step


def error(levels):
    """E[(x - Q(x))^2] over standard normal x > 0, by the midpoint rule."""
    x = (torch.arange(200_000, dtype=torch.double) + 0.5) / 200_000 * 10
    levels = torch.as_tensor(levels, dtype=torch.double)
    nearest = levels[torch.bucketize(x, (levels[1:] + levels[:-1]) / 2)]
    return float(((x - nearest) ** 2 * torch.exp(-(x**2) / 2)).mean() * 10 / math.sqrt(2 * math.pi))


def uniform(step, bit_width):
    return [step * i for i in range(1, 2**bit_width)]


@pytest.mark.parametrize("bit_width, step", [(1, 0.79788455), (2, 0.53881192), (3, 0.32172891), (4, 0.18424334)])
def test_golden_hwgq_uniform_step(bit_width, step):
    assert half_wave_step(bit_width) == pytest.approx(step, abs=1e-6)


def test_golden_hwgq_one_bit_is_the_mean():
    assert half_wave_step(1) == pytest.approx(math.sqrt(2 / math.pi), abs=1e-12)
    assert half_wave_levels(1) == (pytest.approx(math.sqrt(2 / math.pi), abs=1e-12),)


@pytest.mark.parametrize(
    "levels",
    [
        [0.45278003463650063, 1.5104176084991126],
        [0.3177163692948231, 1.0001060461975047, 1.8935948116416783],
    ],
)
def test_golden_hwgq_nonuniform_levels(levels):
    assert half_wave_levels(len(levels)) == pytest.approx(levels, abs=1e-9)


def test_golden_hwgq_reference_code():
    assert [math.floor(c * 1000) / 1000 for c in uniform(half_wave_step(2), 1)] == [0.538]  # truncated there
    assert HWGQ(2).quant_max.item() == pytest.approx(1.614, abs=0.003)
    assert [round(c, 3) for c in half_wave_levels(2)] == [0.453, 1.51]


@pytest.mark.parametrize("bit_width", [1, 2, 3, 5])
def test_the_step_has_the_least_error(bit_width):
    step = half_wave_step(bit_width)
    best = error(uniform(step, bit_width))
    assert best < error(uniform(step * 1.01, bit_width)) and best < error(uniform(step * 0.99, bit_width))


@pytest.mark.parametrize("count", [1, 2, 3, 7, 15])
def test_the_levels_have_the_least_error(count):
    levels = half_wave_levels(count)
    best = error(levels)
    for i in range(count):
        for factor in (0.98, 1.02):
            assert best < error([c * factor if i == j else c for j, c in enumerate(levels)])


@pytest.mark.parametrize("bit_width", [6, 8])
def test_many_levels_are_found_as_well(bit_width):
    # For many levels the error approaches (integral of density^(1/3))^3 / (12 n^2) (Panter and Dite).
    levels = half_wave_levels(2**bit_width - 1)
    limit = (6 * math.pi) ** 1.5 / 8 / math.sqrt(2 * math.pi) / 12 / len(levels) ** 2
    assert all(a < b for a, b in zip((0, *levels), levels, strict=False))
    assert error(levels) == pytest.approx(limit, rel=0.05)
    assert error(levels) < error(uniform(half_wave_step(bit_width), bit_width))


def test_forward():
    x = torch.tensor([-1.0, 0.0, 1e-6, 0.5, 0.8, 0.82, 1.3, 1.36, 9.0])
    step = half_wave_step(2)
    assert HWGQ(2)(x).tolist() == pytest.approx([0, 0, step, step, step, 2 * step, 2 * step, 3 * step, 3 * step])


@pytest.mark.parametrize("uniform", [True, False])
@pytest.mark.parametrize("bit_width", [1, 2, 4])
def test_by_the_book(bit_width, uniform):
    quantizer = HWGQ(bit_width, uniform=uniform)
    count = 2**bit_width - 1
    centers = [half_wave_step(bit_width) * i for i in range(1, count + 1)] if uniform else half_wave_levels(count)
    x = torch.randn(500, generator=torch.Generator().manual_seed(3))
    expected = [min(centers, key=lambda c: abs(c - v)) if v > 0 else 0.0 for v in x.tolist()]
    y = quantizer(x)
    assert y.tolist() == pytest.approx(expected, abs=1e-6)
    assert torch.equal(quantizer(y), y) and torch.equal(quantizer.encode(x).decode(), y)


@pytest.mark.parametrize("gradient", ["clipped", "relu", "log_tailed"])
def test_gradients_in_and_out_of_range(gradient):
    quantizer = HWGQ(2, gradient=gradient)
    top = quantizer.quant_max.item()
    x = torch.tensor([-1.0, 0.0, 1e-6, 1.0, top, top + 1, top + 4], requires_grad=True)
    quantizer(x).backward(torch.full((7,), 2.0))
    beyond = {"clipped": [0, 0], "relu": [1, 1], "log_tailed": [0.5, 0.2]}[gradient]
    assert x.grad.tolist() == pytest.approx([2 * v for v in [0, 0, 1, 1, 1, *beyond]], abs=1e-6)


@pytest.mark.parametrize("gradient", ["clipped", "relu", "log_tailed"])
@pytest.mark.parametrize("bit_width", [2, 6])
def test_compiled_is_eager(gradient, bit_width):
    torch._dynamo.reset()
    quantizer = HWGQ(bit_width, gradient=gradient)
    results = []
    for function in (quantizer, torch.compile(quantizer, backend="aot_eager", fullgraph=True)):
        x = torch.linspace(-3, 5, 1001, requires_grad=True)
        y = function(x)
        y.square().sum().backward()
        results.append((y.detach(), x.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_bfloat16_activations():
    x = torch.randn(300).bfloat16().requires_grad_()
    quantizer = HWGQ(3, gradient="log_tailed")
    y = quantizer(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert torch.equal(y, quantizer(x.float()).bfloat16())


def test_inference_form_is_a_plain_table():
    x = torch.linspace(-1, 5, 601)
    assert torch.equal(HWGQ(3).inference_form()(x), HWGQ(3)(x))


def test_signed_range():
    with pytest.raises(ValueError, match="HWGQ has no signed range"):
        HWGQ(2, signed=True)


def test_unknown_gradient():
    with pytest.raises(ValueError, match="gradient must be one of clipped, relu, log_tailed, got 'ste'"):
        HWGQ(2, gradient="ste")
