"""APoT: the golden level sets and gradients."""

from fractions import Fraction

import pytest
import torch

from common.quantizers.apot import APoT, additive_powers, apot_levels
from common.quantizers.levels import LevelsQuantizer
from common.quantizers.transformed import TransformedQuantizer, WeightNormalization

BEFORE_DIVISION = {
    2: "0 1/8 1/4 1/2",
    3: "0 1/16 1/8 3/16 1/4 3/8 1/2 5/8",
    4: "0 1/64 1/32 3/64 1/16 3/32 1/8 9/64 3/16 1/4 9/32 3/8 1/2 33/64 9/16 3/4",
    5: "0 1/128 1/64 3/128 1/32 5/128 3/64 7/128 1/16 5/64 3/32 7/64 1/8 17/128 5/32 21/128 3/16 7/32 1/4 17/64 9/32 "
    "19/64 3/8 13/32 1/2 65/128 17/32 69/128 9/16 19/32 3/4 25/32",
}
NORMALIZED = {
    2: "0 0.25 0.5 1",
    3: "0 0.1 0.2 0.3 0.4 0.6 0.8 1",
    4: "0 0.020833333333333332 0.041666666666666664 0.0625 0.08333333333333333 0.125 0.16666666666666666 0.1875 0.25 "
    "0.3333333333333333 0.375 0.5 0.6666666666666666 0.6875 0.75 1",
    5: "0 0.01 0.02 0.03 0.04 0.05 0.06 0.07 0.08 0.1 0.12 0.14 0.16 0.17 0.2 0.21 0.24 0.28 0.32 0.34 0.36 0.38 0.48 "
    "0.52 0.64 0.65 0.68 0.69 0.72 0.76 0.96 1",
}


@pytest.mark.parametrize("bit_width, largest", [(2, "1/2"), (3, "5/8"), (4, "3/4"), (5, "25/32")])
def test_golden_apot_before_division(bit_width, largest):
    levels = additive_powers(bit_width)
    assert levels == [Fraction(level) for level in BEFORE_DIVISION[bit_width].split()]
    assert levels[-1] == Fraction(largest)


@pytest.mark.parametrize("bit_width", NORMALIZED)
def test_golden_apot_magnitude_levels_normalized(bit_width):
    expected = [float(level) for level in NORMALIZED[bit_width].split()]
    assert apot_levels(bit_width, signed=False) == pytest.approx(expected, abs=1e-12)
    weights = apot_levels(bit_width + 1, signed=True)
    assert weights == pytest.approx([-level for level in expected[:0:-1]] + expected, abs=1e-12)


@pytest.mark.parametrize("bit_width", range(1, 9))
def test_sums_are_distinct(bit_width):
    levels = additive_powers(bit_width)
    assert len(set(levels)) == len(levels) == 2**bit_width


def test_two_bit_weights_are_ternary():
    assert apot_levels(2, signed=True) == [-1, 0, 1]


W = [-1.0, -0.5, 0.05, 0.3, 0.75, 0.9]


def double(bit_width, alpha, **settings):
    quantizer = APoT(bit_width, **settings).double()
    with torch.no_grad():
        quantizer.scale.fill_(alpha)
    return quantizer


@pytest.mark.parametrize("straight, mask", [(False, [0, 1, 1, 1, 1, 0]), (True, [1, 1, 1, 1, 1, 1])])
def test_golden_apot_gradient(straight, mask):
    together = double(3, 0.8, straight=straight)
    w = torch.tensor(W, dtype=torch.double, requires_grad=True)
    y = together(w)
    y.sum().backward()
    assert y.tolist() == pytest.approx([-0.8, -0.4, 0.0, 0.2, 0.8, 0.8], abs=1e-12)
    assert w.grad.tolist() == mask
    assert together.scale.grad.item() == pytest.approx(0.0, abs=1e-12)
    for value, expected in zip(W, [-1.0, 0.125, -0.0625, -0.125, 0.0625, 1.0], strict=True):
        single = double(3, 0.8, straight=straight)
        single(torch.tensor(value, dtype=torch.double)).backward()
        assert single.scale.grad.item() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    "x, y, dx, dalpha",
    [
        (-0.1, 0.0, 0, 0.0),
        (0.0, 0.0, 1, 0.0),
        (0.3, 0.5, 1, 0.1),
        (2.0, 2.0, 1, 0.0),
        (2.1, 2.0, 0, 1.0),
    ],
)
def test_activations_in_and_out_of_range(x, y, dx, dalpha):
    # alpha 2, levels 0, 0.5, 1, 2
    quantizer = double(2, 2.0, signed=False)
    v = torch.tensor(x, dtype=torch.double, requires_grad=True)
    output = quantizer(v)
    output.backward()
    assert (output.item(), v.grad.item()) == (y, dx)
    assert quantizer.scale.grad.item() == pytest.approx(dalpha, abs=1e-12)


def test_gradient_of_alpha_is_that_of_the_surrogate_with_frozen_codes():
    x = torch.randn(300, generator=torch.Generator().manual_seed(0), dtype=torch.double)
    quantizer, h = double(4, 0.9), 1e-6
    quantizer(x).sum().backward()
    error = (quantizer(x).detach() - x) / 0.9  # of the values inside, in units of alpha; frozen
    surrogate = lambda a: torch.where(x.abs() > 0.9, x.sign() * a, x + a * error).sum()  # noqa: E731
    difference = (surrogate(0.9 + h) - surrogate(0.9 - h)) / (2 * h)
    assert quantizer.scale.grad.item() == pytest.approx(difference.item(), abs=1e-6)


def test_golden_idempotence_on_W():
    w = torch.tensor(
        [[2.09, -0.98, 1.48, 0.09], [0.05, -0.14, -1.08, 2.12], [-0.91, 1.92, 0.0, -1.03], [1.87, 0.0, 1.53, 1.49]]
    )
    quantizer = TransformedQuantizer(WeightNormalization(), APoT(4))
    once = quantizer(w)
    assert torch.allclose(quantizer(once), once, atol=1e-6)  # true of this matrix at alpha = 3, not in general
    assert torch.equal(quantizer.grid(once), once)


@pytest.mark.parametrize("signed, alpha", [(True, 3.0), (False, 8.0)])
def test_default_clipping_levels(signed, alpha):
    assert APoT(4, signed).scale.item() == alpha


def test_inference_form_is_a_plain_table():
    x = torch.randn(500) * 4
    quantizer = APoT(4, alpha=2.7)
    plain = quantizer.inference_form()
    assert type(plain) is LevelsQuantizer and torch.equal(plain(x), quantizer(x))
    assert torch.equal(quantizer.encode(x).decode(), quantizer(x).detach())
    assert [name for name, _ in quantizer.named_parameters()] == ["scale"] and "scale" in quantizer.state_dict()


def test_alpha_that_fell_below_zero_acts_as_a_small_one():
    quantizer = APoT(3)
    with torch.no_grad():
        quantizer.scale.fill_(-1.0)
    y = quantizer(torch.randn(20))
    y.sum().backward()
    assert y.isfinite().all() and y.abs().max() <= 1.1e-8 and quantizer.scale.grad.isfinite()


@pytest.mark.parametrize("bit_width, signed, straight", [(2, True, True), (3, False, False), (6, True, False)])
def test_compiled_is_eager(bit_width, signed, straight):
    torch._dynamo.reset()
    quantizer = APoT(bit_width, signed, alpha=1.1, straight=straight)
    results = []
    for function in (quantizer, torch.compile(quantizer, backend="aot_eager", fullgraph=True)):
        x = torch.linspace(-2, 2, 1001, requires_grad=True)
        quantizer.scale.grad = None
        y = function(x)
        (y * x.detach()).sum().backward()
        results.append((y.detach(), x.grad, quantizer.scale.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    torch.testing.assert_close(results[0][2], results[1][2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bit_width", [1, 9])
def test_widths_it_does_not_have(bit_width):
    with pytest.raises(ValueError, match=f"bit_width of APoT .* got {bit_width}"):
        APoT(bit_width)


def test_alpha_of_the_wrong_sign():
    with pytest.raises(ValueError, match="alpha must be positive, got -1"):
        APoT(4, alpha=-1)
