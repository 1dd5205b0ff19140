"""WRPN: the golden numbers of its weights and of its cost."""

import pytest
import torch

from common.quantizers.dorefa import DoReFaActivation
from common.quantizers.wrpn import WRPN, relative_cost

X = [-1.4, -0.6, -0.2, 0.1, 0.4, 0.8]
GOLDEN = {
    2: [-1.0, -1.0, 0.0, 0.0, 0.0, 1.0],
    3: [-1.0, -0.6666666666666666, -0.3333333333333333, 0.0, 0.3333333333333333, 0.6666666666666666],
    4: [-1.0, -0.5714285714285714, -0.14285714285714285, 0.14285714285714285, 0.42857142857142855, 0.8571428571428571],
}


@pytest.mark.parametrize("bit_width", GOLDEN)
def test_golden_wrpn_weights(bit_width):
    x = torch.tensor(X, requires_grad=True)
    y = WRPN(bit_width)(x)
    y.sum().backward()
    assert y.tolist() == pytest.approx(GOLDEN[bit_width], abs=1e-6)
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1]


@pytest.mark.parametrize(
    "width, a, w, model, printed",
    [
        (1, 32, 32, 1.0, 1.0),
        (1, 1, 1, 0.03125, 0.03),
        (2, 4, 2, 0.375, 0.39),
        (2, 1, 1, 0.125, 0.15),
        (3, 1, 1, 0.28125, 0.3),
    ],
)
def test_golden_wrpn_cost_model(width, a, w, model, printed):
    assert relative_cost(width, a, w) == model
    assert model - 0.0013 <= printed <= model + 0.025


@pytest.mark.parametrize("x, dx", [(-1.0001, 0), (-1.0, 1), (0.0, 1), (1.0, 1), (1.0001, 0)])
@pytest.mark.parametrize("bit_width", [2, 3, 5, 8])
def test_gradient_at_the_ends(x, dx, bit_width):
    v = torch.tensor(x, requires_grad=True)
    WRPN(bit_width)(v).backward()
    assert v.grad == dx


@pytest.mark.parametrize("bit_width", range(2, 9))
def test_levels_are_symmetric_and_hold_zero(bit_width):
    quantizer = WRPN(bit_width)
    y = quantizer(torch.linspace(-2, 2, 10_001)).unique()
    top = 2 ** (bit_width - 1) - 1
    torch.testing.assert_close(y, torch.arange(-top, top + 1) / top, atol=1e-6, rtol=0)
    assert torch.equal(quantizer(y), y)


def test_codes_stay_within_their_width():
    x = torch.linspace(-2, 2, 101)
    quantizer = WRPN(3)
    encoding = quantizer.encode(x)
    assert torch.equal(encoding.decode(), quantizer(x) + 0.0)
    assert (int(encoding.codes.min()), int(encoding.codes.max())) == (0, 6)


def test_activations_are_those_of_dorefa():
    # round((2^k - 1) clip(a, 0, 1)) / (2^k - 1)
    x = torch.tensor(X)
    for k in (1, 2, 4):
        expected = [round((2**k - 1) * min(max(v, 0), 1)) / (2**k - 1) for v in X]
        assert DoReFaActivation(k)(x).tolist() == pytest.approx(expected, abs=1e-6)


def test_compiled_is_eager():
    torch._dynamo.reset()
    quantizer = WRPN(4)
    compiled = torch.compile(quantizer, backend="aot_eager", fullgraph=True)
    results = []
    for function in (quantizer, compiled):
        x = torch.linspace(-2, 2, 1001, requires_grad=True)
        y = function(x)
        y.sum().backward()
        results.append((y.detach(), x.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_one_bit():
    with pytest.raises(ValueError, match="bit_width of WRPN"):
        WRPN(1)


def test_unsigned_range():
    with pytest.raises(ValueError, match="WRPN has no unsigned range"):
        WRPN(2, signed=False)
