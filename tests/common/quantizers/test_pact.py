"""PACT: the golden numbers, the clip gradient in and out of range, weight decay of alpha."""

import pytest
import torch

from common.quantizers import clip
from common.quantizers.lsq import quantize_learned
from common.quantizers.pact import PACT, pact, pact_clip

X = [-0.3, 0.4, 1.1, 2.6, 4.0, 0.9]
UPSTREAM = [0.1, -0.2, 0.3, 0.4, -0.5, 0.6]


def double(values):
    return torch.tensor(values, dtype=torch.double)


def quantizer(bit_width=2, alpha=2.5, **settings):
    return PACT(bit_width, alpha=alpha, **settings).double()


def test_golden_pact():
    module = quantizer()
    x = double(X).requires_grad_()
    assert pact_clip(x, double(2.5)).tolist() == [0.0, 0.4, 1.1, 2.5, 2.5, 0.9]
    assert 1 / module.step_size().item() == pytest.approx(1.2)
    y = module(x)
    assert y.tolist() == pytest.approx([0.0, 0.0, 0.8333333333333334, 2.5, 2.5, 0.8333333333333334])
    y.backward(double(UPSTREAM))
    assert x.grad.tolist() == [0.0, -0.2, 0.3, 0.0, 0.0, 0.6]
    assert module.alpha.grad.item() == pytest.approx(-0.1)
    torch.optim.SGD(module.parameters(), lr=1.0, weight_decay=2e-4).step()
    assert module.alpha.item() == pytest.approx(2.5 + 0.0995)


def test_golden_pact_identity_check():
    x, alpha = double([-1.0, 0.25, 0.999, 1.0, 3.0]), double(1.0)
    y = pact_clip(x, alpha)
    assert y.tolist() == [0.0, 0.25, 0.999, 1.0, 1.0]
    torch.testing.assert_close(y, 0.5 * (x.abs() - (x - alpha).abs() + alpha))


def test_golden_pact_table_k2_alpha1():
    expected_y = [0.0, 1 / 3, 2 / 3, 1.0, 1.0, 1.0]
    columns = [[], [], []]
    for value in [-1.0, 0.25, 0.5, 0.999, 1.5, 3.0]:
        module, x = quantizer(alpha=1.0), double(value).requires_grad_()
        y = module(x)
        y.backward()
        for column, entry in zip(columns, (y, x.grad, module.alpha.grad), strict=True):
            column.append(entry.item())
    assert columns == [pytest.approx(expected_y), [0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 1, 1]]


@pytest.mark.parametrize("x, dx, dalpha", [(-1e-9, 0, 0), (0.0, 1, 0), (2.4999, 1, 0), (2.5, 0, 1), (2.5001, 0, 1)])
@pytest.mark.parametrize("function", [pact_clip, lambda v, alpha: pact(v, alpha, torch.tensor(3.0))])
def test_gradients_at_the_ends(function, x, dx, dalpha):
    v, alpha = double(x).requires_grad_(), double(2.5).requires_grad_()
    function(v, alpha).backward()
    assert (v.grad.item(), alpha.grad.item()) == (dx, dalpha)


@pytest.mark.parametrize(
    "function, expected",
    [
        (lambda x: pact(x, double(1.0), double(3.0)), [1, 0, 1]),
        (lambda x: pact_clip(x, double(1.0)), [1, 0, 1]),
        (lambda x: quantize_learned(x, double(1 / 3), double(0.0), double(3.0), "closed"), [1, 1, 1]),
        (lambda x: quantize_learned(x, double(1 / 3), double(0.0), double(3.0), "open"), [0, 0, 1]),
        (lambda x: clip(x, 0.0, 1.0), [1, 1, 1]),
    ],
)
def test_golden_clamp_gradient_at_bounds(function, expected):
    # Stated by masks: torch.clamp gives 0, 0.5 or 1 at the ends, by version and form.
    x = double([0.0, 1.0, 0.5]).requires_grad_()
    function(x).sum().backward()
    assert x.grad.tolist() == expected


def test_gradient_of_alpha_is_that_of_the_clip_by_finite_differences():
    x = torch.randn(300, generator=torch.Generator().manual_seed(0), dtype=torch.double) * 3
    module, h = quantizer(4), 1e-6
    module(x).sum().backward()
    difference = (x.clamp(0, 2.5 + h).sum() - x.clamp(0, 2.5 - h).sum()) / (2 * h)
    assert module.alpha.grad.item() == pytest.approx(difference.item(), abs=1e-6)


@pytest.mark.parametrize("x, dalpha", [(-0.5, 0.0), (0.4, -0.4 / 2.5), (1.1, (2.5 / 3 - 1.1) / 2.5), (2.6, 1.0)])
def test_calibrated_gradient_holds_the_rounding_error(x, dalpha):
    module = quantizer(calibrated=True)
    module(double(x)).backward()
    assert module.alpha.grad.item() == pytest.approx(dalpha)
    assert torch.equal(module(double(x)), quantizer()(double(x)))


@pytest.mark.parametrize("calibrated", [False, True])
def test_compiled_is_eager(calibrated):
    torch._dynamo.reset()
    module = PACT(3, alpha=2.0, calibrated=calibrated)
    results = []
    x = torch.cat([torch.randn(500) * 2, torch.tensor([0.0, 2.0, -0.0])])
    for function in (module, torch.compile(module, backend="aot_eager", fullgraph=True)):
        v, module.alpha.grad = x.clone().requires_grad_(), None
        y = function(v)
        (y * torch.linspace(-1, 2, 503)).sum().backward()
        results.append((y.detach(), v.grad, module.alpha.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])
    torch.testing.assert_close(results[0][2], results[1][2], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bit_width", range(1, 9))
def test_inference_form_is_the_same_grid(bit_width):
    module = PACT(bit_width, alpha=3.3)
    x = torch.linspace(-2, 5, 3001)
    y = module(x).detach()
    assert torch.equal(module.inference_form()(x) + 0.0, y + 0.0) and torch.equal(module(y), y)
    assert y.unique().numel() == 2**bit_width


def test_bfloat16_activations():
    module = PACT(4, alpha=3.3)
    x = torch.rand(1000).bfloat16().mul_(5).requires_grad_()
    y = module(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert torch.equal(y, module(x.float()).bfloat16())
    assert module.alpha.grad == (x.float() >= 3.3).sum()


def test_alpha_stays_positive():
    module = PACT(4)
    with torch.no_grad():
        module.alpha.fill_(-1.0)
    y = module(torch.ones(3))
    y.sum().backward()
    assert y.tolist() == pytest.approx([1e-3] * 3) and module.alpha.grad == 3


def test_width_can_change():
    module = PACT(8, alpha=3.0)
    module.set_bit_width(2)
    assert module(torch.linspace(0, 4, 100)).unique().tolist() == [0, 1, 2, 3]


def test_signed_range():
    with pytest.raises(ValueError, match="PACT has no signed range"):
        PACT(4, signed=True)


def test_alpha_of_the_wrong_sign():
    with pytest.raises(ValueError, match="alpha must be positive, got 0"):
        PACT(4, alpha=0)


def test_a_start_of_least_squares_beats_its_neighbours():
    x = torch.randn(100_000, generator=torch.Generator().manual_seed(0)).relu()
    quantizer = PACT(2, start="mse")
    quantizer.calibrate(x)
    alpha = float(quantizer.alpha.detach())

    def error(level):
        return float((torch.round(x.clamp(0, level) * 3 / level) * level / 3 - x).square().mean())

    assert alpha == pytest.approx(1.95, abs=0.1)  # 3 steps of 0.651, the best ones for a half normal with a zero level
    assert error(alpha) <= min(error(0.95 * alpha), error(1.05 * alpha))


def test_a_constant_start_stays():
    quantizer = PACT(2, alpha=8.0)
    quantizer.calibrate(torch.rand(100))
    assert float(quantizer.alpha) == 8.0
    with pytest.raises(ValueError, match="start must be constant or mse, got 'max'"):
        PACT(2, start="max")
