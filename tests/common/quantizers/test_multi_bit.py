"""Greedy and Lloyd planes, LQ-Nets, ABC-Net: worked examples, optimality, gradients."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from common.quantizers.binary import bwn_scale
from common.quantizers.multi_bit import (
    ABCNetActivations,
    ABCNetWeights,
    LloydPlanes,
    LQNetsActivations,
    LQNetsWeights,
    abc_activation,
    abc_shifts,
    fit_basis,
    fit_planes,
    greedy_scales,
    lloyd_scales,
    planes_conv2d,
    qem_step,
)
from common.quantizers.planes import code_signs, nearest_codes, plane_levels

W = [[2.09, -0.98, 1.48, 0.09], [0.05, -0.14, -1.08, 2.12], [-0.91, 1.92, 0.0, -1.03], [1.87, 0.0, 1.53, 1.49]]


def example():
    return torch.tensor(W, dtype=torch.double)


def row(*values):
    return torch.tensor([values], dtype=torch.double)


def normal(*shape, seed=0, dtype=torch.double):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def squared_error(x, scales, low=-1):
    """Per row, with the nearest levels."""
    levels = plane_levels(scales, low)
    return (levels.gather(1, nearest_codes(x, levels)) - x).square().sum(1)


def gradient(function, x, upstream=None):
    x = x.clone().requires_grad_()
    y = function(x)
    y.backward(torch.ones_like(y) if upstream is None else upstream)
    return x.grad


# -- greedy start and Lloyd iterations ---------------------------------------------------------------------------------

FIRST = row(0.9, -0.7, 0.32, -0.1, 0.05, -0.45, 0.61, -0.28)
SECOND = row(2, 0.3, 0.2, -0.1, 1.9, -0.25, -2.1, 0.15, 0.9, -0.8)


@pytest.mark.parametrize(
    "planes, scales, error",
    [(1, [0.42625], 0.6143875), (2, [0.42625, 0.23875], 0.158375), (3, [0.42625, 0.23875, 0.12375], 0.0358625)],
)
def test_a_greedy_start_that_is_a_fixed_point(planes, scales, error):
    assert greedy_scales(FIRST, planes)[0].tolist() == pytest.approx(scales, abs=1e-12)
    assert fit_planes(FIRST, planes)[0].tolist() == pytest.approx(scales, abs=1e-12)
    assert squared_error(FIRST, fit_planes(FIRST, planes)).item() == pytest.approx(error, abs=1e-12)


@pytest.mark.parametrize(
    "planes, greedy_error, scales, error",
    [
        (1, 6.126, [0.87], 6.126),
        (2, 1.44744, [1.192857, 0.807143], 0.653571),
        (3, 0.5948, [0.889474, 0.573684, 0.523684], 0.048947),
    ],
)
def test_lloyd_iterations_improve_the_greedy_start(planes, greedy_error, scales, error):
    residual = SECOND
    for scale in greedy_scales(SECOND, planes)[0]:
        residual = residual - scale * torch.where(residual >= 0, 1.0, -1.0)
    assert residual.square().sum().item() == pytest.approx(greedy_error, abs=5e-5)
    fitted = fit_planes(SECOND, planes)
    assert fitted[0].tolist() == pytest.approx(scales, abs=1e-6)
    assert squared_error(SECOND, fitted).item() == pytest.approx(error, abs=1e-6)


def test_two_planes_reach_the_best_fit_of_a_grid():
    steps = torch.linspace(0, 2.1, 211, dtype=torch.double)
    errors = squared_error(SECOND.expand(211 * 211, -1), torch.cartesian_prod(steps, steps))
    assert errors.min().item() == pytest.approx(0.6538, abs=5e-5)
    assert squared_error(SECOND, fit_planes(SECOND, 2)).item() < errors.min()


def test_error_falls_with_every_step_and_every_plane():
    x = normal(20, 50)
    last = torch.full((20,), float("inf"), dtype=torch.double)
    for planes in (1, 2, 3, 4):
        scales = greedy_scales(x, planes)
        errors = [squared_error(x, scales)]
        for _ in range(15):
            scales = lloyd_scales(x, scales)
            assert (scales >= 0).all()
            errors.append(squared_error(x, scales))
        assert all((after <= before + 1e-9).all() for before, after in itertools.pairwise(errors))
        assert (errors[0].sum() - errors[-1].sum()) > (1e-3 if planes > 1 else -1e-9)
        assert (errors[-1] <= last + 1e-9).all()
        last = errors[-1]


def test_fit_ends_at_a_fixed_point_and_scales_with_its_input():
    x = normal(6, 40)
    fitted = fit_planes(x, 3, iterations=500)
    torch.testing.assert_close(lloyd_scales(x, fitted), fitted, rtol=1e-12, atol=0)
    torch.testing.assert_close(fit_planes(2.5 * x, 3, iterations=500), 2.5 * fitted)


@pytest.mark.parametrize("x", [torch.zeros(1, 5), torch.full((1, 5), 0.3), torch.tensor([[1.0, -1.0, 1.0, 1.0, 1.0]])])
def test_fit_of_few_different_values_is_exact(x):
    for planes in (1, 2, 3):
        assert squared_error(x, fit_planes(x, planes)).item() < 1e-12


def test_one_plane_is_bwn():
    weight = normal(4, 3, 3)
    quantizer = LloydPlanes(1, channels=4).double()
    y = quantizer(weight)
    torch.testing.assert_close(y, bwn_scale(weight) * torch.where(weight >= 0, 1.0, -1.0))


def test_training_takes_one_lloyd_step_a_pass():
    weight = normal(4, 30, dtype=torch.float)
    quantizer = LloydPlanes(2, channels=4)
    start = quantizer.scales.clone()
    y = quantizer(weight)
    once = lloyd_scales(weight, start)
    assert torch.equal(quantizer.scales, once)
    assert torch.equal(y, quantizer.eval()(weight)) and torch.equal(quantizer.scales, once)
    quantizer.calibrate(weight)
    assert torch.equal(quantizer.scales, fit_planes(weight, 2))


class Multiplications(TorchDispatchMode):
    """Counts the results of element-wise products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.mul.Tensor:
            self.count += result.numel()
        return result


@pytest.mark.parametrize("planes", [1, 2, 4])
def test_convolution_takes_one_multiplication_per_output_and_plane(planes):
    x, weight = normal(2, 4, 7, 7), normal(6, 2, 3, 3, seed=1)
    rows = weight.reshape(6, -1)
    scales = fit_planes(rows, planes)
    codes = nearest_codes(rows, plane_levels(scales)).reshape(weight.shape)
    signs = code_signs(codes, planes, dtype=torch.double)
    quantized = sum(s.reshape(-1, 1, 1, 1) * b for s, b in zip(scales.T, signs, strict=True))
    with Multiplications() as counted:
        y = planes_conv2d(x, signs, scales, 2, 1, 1, 2)
    torch.testing.assert_close(y, F.conv2d(x, quantized, None, 2, 1, 1, 2), rtol=0, atol=1e-12)
    assert counted.count == planes * y.numel()


# -- LQ-Nets -----------------------------------------------------------------------------------------------------------


def test_golden_lq_nets_qem_2bit():
    x, basis = example().reshape(1, -1), row(0.5, 1.0)
    steps = [
        ([-1.5, -0.5, 0.5, 1.5], 2.8432, [0.6566666666666666, 0.9666666666666665], 2.4536),
        (
            [-1.623333333333333, -0.30999999999999983, 0.30999999999999983, 1.623333333333333],
            2.4185777777777773,
            [0.6803333333333332, 0.8786666666666665],
            2.3023733333333336,
        ),
        (
            [-1.5589999999999997, -0.19833333333333325, 0.19833333333333325, 1.5589999999999997],
            2.2171048888888887,
            [0.722, 0.7779999999999998],
            2.07752,
        ),
        (
            [-1.4999999999999998, -0.05599999999999983, 0.05599999999999983, 1.4999999999999998],
            2.07752,
            [0.722, 0.7779999999999998],
            2.07752,
        ),
    ]
    last = float("inf")
    for levels, assigned, fitted, refitted in steps:
        present = plane_levels(basis)
        assert present.sort().values[0].tolist() == pytest.approx(levels, abs=1e-9)
        codes, basis = nearest_codes(x, present), qem_step(x, basis)
        assert (present.gather(1, codes) - x).square().sum().item() == pytest.approx(assigned, abs=1e-9)
        assert basis[0].tolist() == pytest.approx(fitted, abs=1e-9)
        error = (plane_levels(basis).gather(1, codes) - x).square().sum().item()
        assert error == pytest.approx(refitted, abs=1e-9)
        assert assigned <= last + 1e-9 and refitted <= assigned + 1e-9
        last = error
    assert fit_basis(x, row(0.5, 1.0))[0].tolist() == pytest.approx([0.722, 0.778], abs=1e-9)


@pytest.mark.parametrize("low", [-1, 0])
def test_qem_by_the_book(low):
    x, basis = normal(3, 60).abs() if low == 0 else normal(3, 60), torch.tensor([[0.3, 0.7, 1.1]]).double().expand(3, 3)
    codes, fitted = nearest_codes(x, plane_levels(basis, low)), qem_step(x, basis, low, ridge=1e-4)
    for g in range(3):
        candidates = torch.cartesian_prod(*[torch.tensor([low, 1.0], dtype=torch.double)] * 3)
        chosen = ((candidates @ basis[g])[None] - x[g][:, None]).abs().argmin(1)
        b = candidates[chosen]
        assert torch.equal(code_signs(codes[g], 3, low, torch.double).T, b)
        expected = torch.linalg.inv(b.T @ b + 1e-4 * torch.eye(3)) @ (b.T @ x[g] + 1e-4 * basis[g])
        torch.testing.assert_close(fitted[g], expected)


def test_qem_of_a_dead_tensor_keeps_the_basis():
    basis = row(0.4, 0.8)
    assert torch.equal(qem_step(torch.zeros(1, 50).double(), basis, low=0), basis)


def test_first_basis_of_weights():
    quantizer = LQNetsWeights(3, channels=64, fan_out=9 * 64)
    unit = 0.6745 * (2 / 576) ** 0.5 / 4
    torch.testing.assert_close(quantizer.scales, torch.tensor([[unit, 2 * unit, 4 * unit]]).expand(64, 3))


def test_first_basis_of_activations():
    torch.testing.assert_close(LQNetsActivations(2).basis, torch.tensor([1.349 / 3, 2 * 1.349 / 3]))
    assert LQNetsActivations(3).levels().tolist() == pytest.approx([i * 1.349 / 7 for i in range(8)])


def test_weights_train_on_the_basis_before_its_update():
    weight, quantizer = normal(4, 30, dtype=torch.float), LQNetsWeights(2, channels=4)
    start = quantizer.scales.clone()
    y = quantizer(weight)
    assert torch.equal(y, plane_levels(start).gather(1, nearest_codes(weight, plane_levels(start))))
    target = qem_step(weight, start, ridge=1e-4)
    torch.testing.assert_close(quantizer.scales, 0.9 * start + 0.1 * target)
    moved = quantizer.scales.clone()
    quantizer.eval()(weight)
    assert torch.equal(quantizer.scales, moved)
    assert torch.equal(gradient(quantizer, 9 * weight, weight), weight)


def test_activations_train_on_the_basis_before_its_update():
    x, quantizer = normal(2, 3, 5, 5, dtype=torch.float).relu(), LQNetsActivations(2)
    start = quantizer.basis.clone()
    y = quantizer(x)
    levels = torch.tensor([0, start[0], start[1], start[0] + start[1]])
    assert torch.equal(y, levels[(x.flatten()[:, None] - levels).abs().argmin(1)].reshape(x.shape))
    target = qem_step(x, start, low=0)
    torch.testing.assert_close(quantizer.basis, 0.9 * start + 0.1 * target)
    moved = quantizer.basis.clone()
    quantizer.eval()(x)
    assert torch.equal(quantizer.basis, moved)


def test_gradient_of_activations_lies_between_zero_and_the_largest_level():
    quantizer = LQNetsActivations(2).eval()
    quantizer.basis.copy_(torch.tensor([0.5, 1.0]))
    x = torch.tensor([-1.0, 0.0, 0.01, 0.75, 1.49, 1.5, 2.0])
    assert quantizer(x).tolist() == [0, 0, 0, 1, 1.5, 1.5, 1.5]
    assert gradient(quantizer, x).tolist() == [0, 0, 1, 1, 1, 0, 0]


def test_compiled_gradients_are_those_of_the_levels_before_their_update():
    """A compiler may compute masks again in the backward pass, when the buffers have changed."""
    x = torch.linspace(0.01, 4, 200)
    torch._dynamo.reset()
    for _ in range(2):
        activations = LQNetsActivations(2, momentum=0.0)
        top = activations.levels().max().item()
        grad = gradient(torch.compile(activations, backend="aot_eager", fullgraph=True), x)
        assert activations.levels().max() > 1.2 * top
        assert torch.equal(grad, (x < top).float())
    weight = torch.cat([x, -x])[None]
    planes = LloydPlanes(2, clipped=True)
    grad = gradient(torch.compile(planes, backend="aot_eager", fullgraph=True), weight)
    assert torch.equal(grad, (weight.abs() <= planes.scales.sum()).float()) and 0 < grad.mean() < 1


def test_basis_of_activations_stays_at_or_above_zero():
    x = torch.tensor([[1.6, 0.42, 0.95]])  # nearest levels: 0.3 + 1.3, 0.3 + 0.2 and 1.3
    quantizer = LQNetsActivations(3, momentum=0.0)
    quantizer.basis.copy_(torch.tensor([0.3, 1.3, 0.2]))
    assert qem_step(x, quantizer.basis[None], low=0)[0].tolist() == pytest.approx([0.65, 0.95, -0.23], abs=1e-6)
    quantizer(x)
    assert quantizer.basis.min() == 0
    quantizer.calibrate(x)
    assert quantizer.basis.min() >= 0


@pytest.mark.parametrize("bit_width", [1, 2, 3, 4])
def test_calibrated_bases_beat_the_first_ones(bit_width):
    weight, x = 0.3 * normal(8, 100, dtype=torch.float), normal(1, 5000, dtype=torch.float).relu() ** 2
    weights, activations = LQNetsWeights(bit_width, channels=8), LQNetsActivations(bit_width)
    before = squared_error(weight, weights.scales), squared_error(x, activations.basis[None], 0)
    weights.calibrate(weight)
    activations.calibrate(x)
    assert (squared_error(weight, weights.scales) < before[0]).all()
    assert squared_error(x, activations.basis[None], 0) < before[1]


def test_one_bit_weights_are_bwn():
    weight, quantizer = normal(4, 30), LQNetsWeights(1, channels=4).double()
    quantizer.calibrate(weight)
    torch.testing.assert_close(quantizer.scales, bwn_scale(weight))


# -- ABC-Net -----------------------------------------------------------------------------------------------------------


def test_golden_abc_net_M3():
    weight, quantizer = example(), ABCNetWeights(3).double()
    assert quantizer.shifts.tolist() == [-1.0, 0.0, 1.0]
    y = quantizer(weight)
    assert quantizer.center.item() == pytest.approx(0.53125, abs=1e-9)
    assert quantizer.spread.item() == pytest.approx(1.1813015861751814, abs=1e-9)
    assert code_signs(quantizer.encode(weight).codes, 3).tolist() == [
        [[1, -1, -1, -1], [-1, -1, -1, 1], [-1, 1, -1, -1], [1, -1, -1, -1]],
        [[1, -1, 1, -1], [-1, -1, -1, 1], [-1, 1, -1, -1], [1, -1, 1, 1]],
        [[1, -1, 1, 1], [1, 1, -1, 1], [-1, 1, 1, -1], [1, 1, 1, 1]],
    ]
    assert quantizer.scales[0].tolist() == pytest.approx([0.0, 0.75, 0.75], abs=1e-9)
    assert (y - weight).square().sum().item() == pytest.approx(2.0932, abs=1e-9)


@pytest.mark.parametrize("planes, expected", [(1, [0]), (2, [-1, 1]), (3, [-1, 0, 1]), (5, [-1, -0.5, 0, 0.5, 1])])
def test_shifts_of_abc_net(planes, expected):
    assert abc_shifts(planes).tolist() == expected


@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("channels", [None, 3])
def test_gradient_of_abc_weights_is_the_sum_of_the_scales(channels, clipped):
    weight, upstream = 1.5 * normal(3, 8, dtype=torch.float), normal(3, 8, seed=1, dtype=torch.float)
    weight[0, 0] = 1.0  # the end is inside
    quantizer = ABCNetWeights(3, channels=channels, clipped=clipped)
    grad = gradient(quantizer, weight, upstream)
    inside = (weight.abs() <= 1).float() if clipped else torch.ones(3, 8)
    torch.testing.assert_close(grad, upstream * quantizer.scales.sum(1, keepdim=True) * inside)


def test_abc_weights_keep_their_numbers_in_eval_mode():
    weight, quantizer = normal(3, 40, dtype=torch.float), ABCNetWeights(4)
    trained = quantizer(weight).detach()
    state = {name: value.clone() for name, value in quantizer.state_dict().items()}
    assert torch.equal(quantizer.eval()(weight), trained)
    quantizer(weight + 7)
    assert all(torch.equal(value, state[name]) for name, value in quantizer.state_dict().items())


def test_abc_weights_far_from_zero_stay_on_their_grid():
    """One plane thresholds at the mean, 5.5; its least squares levels are small: not the nearest ones."""
    weight, quantizer = torch.tensor([[5.0, 5.2, 5.8, 6.0]]), ABCNetWeights(1).eval()
    quantizer.calibrate(weight)
    y = quantizer(weight)
    assert y.tolist() == [[pytest.approx(level, abs=1e-6) for level in (-0.4, -0.4, 0.4, 0.4)]]
    assert torch.equal(quantizer.inference_form()(y), y)
    assert torch.equal(quantizer.encode(weight).decode(), y)
    assert not torch.equal(quantizer(y), y)


def test_abc_activations_by_the_book_and_their_gradients():
    x, upstream = normal(200), normal(200, seed=1)
    beta, v = [0.6, 0.3, -0.2], [0.0, 0.4, 1.1]
    x[:4] = torch.tensor([0.5, 0.0, 1.0, 0.1])  # on a threshold and on both ends of the first window
    value, dx, dbeta, dv = [], [], [0.0] * 3, [0.0] * 3
    for r, g in zip(x.tolist(), upstream.tolist(), strict=True):
        signs = [1 if min(max(r + shift, 0), 1) >= 0.5 else -1 for shift in v]
        inside = [0 <= r + shift <= 1 for shift in v]
        value.append(sum(b * s for b, s in zip(beta, signs, strict=True)))
        dx.append(g * sum(b * i for b, i in zip(beta, inside, strict=True)))
        for n in range(3):
            dbeta[n] += g * signs[n]
            dv[n] += g * beta[n] * inside[n]
    x.requires_grad_()
    scales, shifts = (torch.tensor(p, dtype=torch.double, requires_grad=True) for p in (beta, v))
    y = abc_activation(x, scales, shifts)
    y.backward(upstream)
    assert y.tolist() == pytest.approx(value, abs=1e-12)
    assert x.grad.tolist() == pytest.approx(dx, abs=1e-12)
    assert scales.grad.tolist() == pytest.approx(dbeta, abs=1e-9)
    assert shifts.grad.tolist() == pytest.approx(dv, abs=1e-9)


@pytest.mark.parametrize("planes", [1, 2, 3, 5])
def test_first_abc_activations_are_uniform(planes):
    x, levels = normal(1000, dtype=torch.float), torch.linspace(-1, 1, planes + 1)
    expected = levels[(x[:, None] - levels).abs().argmin(1)]
    torch.testing.assert_close(ABCNetActivations(planes)(x), expected)


def test_calibrated_abc_activations_have_the_least_error():
    x, quantizer = normal(5, 100, dtype=torch.float), ABCNetActivations(3).eval()
    quantizer.calibrate(x)
    least = (quantizer(x) - x).square().sum()
    for n in range(3):
        for change in (1e-2, -1e-2):
            with torch.no_grad():
                quantizer.scales[n] += change
                assert (quantizer(x) - x).square().sum() > least
                quantizer.scales[n] -= change
