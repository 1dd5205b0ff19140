"""INQ: the golden example, the partition, and weights that stay where they were put."""

import math

import pytest
import torch

from common.quantizers.inq import INQ, IncrementalQuantizer, largest_weights, power_range

WEIGHTS = [
    [0.01, 0.02, -0.2, 0.04, 0.33],
    [0.17, -0.42, -0.33, 0.02, -0.05],
    [0.02, 0.83, -0.03, 0.03, 0.06],
    [-0.9, 0.07, 0.11, 0.87, -0.36],
    [-0.73, 0.41, 0.42, 0.39, 0.47],
]
FIRST_STEP = [
    [0.01, 0.02, -0.2, 0.04, 0.25],
    [0.17, -0.5, -0.25, 0.02, -0.05],
    [0.02, 1.0, -0.03, 0.03, 0.06],
    [-1.0, 0.07, 0.11, 1.0, -0.25],
    [-0.5, 0.5, 0.5, 0.5, 0.5],
]
AT_ONCE = [
    [0.0, 0.0, -0.25, 0.0, 0.25],
    [0.125, -0.5, -0.25, 0.0, 0.0],
    [0.0, 1.0, 0.0, 0.0, 0.0],
    [-1.0, 0.125, 0.125, 1.0, -0.25],
    [-0.5, 0.5, 0.5, 0.5, 0.5],
]
MASK = [[0, 0, 0, 0, 1], [0, 1, 1, 0, 0], [0, 1, 0, 0, 0], [1, 0, 0, 1, 1], [1, 1, 1, 1, 1]]
PORTIONS = {0.5: 12, 0.75: 18, 0.875: 21, 1.0: 25}


def incremental(weight, bit_width=4):
    quantizer = IncrementalQuantizer(INQ(bit_width), weight.shape)
    quantizer.calibrate(weight)
    return quantizer


@pytest.mark.parametrize("bit_width, n2", [(2, 0), (3, -1), (4, -3), (5, -7)])
def test_golden_inq_exponents(bit_width, n2):
    assert power_range(0.9, bit_width) == (0, n2)
    quantizer = INQ(bit_width)
    quantizer.calibrate(torch.tensor(WEIGHTS))
    powers = [2.0**n for n in range(n2, 1)]
    levels = (quantizer.scale * quantizer.levels).tolist()
    assert levels == [-p for p in reversed(powers)] + [0.0] + powers
    assert len(levels) == 2 ** (bit_width - 1) + 1


def test_golden_inq_first_step():
    weight = torch.tensor(WEIGHTS)
    quantizer = incremental(weight)
    quantizer.advance(weight, 0.5)
    assert quantizer.fixed.int().tolist() == MASK and int(quantizer.fixed.sum()) == 12
    assert weight[quantizer.fixed].abs().min() == 0.33
    assert torch.equal(quantizer(weight), torch.tensor(FIRST_STEP))


def test_golden_inq_all_at_once_without_retraining():
    weight = torch.tensor(WEIGHTS)
    quantizer = incremental(weight)
    quantizer.advance(weight, 1.0)
    assert torch.equal(quantizer(weight), torch.tensor(AT_ONCE))
    assert torch.equal(quantizer.grid(weight), torch.tensor(AT_ONCE))


@pytest.mark.parametrize("portion, count", PORTIONS.items())
def test_golden_inq_counts(portion, count):
    weight = torch.tensor(WEIGHTS)
    assert int(largest_weights(weight, torch.zeros(5, 5, dtype=torch.bool), portion).sum()) == count


@pytest.mark.parametrize("max_abs", [1e-6, 0.3, 0.7499, 0.75, 0.9, 1.4999, 1.5, 3.0, 1e4])
def test_the_largest_power_is_the_formula(max_abs):
    largest, _ = power_range(max_abs, 5)
    assert 2.0**largest <= 4 * max_abs / 3 < 2.0 ** (largest + 1)
    assert max_abs < 1.5 * 2.0**largest


def test_the_range_of_zeros():
    quantizer = INQ(5)
    quantizer.calibrate(torch.zeros(4))
    assert quantizer.scale == 1 and not quantizer(torch.zeros(4)).any()


@pytest.mark.parametrize("bit_width", range(2, 9))
@pytest.mark.parametrize("sign", [1, -1])
def test_by_the_book(bit_width, sign):
    quantizer = INQ(bit_width)
    quantizer.calibrate(torch.tensor([1.9]))
    n1, n2 = power_range(1.9, bit_width)
    betas = [2.0**n for n in range(n2, n1 + 1)]
    bounds = [0.5 * betas[0], *(0.75 * b for b in betas[1:]), 1.5 * betas[-1]]
    x = torch.rand(500, generator=torch.Generator().manual_seed(1)) * 2
    x = torch.cat([x, x * 2.0 ** float(n2), torch.tensor(bounds), torch.tensor([0.0, 50.0])])
    for value, y in zip(x.tolist(), quantizer(sign * x).tolist(), strict=True):
        expected, below = 0.0, 0.0
        for beta in betas:
            if (below + beta) / 2 <= value < 3 * beta / 2:
                expected = beta
            below = beta
        if value >= 1.5 * betas[-1]:
            expected = betas[-1]  # our choice
        assert y == sign * expected


def test_levels_are_powers_of_two():
    y = INQ(5)(torch.randn(10_000))
    exponents = y[y != 0].abs().log2()
    assert torch.equal(exponents, exponents.round()) and exponents.min() >= -7 and exponents.max() == 0


def test_codes_fit_their_width():
    weight = torch.tensor(WEIGHTS)
    quantizer = incremental(weight)
    quantizer.advance(weight, 1.0)
    encoding = quantizer.encode(weight)
    assert torch.equal(encoding.decode(), quantizer(weight)) and int(encoding.codes.max()) <= 8
    assert encoding.bits == (4,) and encoding.pack().numel() == encoding.code_bytes == 13


def test_portions_are_reached_exactly_and_fixed_weights_never_move():
    generator = torch.Generator().manual_seed(2)
    weight = torch.nn.Parameter(torch.randn(7, 11, generator=generator) * 0.1)
    quantizer = incremental(weight.detach(), 5)
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, weight_decay=0.1)
    fixed = torch.zeros(7, 11, dtype=torch.bool)
    for portion in (0.5, 0.75, 0.875, 1.0):
        before = quantizer(weight.detach()).clone()
        quantizer.advance(weight, portion)
        assert int(quantizer.fixed.sum()) == math.floor(77 * portion)
        assert (quantizer.fixed | ~fixed).all()
        assert torch.equal(quantizer(weight.detach())[fixed], before[fixed])
        fixed = quantizer.fixed.clone()
        values = quantizer(weight.detach())[fixed].clone()
        for _ in range(5):
            optimizer.zero_grad()
            (quantizer(weight) * torch.randn(7, 11, generator=generator)).sum().backward()
            assert not weight.grad[fixed].any() and (weight.grad[~fixed] != 0).all()
            optimizer.step()
        assert torch.equal(quantizer(weight.detach())[fixed], values)
    y = quantizer(weight.detach())
    assert torch.equal(quantizer.grid(y), y)


def test_equal_magnitudes_are_ranked_by_position():
    mask = largest_weights(torch.tensor([1.0, -1.0, 1.0, 1.0]), torch.zeros(4, dtype=torch.bool), 0.5)
    assert mask.tolist() == [True, True, False, False]


def test_fixed_weights_count_as_the_largest():
    kept = torch.tensor([True, False, False, False])
    mask = largest_weights(torch.tensor([0.0, 3.0, 2.0, 1.0]), kept, 0.5)
    assert mask.tolist() == [True, True, False, False]


def test_a_saved_state_goes_on_where_it_was():
    weight = torch.tensor(WEIGHTS)
    source, target = incremental(weight), IncrementalQuantizer(INQ(4), (5, 5))
    source.advance(weight, 0.5)
    target.load_state_dict(source.state_dict())
    assert torch.equal(target(weight), source(weight)) and target.bit_width == 4


def test_compiled_is_eager():
    torch._dynamo.reset()
    weight = torch.tensor(WEIGHTS)
    quantizer = incremental(weight)
    compiled = torch.compile(quantizer, backend="aot_eager", fullgraph=True)
    for portion in (0.5, 0.75):
        quantizer.advance(weight, portion)
        assert torch.equal(compiled(weight), quantizer(weight))


@pytest.mark.parametrize("portion", [0.25, 1.5])
def test_portions_that_do_not_rise(portion):
    weight = torch.tensor(WEIGHTS)
    quantizer = incremental(weight)
    quantizer.advance(weight, 0.5)
    with pytest.raises(ValueError, match=f"portion must rise, up to 1: got {portion}, 12 weights are fixed"):
        quantizer.advance(weight, portion)


def test_unsigned_range():
    with pytest.raises(ValueError, match="INQ has no unsigned range"):
        INQ(4, signed=False)
