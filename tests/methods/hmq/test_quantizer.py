"""The HMQ block against the worked numbers of its specification and against a by-the-book loop version."""

import math

import pytest
import torch

from common.random import stream_key
from methods.hmq.quantizer import ClipRule, GumbelNoise, HMQBlock, _quantize_plain, quantize_with

PI = [[1.0, 0.0], [0.5, -0.5]]
G = [[0.2, -0.1], [0.3, 0.0]]
X = [-1.3, -0.4, 0.05, 0.3, 0.7, 1.4]


def golden_block(signed: bool = True) -> HMQBlock:
    """T = {1, 0.5}, B = {2, 4}, tau = 0.5, one draw of noise given by hand."""
    block = HMQBlock([2, 4], ClipRule(signed), num_thresholds=2).double()
    with torch.no_grad():
        block.logits.copy_(torch.tensor(PI))
    block.temperature.fill_(0.5)
    block.gumbel = torch.tensor(G, dtype=torch.double).reshape(1, 4)
    return block.train()


def close(actual, expected):
    torch.testing.assert_close(
        torch.as_tensor(actual).double(), torch.tensor(expected, dtype=torch.double), atol=1e-6, rtol=0
    )


def test_class_probabilities():
    close(golden_block().probabilities(), [[0.455054, 0.167405], [0.276004, 0.101536]])


def test_gumbel_softmax_is_equation_4():
    close(golden_block().sample(1)[0], [[0.642271, 0.047704], [0.288591, 0.021435]])


@pytest.mark.parametrize("signed, step", [(True, 0.400586), (False, 0.200293)])
def test_expected_step_and_threshold_are_equations_5_and_6(signed, step):
    block = golden_block(signed)
    expected_step, expected_threshold = block.expected_step_and_threshold(block.sample(1))
    close(expected_step, [step])
    close(expected_threshold, [0.844987])


def test_expected_bits_with_and_without_noise():
    close(golden_block().expected_bit_width(sampled=True), 2.138277)
    close(golden_block().expected_bit_width(sampled=False), 2.537883)


@pytest.mark.parametrize(
    "signed, expected",
    [
        (True, [-0.444402, -0.400586, 0.0, 0.400586, 0.801171, 0.844987]),
        (False, [0.0, 0.0, 0.0, 0.200293, 0.600879, 0.644694]),
    ],
)
def test_soft_quantization_is_equation_2_or_3(signed, expected):
    close(golden_block(signed)(torch.tensor(X, dtype=torch.double)), expected)


def test_gradients_of_the_sum_reach_logits_and_input():
    block = golden_block()
    x = torch.tensor(X, dtype=torch.double, requires_grad=True)
    block(x).sum().backward()
    close(block.logits.grad, [[0.175893, -0.036215], [-0.119715, -0.019963]])
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 0]


@pytest.mark.parametrize(
    "threshold, bit_width, signed, levels",
    [
        (1.0, 2, True, [-0.5, 0.0, 0.5, 1.0]),
        (1.0, 2, False, [0.0, 0.25, 0.5, 0.75]),
        (0.5, 4, True, [-0.4375 + 0.0625 * i for i in range(16)]),
        (1.0, 1, True, [0.0, 1.0]),
    ],
)
def test_hard_levels(threshold, bit_width, signed, levels):
    block = HMQBlock([bit_width], ClipRule(signed), num_thresholds=1)
    block.set_max_abs(threshold)
    values = block.eval()(torch.linspace(-3, 3, 2001)).unique()
    assert (values + 0.0).tolist() == levels


@pytest.mark.parametrize("max_abs, exponent", [(0.13, -2), (0.7, 0), (1.0, 0), (1.01, 1)])
def test_largest_threshold_is_the_next_power_of_two(max_abs, exponent):
    block = HMQBlock([8], ClipRule(True))
    block.set_max_abs(max_abs)
    assert block.max_exponent == exponent
    assert block.thresholds.tolist() == [2.0 ** (exponent - i) for i in range(9)]


def test_initial_logits_of_a_9_by_7_grid():
    logits = HMQBlock(range(2, 9), ClipRule(True)).logits
    close(logits[0, 6].detach(), -0.105361)
    close(logits[4, 2].detach(), -6.429719)
    assert (logits == logits[0, 6]).sum() == 1


def test_selection_by_marginal_and_by_joint_differ_where_they_should():
    # Column sums 0.4 + 0.05 against 0.3 + 0.25: the best pair has 2 bits, the best width is 4.
    logits = torch.tensor([[0.40, 0.30], [0.05, 0.25]]).log()
    widths = {}
    for selection in ("joint", "marginal"):
        block = HMQBlock([2, 4], ClipRule(True), num_thresholds=2, selection=selection)
        with torch.no_grad():
            block.logits.copy_(logits)
        widths[selection] = int(block.bit_width)
        assert block.best_pair() == int(block._chosen_pair())
    assert widths == {"joint": 2, "marginal": 4}


# -- by the book ------------------------------------------------------------------------------------------------------


def by_the_book(x, logits, noise, tau, thresholds, bit_widths, signed, axis):
    """Section 3 with plain loops; one noise matrix per index of `axis`. Rounding by a straight-through estimator."""
    rows = []
    for sample in range(noise.shape[0]):
        weights = {}
        for i in range(len(thresholds)):
            for j in range(len(bit_widths)):
                pi_hat = logits[i, j].exp() / logits.exp().sum()
                weights[i, j] = ((pi_hat.log() + noise[sample, i, j]) / tau).exp()
        total = sum(weights.values())
        step, threshold = 0.0, 0.0
        for (i, j), weight in weights.items():
            delta = (2 if signed else 1) * thresholds[i] / 2 ** bit_widths[j]
            step = step + weight / total * delta
            threshold = threshold + weight / total * thresholds[i]
        part = x.select(axis, sample) if noise.shape[0] > 1 else x
        values = []
        for value in part.reshape(-1):
            ratio = value / step
            q = step * (ratio + (torch.round(ratio) - ratio).detach())
            low, high = (-(threshold - step), threshold) if signed else (0.0 * step, threshold - step)
            if q < low:
                q = low
            elif q > high:
                q = high
            values.append(q)
        rows.append(torch.stack(values).reshape(part.shape))
    return torch.stack(rows, dim=axis) if noise.shape[0] > 1 else rows[0]


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("noise", ["tensor", "batch", "channel"])
def test_block_equals_the_loop_version_forward_and_backward(signed, noise):
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(3, 4, 2, 2, generator=generator, dtype=torch.double)
    upstream = torch.randn(3, 4, 2, 2, generator=generator, dtype=torch.double)
    block = HMQBlock([1, 2, 4], ClipRule(signed), noise=noise, noise_channels=4, num_thresholds=3).double().train()
    with torch.no_grad():
        block.logits.copy_(torch.randn(3, 3, generator=generator))
    block.set_max_abs(1.5)
    block.temperature.fill_(0.7)
    GumbelNoise({"site": block}, lambda site: stream_key(0, 0, site)).draw(step=5, batch_size=3)
    samples = {"tensor": 1, "batch": 3, "channel": 4}[noise]

    ours = x.clone().requires_grad_()
    output = block(ours)
    (output * upstream).sum().backward()

    theirs, logits = x.clone().requires_grad_(), block.logits.detach().clone().requires_grad_()
    expected = by_the_book(
        theirs, logits, block.gumbel[:samples].reshape(-1, 3, 3), 0.7, [2.0, 1.0, 0.5], [1, 2, 4], signed,
        axis={"batch": 0, "channel": 1}.get(noise, 0),
    )
    (expected * upstream).sum().backward()
    torch.testing.assert_close(output, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(ours.grad, theirs.grad, atol=1e-6, rtol=0)
    torch.testing.assert_close(block.logits.grad, logits.grad, atol=1e-6, rtol=0)


RULES = [ClipRule(s, u, e) for s in (True, False) for u in (False, True) for e in (False, True)]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (6, 1, 1, 1), (1, 3, 1, 1), ()])
def test_eager_and_compiled_code_are_the_same_function(rule, shape):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, 3, 5, 5, generator=generator, dtype=torch.double)
    step = 0.1 + 0.2 * torch.rand(shape, generator=generator, dtype=torch.double)
    threshold = 0.5 + torch.rand(shape, generator=generator, dtype=torch.double)
    upstream = torch.randn(6, 3, 5, 5, generator=generator, dtype=torch.double)
    results = []
    for function in (quantize_with, _quantize_plain):
        inputs = [v.clone().requires_grad_() for v in (x, step, threshold)]
        output = function(*inputs, rule)
        results.append((output, *torch.autograd.grad(output, inputs, upstream)))
    for eager, plain in zip(*results, strict=True):
        torch.testing.assert_close(eager, plain, atol=1e-10, rtol=0)


@pytest.mark.parametrize(
    "x, dx, dstep, dthreshold",
    [
        (-0.90, 0.0, 1.0, -1.0),  # rounds to -1.0, below -(t - D) = -0.75
        (-0.75, 1.0, 0.0, 0.0),  # on the lower end
        (-0.74, 1.0, -0.04, 0.0),
        (0.30, 1.0, -0.2, 0.0),  # round(1.2) - 1.2
        (0.99, 1.0, 0.04, 0.0),
        (1.00, 1.0, 0.0, 0.0),  # on the upper end
        (1.12, 1.0, -0.48, 0.0),  # still rounds to t
        (1.13, 0.0, 0.0, 1.0),  # rounds to 1.25, above t
    ],
)
def test_signed_gradients_at_and_near_the_ends(x, dx, dstep, dthreshold):
    inputs = [torch.tensor(v, dtype=torch.double, requires_grad=True) for v in (x, 0.25, 1.0)]
    quantize_with(*inputs, ClipRule(True)).backward()
    close(inputs[0].grad, dx)
    close(inputs[1].grad, dstep)
    close(inputs[2].grad, dthreshold)


@pytest.mark.parametrize(
    "x, dx, dstep, dthreshold",
    [
        (-0.20, 0.0, 0.0, 0.0),  # rounds to -0.25, below 0
        (-0.10, 1.0, 0.4, 0.0),  # rounds to 0: inside
        (0.0, 1.0, 0.0, 0.0),
        (0.75, 1.0, 0.0, 0.0),  # on the upper end t - D
        (0.85, 1.0, -0.4, 0.0),
        (0.90, 0.0, -1.0, 1.0),  # rounds to 1.0, above t - D
    ],
)
def test_unsigned_gradients_at_and_near_the_ends(x, dx, dstep, dthreshold):
    inputs = [torch.tensor(v, dtype=torch.double, requires_grad=True) for v in (x, 0.25, 1.0)]
    quantize_with(*inputs, ClipRule(False)).backward()
    close(inputs[0].grad, dx)
    close(inputs[1].grad, dstep)
    close(inputs[2].grad, dthreshold)


@pytest.mark.parametrize(
    "rule, x, value, dx",
    [
        (ClipRule(False, upper_at_threshold=True), 1.0, 1.0, 1.0),  # 2^b + 1 levels
        (ClipRule(False), 1.0, 0.75, 0.0),
        (ClipRule(True, ends_are_clipped=True), 1.0, 1.0, 0.0),
        (ClipRule(True, ends_are_clipped=True), 0.8, 0.75, 1.0),
    ],
)
def test_choices_of_the_public_code(rule, x, value, dx):
    x = torch.tensor(x, requires_grad=True)
    y = quantize_with(x, torch.tensor(0.25), torch.tensor(1.0), rule)
    y.backward()
    assert (y.item(), x.grad.item()) == (value, dx)


def test_initial_logits_of_the_public_code():
    block = HMQBlock([2, 4], ClipRule(True), num_thresholds=2)
    block.reset_logits_like_public_code(torch.Generator().manual_seed(0))
    assert block.logits[0, 1].item() == pytest.approx(math.log(0.95 * 4 / 0.05), abs=1e-6)
    others = block.logits.flatten()[[0, 2, 3]]
    assert ((others <= 0) & (others > -1)).all() and others.unique().numel() == 3


def test_noise_is_gumbel_and_differs_between_sites_and_steps():
    blocks = {name: HMQBlock([2, 4], ClipRule(True), noise="batch") for name in ("a", "b")}
    noise = GumbelNoise(blocks, lambda site: stream_key(0, 0, site), eps=0.0)
    noise.draw(step=0, batch_size=4000)
    first = blocks["a"].gumbel.clone()
    assert first.mean().item() == pytest.approx(0.577216, abs=0.02)  # Euler's constant; 72,000 draws, 4 sigma = 0.019
    assert first.var().item() == pytest.approx(math.pi**2 / 6, abs=0.06)
    correlation = torch.corrcoef(torch.stack([first.flatten(), blocks["b"].gumbel.flatten()]))[0, 1]
    assert abs(correlation) < 0.02
    noise.draw(step=1, batch_size=4000)
    assert not torch.equal(first, blocks["a"].gumbel)
    noise.draw(step=0, batch_size=4000)
    assert torch.equal(first, blocks["a"].gumbel)


def test_a_frozen_block_keeps_its_pair_through_training_and_loading():
    block = HMQBlock([2, 4, 8], ClipRule(True))
    block.freeze(block.best_pair(4))
    assert int(block.bit_width) == 4
    with torch.no_grad():
        block.logits.normal_()
    assert int(block.bit_width) == 4
    restored = HMQBlock([2, 4, 8], ClipRule(True))
    assert restored.searching
    restored.load_state_dict(block.state_dict())
    assert not restored.searching and int(restored.bit_width) == 4


@pytest.mark.parametrize("signed", [True, False])
def test_codes_decode_to_what_the_forward_pass_gives(signed):
    x = torch.randn(64, 3, 3, 3)
    for bit_width in range(1, 9):
        block = HMQBlock([bit_width], ClipRule(signed)).eval()
        block.set_max_abs(1.3)
        encoding = block.encode(x)
        assert torch.equal(encoding.decode(), block(x) + 0.0)
        assert int(encoding.codes.min()) >= 0 and int(encoding.codes.max()) <= 2**bit_width - 1


def test_bad_settings_name_the_argument():
    with pytest.raises(ValueError, match="bit_widths"):
        HMQBlock([0, 2], ClipRule(True))
    with pytest.raises(ValueError, match="noise"):
        HMQBlock([2], ClipRule(True), noise="image")
    with pytest.raises(ValueError, match="selection"):
        HMQBlock([2], ClipRule(True), selection="best")
    with pytest.raises(ValueError, match="initial_probability"):
        HMQBlock([2], ClipRule(True), initial_probability=1.0)
    with pytest.raises(ValueError, match="noise draws"):
        HMQBlock([2, 4], ClipRule(True)).train()(torch.zeros(3))
