"""DoReFa: the golden numbers, gradients, and the noise of the gradient quantizer."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from common.quantizers.binary import BWN
from common.quantizers.dorefa import (
    DoReFaActivation,
    DoReFaGradient,
    HalfIntegerQuantizer,
    dorefa_weight,
    gradient_noise,
    quantize_gradient,
    quantize_k,
)
from common.random import stream_key

W = [[2.09, -0.98, 1.48, 0.09], [0.05, -0.14, -1.08, 2.12], [-0.91, 1.92, 0.0, -1.03], [1.87, 0.0, 1.53, 1.49]]


def double(values):
    return torch.tensor(values, dtype=torch.double)


def close(actual, expected, atol=1e-9):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), atol=atol, rtol=0)


@pytest.mark.parametrize(
    "k, expected",
    [
        (1, [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]),
        (2, [0.0, 0.0, 0.0, 1 / 3, 1 / 3, 1 / 3, 2 / 3, 2 / 3, 1.0, 1.0]),
        (3, [0.0, 1 / 7, 1 / 7, 1 / 7, 1 / 7, 3 / 7, 4 / 7, 4 / 7, 6 / 7, 1.0]),
        (4, [0.0, 2 / 15, 2 / 15, 0.2, 0.2, 7 / 15, 8 / 15, 0.6, 14 / 15, 1.0]),
        (8, [n / 255 for n in (0, 26, 41, 43, 51, 125, 130, 153, 230, 255)]),
    ],
)
def test_golden_dorefa_quantize_k(k, expected):
    r = double([0.0, 0.1, 0.16, 0.17, 0.2, 0.49, 0.51, 0.6, 0.9, 1.0]).requires_grad_()
    y = quantize_k(r, k)
    y.sum().backward()
    close(y.detach(), expected)
    assert r.grad.tolist() == [1] * 10


# -- weights ---------------------------------------------------------------------------------------------------------

CODES = {
    2: [[3, 0, 3, 2], [2, 1, 0, 3], [0, 3, 2, 0], [3, 2, 3, 3]],
    3: [[7, 1, 7, 4], [4, 3, 1, 7], [1, 7, 4, 1], [7, 4, 7, 7]],
    4: [[15, 2, 14, 8], [8, 6, 1, 15], [2, 15, 8, 2], [15, 8, 15, 14]],
}


@pytest.mark.parametrize("k", [2, 3, 4])
def test_golden_dorefa_weights(k):
    quantizer = dorefa_weight(k)
    w = torch.tensor(W)
    encoding = quantizer.encode(w)
    assert encoding.codes.tolist() == CODES[k]
    close(quantizer(w), [[2 * q / (2**k - 1) - 1 for q in row] for row in CODES[k]], atol=1e-6)
    assert torch.equal(encoding.decode(), quantizer(w))


@pytest.mark.parametrize(
    "k, first_row",
    [
        (2, [1.0, -1.0, 1.0, 0.33333333333333326]),
        (3, [1.0, -0.7142857142857143, 1.0, 0.1428571428571428]),
        (4, [1.0, -0.7333333333333334, 0.8666666666666667, 0.06666666666666665]),
    ],
)
def test_golden_dorefa_weights_in_double(k, first_row):
    t = torch.tanh(double(W))
    assert t.abs().max().item() == pytest.approx(0.9715940772546178, abs=1e-9)
    close((2 * quantize_k(t / (2 * t.abs().max()) + 0.5, k) - 1)[0], first_row)


GRADIENT = [
    [0.061099365840499846, 0.44554794338207804, 0.1928330681508698, 1.0209444080599637],
    [1.026667601340431, 1.0093240725737633, 0.3816770820935513, 0.0576423326930914],
    [0.4940008212961518, 0.08480335242156649, 1.0292364099477092, 0.41279160802919385],
    [0.09330876890931873, 1.0292364099477092, 0.17613019966608706, 0.18938403782626875],
]


@pytest.mark.parametrize("k", [2, 3, 8])
@pytest.mark.parametrize("differentiate_max, largest", [(False, 0.0576423326930914), (True, -0.15163602714388927)])
def test_golden_dorefa_weights_gradient(k, differentiate_max, largest):
    w = double(W).requires_grad_()
    dorefa_weight(k, differentiate_max).double()(w).sum().backward()
    expected = double(GRADIENT)
    expected[1, 3] = largest
    close(w.grad, expected)


@pytest.mark.parametrize("differentiate_max, first", [(False, 0.5514411295435666), (True, 0.2183680241094576)])
def test_golden_dorefa_weights_small(differentiate_max, first):
    w = double([-1.0, -0.5, 0.1, 0.8]).requires_grad_()
    quantizer = dorefa_weight(2, differentiate_max).double()
    unit = quantizer.transform(w).detach() / 2 + 0.5
    close(unit, [0.0, 0.19661193324148185, 0.5654337968887624, 0.9359518551153495])
    y = quantizer(w)
    close(y.detach(), [-1.0, -1 / 3, 1 / 3, 1.0], atol=1e-7)  # the grid's scale is a float32 number
    y.sum().backward()
    close(w.grad, [first, 1.0326336235852185, 1.2999919748661322, 0.7340591617731835])


def test_golden_dorefa_one_bit():
    w = torch.tensor(W, requires_grad=True)
    quantizer = dorefa_weight(1)
    assert isinstance(quantizer, BWN)
    y = quantizer(w)
    signs = torch.tensor([[1, -1, 1, 1], [1, -1, -1, 1], [-1, 1, 1, -1], [1, 1, 1, 1]])  # zero is +1
    close(y.detach(), 1.04875 * signs, atol=1e-6)
    y.sum().backward()
    assert torch.equal(w.grad, torch.ones(4, 4))


@pytest.mark.parametrize("k, expected", [(2, True), (3, True), (4, False), (8, False)])
def test_golden_idempotence_on_W(k, expected):
    quantizer = dorefa_weight(k)
    once = quantizer(torch.tensor(W))
    twice = quantizer(once)
    assert torch.allclose(once, twice, atol=1e-6) == expected
    assert torch.equal(quantizer.grid(once), once)


@pytest.mark.parametrize("bit_width", [0, 9])
def test_weight_widths_it_does_not_have(bit_width):
    with pytest.raises(ValueError, match=rf"bit_width .* got {bit_width}"):
        dorefa_weight(bit_width)


# -- the half-integer grid -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bit_width", range(2, 9))
def test_half_integer_levels(bit_width):
    n = 2**bit_width - 1
    quantizer = HalfIntegerQuantizer(bit_width)
    y = quantizer(torch.linspace(-3, 3, 20_001))
    expected = torch.tensor([2 * q / n - 1 for q in range(n + 1)])
    torch.testing.assert_close(y.unique(), expected, atol=1e-6, rtol=0)
    assert torch.equal(quantizer(y), y) and torch.equal(quantizer(-y), -y)
    assert quantizer(torch.zeros(1)) > 0


def test_half_integer_grid_is_straight_through():
    x = torch.tensor([-5.0, 0.3, 5.0], requires_grad=True)
    HalfIntegerQuantizer(2)(x).sum().backward()
    assert x.grad.tolist() == [1, 1, 1]


def test_half_integer_scales_per_channel():
    x = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))
    quantizer = HalfIntegerQuantizer(3, channels=3)
    quantizer.scale.copy_(torch.tensor([0.1, 0.3, 0.5]))
    y = quantizer(x)
    assert torch.equal(quantizer.encode(x).decode(), y)
    for channel in range(3):
        single = HalfIntegerQuantizer(3)
        single.scale.copy_(quantizer.scale[channel])
        assert torch.equal(single(x[channel]), y[channel])


def test_half_integer_width_can_change():
    quantizer = HalfIntegerQuantizer(4)
    quantizer.set_bit_width(2)
    reference = HalfIntegerQuantizer(2)
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, reference.state_dict()[name])
    with pytest.raises(ValueError, match="bit_width of HalfIntegerQuantizer"):
        quantizer.set_bit_width(1)


# -- activations -----------------------------------------------------------------------------------------------------


def test_golden_dorefa_activation():
    x = torch.tensor([-0.5, 0.0, 0.3, 0.5, 0.9, 1.0, 1.5], requires_grad=True)
    y = DoReFaActivation(2)(x)
    close(y.detach(), [0.0, 0.0, 1 / 3, 2 / 3, 1.0, 1.0, 1.0], atol=1e-6)
    y.sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 1, 1, 1, 0]  # golden leaves the ends open; 1 there is our choice


@pytest.mark.parametrize("k", range(1, 9))
def test_activation_is_quantize_k_of_the_clipped_value(k):
    x = torch.linspace(-0.5012, 1.503, 4001)  # no ties: x (2^k - 1) and x / (1 / (2^k - 1)) round apart
    quantizer = DoReFaActivation(k)
    torch.testing.assert_close(quantizer(x), quantize_k(x.clamp(0, 1), k), atol=1e-6, rtol=0)
    v = torch.tensor([0.0, 1.0], requires_grad=True)
    quantizer(v).sum().backward()
    assert v.grad.tolist() == [1, 1]


def test_signed_activations():
    with pytest.raises(ValueError, match="DoReFaActivation has no signed range"):
        DoReFaActivation(2, signed=True)


# -- gradients -------------------------------------------------------------------------------------------------------

G = [0.1, -0.4, 0.25, 0.8]
GOLDEN_GRADIENT = {
    (2, 0.0): [0.2666666666666666, -0.2666666666666667, 0.2666666666666666, 0.8],
    (2, 0.25): [0.2666666666666666, -0.2666666666666667, 0.2666666666666666, 0.8],
    (2, -0.25): [-0.2666666666666667, -0.8, 0.2666666666666666, 0.8],
    (3, 0.0): [0.11428571428571424, -0.3428571428571429, 0.3428571428571429, 0.8],
    (3, 0.25): [0.11428571428571424, -0.3428571428571429, 0.3428571428571429, 0.8],
    (3, -0.25): [0.11428571428571424, -0.3428571428571429, 0.11428571428571424, 0.8],
    (4, 0.0): [0.05333333333333332, -0.37333333333333335, 0.2666666666666666, 0.8],
    (4, 0.25): [0.15999999999999998, -0.37333333333333335, 0.2666666666666666, 0.8],
    (4, -0.25): [0.05333333333333332, -0.37333333333333335, 0.2666666666666666, 0.8],
    (6, 0.0): [0.08888888888888893, -0.3936507936507937, 0.2412698412698413, 0.8],
    (6, 0.25): [0.11428571428571424, -0.3936507936507937, 0.2666666666666666, 0.8],
    (6, -0.25): [0.08888888888888893, -0.3936507936507937, 0.2412698412698413, 0.8],
    (8, 0.0): [0.09725490196078433, -0.3984313725490196, 0.24784313725490198, 0.8],
    (8, 0.25): [0.10352941176470587, -0.3984313725490196, 0.2541176470588235, 0.8],
    (8, -0.25): [0.09725490196078433, -0.3984313725490196, 0.24784313725490198, 0.8],
}


@pytest.mark.parametrize("k, sigma", GOLDEN_GRADIENT)
def test_golden_dorefa_gradient(k, sigma):
    close(quantize_gradient(double([G]), torch.full((1, 4), sigma, dtype=torch.double), k), [GOLDEN_GRADIENT[k, sigma]])


@pytest.mark.parametrize("k", [1, 2, 4])
def test_the_quantized_gradient_is_unbiased(k):
    # The mean over equally spaced noise is exact but for the distance between neighbouring values.
    sigma = ((torch.arange(20_000, dtype=torch.double) + 0.5) / 20_000 - 0.5).reshape(1, -1, 1)
    rows = quantize_gradient(double(G).expand(1, 20_000, 4), sigma.expand(1, 20_000, 4), k)
    close(rows.mean(1), [G], atol=2e-4)


def test_every_sample_has_its_own_maximum():
    g = torch.randn(3, 2, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10.0, 0.1])[:, None, None]
    noise = torch.rand(3, 2, 2) - 0.5
    together = quantize_gradient(g, noise, 3)
    for i in range(3):
        assert torch.equal(together[i : i + 1], quantize_gradient(g[i : i + 1], noise[i : i + 1], 3))


def test_a_zero_gradient_stays_zero():
    g = torch.stack([torch.zeros(4), torch.tensor(G)])
    y = quantize_gradient(g, torch.full((2, 4), 0.3), 2)
    assert torch.equal(y[0], torch.zeros(4)) and y[1].any()


def backward(module, x, upstream, function=None):
    v = x.clone().requires_grad_()
    y = (function or module)(v)
    y.backward(upstream)
    return y.detach(), v.grad


def test_the_module_is_the_identity_forward_and_quantizes_backward():
    x, g = torch.randn(5, 7), torch.randn(5, 7)
    module = DoReFaGradient(3)
    key = stream_key(0, 0, "conv1.output")
    module.draw(key, 4)
    y, grad = backward(module, x, g)
    assert torch.equal(y, x)
    noise = gradient_noise(g, torch.tensor(key), torch.tensor(4))
    assert torch.equal(grad, quantize_gradient(g, noise, 3))
    assert noise.abs().max() < 0.5 and noise.unique().numel() == 35


def test_noise_depends_on_key_and_step_alone():
    g = torch.randn(4, 6)
    draws = []
    for key, step in [(1, 0), (1, 1), (2, 0), (1, 0)]:
        module = DoReFaGradient(2)
        module.draw(key, step)
        draws.append(backward(module, g, g)[1])
    assert torch.equal(draws[0], draws[3])
    assert not torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_compiled_gradient_quantizer_is_eager_and_keeps_its_graph():
    torch._dynamo.reset()
    module = DoReFaGradient(3)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda v: module(v * 2), backend=counter, fullgraph=True)
    x, g = torch.randn(5, 7), torch.randn(5, 7)
    for step in range(3):
        module.draw(99, step)
        eager, fast = (backward(module, x, g, f) for f in (lambda v: module(v * 2), compiled))
        assert torch.equal(eager[0], fast[0]) and torch.equal(eager[1], fast[1])
    assert counter.frame_count == 1


def test_bfloat16_gradients():
    x = torch.randn(4, 5).bfloat16()
    module = DoReFaGradient(8)
    _, grad = backward(module, x, x)
    assert grad.dtype == torch.bfloat16
    torch.testing.assert_close(grad.float(), x.float(), atol=0.05, rtol=0)


def test_nothing_of_it_is_saved():
    assert not DoReFaGradient(4).state_dict()


def test_gradient_widths_it_does_not_have():
    with pytest.raises(ValueError, match="bit_width must be in"):
        DoReFaGradient(0)
