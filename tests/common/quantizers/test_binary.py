"""Signs and their gradients, BinaryConnect, BWN, BNN, XNOR-Net's scales."""

import pytest
import torch
import torch.nn.functional as F

from common.quantizers.binary import (
    BWN,
    BinaryConnect,
    SignQuantizer,
    activation_scale,
    bwn,
    bwn_scale,
    clip_weights_,
    glorot_bound,
    hard_sigmoid,
    sign,
    sign_ste,
    stochastic_sign_ste,
    xnor_conv2d,
    xnor_linear,
)
from common.random import stream_key

W = [[2.09, -0.98, 1.48, 0.09], [0.05, -0.14, -1.08, 2.12], [-0.91, 1.92, 0.0, -1.03], [1.87, 0.0, 1.53, 1.49]]
SIGNS = [[1, -1, 1, 1], [1, -1, -1, 1], [-1, 1, 1, -1], [1, 1, 1, 1]]


def example():
    return torch.tensor(W, dtype=torch.double)


def normal(*shape, seed=0, dtype=torch.double):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def gradient(function, x, upstream=None):
    """d sum(function(x) * upstream) / dx."""
    x = x.clone().requires_grad_()
    y = function(x)
    y.backward(torch.ones_like(y) if upstream is None else upstream)
    return x.grad


# -- sign --------------------------------------------------------------------------------------------------------------


def test_golden_bnn_ste():
    x = torch.tensor([-1.5, -1.0, -0.3, 0.0, 0.7, 1.0, 2.0], dtype=torch.double)
    assert sign(x).tolist() == sign_ste(x).tolist() == [-1, -1, -1, 1, 1, 1, 1]
    assert gradient(sign_ste, x).tolist() == [0, 1, 1, 1, 1, 1, 0]
    torch.testing.assert_close(hard_sigmoid(x).tolist(), [0.0, 0.0, 0.35, 0.5, 0.85, 1.0, 1.0], rtol=0, atol=1e-12)


def test_sign_of_either_zero_is_one():
    assert sign(torch.tensor([0.0, -0.0])).tolist() == [1.0, 1.0]
    assert sign_ste(torch.tensor([0.0, -0.0])).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.double])
def test_sign_keeps_the_dtype_and_huge_values(dtype):
    x = torch.tensor([-float("inf"), -1e30, 1e-30, float("inf")], dtype=dtype)
    assert sign_ste(x).dtype == dtype and sign_ste(x).tolist() == [-1, -1, 1, 1]


@pytest.mark.parametrize("bound, expected", [(0.5, [0, 1, 1, 1, 0]), (2.0, [1, 1, 1, 1, 1]), (None, [1, 1, 1, 1, 1])])
def test_gradient_of_the_sign_ends_at_the_bound(bound, expected):
    x = torch.tensor([-0.51, -0.5, 0.0, 0.5, 0.6], dtype=torch.double)
    upstream = torch.tensor([3.0, -2.0, 5.0, 7.0, 1.0], dtype=torch.double)
    assert gradient(lambda v: sign_ste(v, bound), x, upstream).tolist() == (upstream * torch.tensor(expected)).tolist()


# -- BinaryConnect -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("magnitude", [1.0, 0.25])
def test_random_signs_have_the_clipped_weight_as_mean(magnitude):
    values = torch.tensor([-2.0, -1.0, -0.7, -0.1, 0.0, 0.3, 0.9, 1.0, 1.7]) * magnitude
    quantizer = BinaryConnect(magnitude=magnitude, shape=(20_000, 9))
    quantizer.draw(stream_key("mean"), 3)
    drawn = quantizer(values.expand(20_000, 9))
    assert drawn.unique().tolist() == [-magnitude, magnitude]
    expected = values.clamp(-magnitude, magnitude)
    deviation = magnitude * (1 - (expected / magnitude) ** 2).sqrt() / 20_000**0.5
    assert ((drawn.mean(0) - expected).abs() <= 4 * deviation + 1e-6).all()


def test_random_signs_are_a_function_of_key_and_step():
    def drawn(key, step):
        quantizer = BinaryConnect(shape=(8, 50))
        quantizer.draw(key, step)
        return quantizer(torch.zeros(8, 50))

    first = drawn(1, 0)
    assert torch.equal(first, drawn(1, 0))
    assert not torch.equal(first, drawn(1, 1)) and not torch.equal(first, drawn(2, 0))


def test_random_signs_end_with_eval_mode():
    quantizer = BinaryConnect(magnitude=0.5, shape=(100,))
    x = normal(100, dtype=torch.float)
    quantizer.draw(7, 0)
    assert not torch.equal(quantizer(x), 0.5 * sign(x))
    assert torch.equal(quantizer.eval()(x), 0.5 * sign(x))


def test_without_a_shape_or_a_draw_signs_are_not_random():
    x = normal(100, dtype=torch.float)
    assert torch.equal(BinaryConnect(magnitude=0.5)(x), 0.5 * sign(x))
    assert torch.equal(BinaryConnect(magnitude=0.5, shape=(100,))(x), 0.5 * sign(x))


@pytest.mark.parametrize("shape", [None, (4, 5)])
def test_gradient_of_binary_connect_passes_through(shape):
    quantizer = BinaryConnect(magnitude=0.25, shape=shape)
    upstream = normal(4, 5, seed=1, dtype=torch.float)
    assert torch.equal(gradient(quantizer, 3 * normal(4, 5, dtype=torch.float), upstream), upstream)


def test_random_signs_compile():
    x = normal(50, dtype=torch.float)
    eager, other = BinaryConnect(magnitude=0.5, shape=(50,)), BinaryConnect(magnitude=0.5, shape=(50,))
    torch._dynamo.reset()
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    for step in range(3):
        eager.draw(1, step)
        other.draw(1, step)
        assert torch.equal(compiled(x), eager(x))
        assert torch.equal(gradient(compiled, x), torch.ones(50))


def test_random_numbers_are_no_state():
    assert set(BinaryConnect(shape=(3,)).state_dict()) == {"bit_width", "scales"}


def test_stochastic_sign_by_the_book():
    x, uniform = normal(1000), torch.rand(1000, generator=torch.Generator().manual_seed(5))
    for value, u, y in zip(x.tolist(), uniform.tolist(), stochastic_sign_ste(x, uniform).tolist(), strict=True):
        assert y == (1.0 if u < min(max((value + 1) / 2, 0), 1) else -1.0)


def test_latent_weights_are_clipped_in_place():
    weight = torch.tensor([[-3.0, 0.2], [0.5, 1.5]])
    clip_weights_(weight, 0.4)
    assert weight.tolist() == [[pytest.approx(-0.4), pytest.approx(0.2)], [pytest.approx(0.4), pytest.approx(0.4)]]


def test_centering_takes_the_mean_over_input_channels():
    weight = torch.tensor([[[[1.0, 4.0]], [[0.0, 1.0]]]])  # (1, 2, 1, 2)
    clip_weights_(weight, 1.0, center=True)
    assert weight.tolist() == [[[[0.5, 1.0]], [[-0.5, -1.0]]]]


@pytest.mark.parametrize("shape, fans", [((10, 20), 30), ((64, 32, 3, 3), 9 * 96)])
def test_glorot_bound(shape, fans):
    assert glorot_bound(shape) == pytest.approx((1.5 / fans) ** 0.5)


# -- BWN ---------------------------------------------------------------------------------------------------------------


def test_golden_binary():
    weight = example()
    assert sign(weight).tolist() == SIGNS
    assert weight.abs().sum().item() == pytest.approx(16.78, abs=1e-9)
    assert weight.square().sum().item() == pytest.approx(26.8432, abs=1e-9)
    assert (sign(weight) - weight).square().sum().item() == pytest.approx(9.2832, abs=1e-9)

    alpha = bwn_scale(weight, per_channel=False)
    assert alpha.shape == (1, 1) and alpha.item() == pytest.approx(1.04875, abs=1e-9)
    error = (bwn(weight, alpha) - weight).square().sum().item()
    assert error == pytest.approx(9.245175, abs=1e-9)
    assert error == pytest.approx(26.8432 - 16 * 1.04875**2, abs=1e-9)  # |W|^2 - n alpha^2

    rows = bwn_scale(weight)
    assert rows.shape == (4, 1) and rows.flatten().tolist() == pytest.approx([1.16, 0.8475, 0.965, 1.2225], abs=1e-9)
    assert (bwn(weight, rows) - weight).square().sum().item() == pytest.approx(8.88485, abs=1e-9)


def test_bwn_is_the_least_squares_fit():
    weight = normal(3, 5, 2, 2)
    alpha, signs = bwn_scale(weight), sign(weight)
    least = (alpha * signs - weight).square().sum()
    for change in (1e-3, -1e-3):
        assert ((alpha + change) * signs - weight).square().sum() > least
    for index in range(signs.numel()):
        flipped = signs.clone()
        flipped.view(-1)[index] *= -1
        assert (alpha * flipped - weight).square().sum() > least


@pytest.mark.parametrize("per_channel, n", [(True, 18), (False, 72)])
def test_gradients_of_bwn(per_channel, n):
    weight, upstream = 1.2 * normal(4, 2, 3, 3), normal(4, 2, 3, 3, seed=1)
    weight[0, 0, 0, :2] = torch.tensor([1.0, -1.0])  # on the ends of the mask
    scale = bwn_scale(weight, per_channel)
    assert scale.shape == (4 if per_channel else 1, 1, 1, 1)
    assert torch.equal(gradient(lambda w: bwn(w, scale), weight, upstream), upstream)
    inside = (weight.abs() <= 1).double()
    expected = upstream * (1 / n + scale * inside)
    torch.testing.assert_close(gradient(lambda w: bwn(w, scale, "xnor"), weight, upstream), expected)
    assert inside[0, 0, 0, :2].tolist() == [1, 1] and 0 < inside.sum() < 72


def test_bwn_of_an_unknown_gradient():
    with pytest.raises(ValueError, match=r"gradient must be one of .*, got 'paper'"):
        bwn(torch.ones(2, 2), torch.ones(2, 1), "paper")


def test_bwn_module_of_an_unknown_gradient():
    with pytest.raises(ValueError, match=r"gradient must be one of .*, got 'paper'"):
        BWN(gradient="paper")


@pytest.mark.parametrize("channels", [None, 4])
@pytest.mark.parametrize("rule", ["ste", "xnor"])
def test_bwn_module_follows_the_weights_in_training_only(channels, rule):
    quantizer = BWN(channels=channels, gradient=rule)
    weight, upstream = normal(4, 3, 3, dtype=torch.float), normal(4, 3, 3, seed=1, dtype=torch.float)
    expected = bwn(weight, bwn_scale(weight, channels is not None), rule)
    torch.testing.assert_close(quantizer(weight), expected)
    grads = [
        gradient(function, weight, upstream)
        for function in (quantizer, lambda w: bwn(w, bwn_scale(w, channels is not None), rule))
    ]
    torch.testing.assert_close(*grads)
    frozen = quantizer.eval()(weight)
    assert torch.equal(quantizer(5 * weight), frozen)
    quantizer.calibrate(5 * weight)
    torch.testing.assert_close(quantizer(weight), 5 * frozen)


# -- XNOR-Net ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride, padding, dilation", [(1, 0, 1), (2, 1, 1), ((1, 2), (0, 3), (2, 1))])
def test_activation_scale_is_the_mean_magnitude_of_the_window(stride, padding, dilation):
    x = normal(2, 3, 7, 8)
    scale = activation_scale(x, (3, 2), stride, padding, dilation)
    columns = F.unfold(x.abs(), (3, 2), dilation, padding, stride)
    torch.testing.assert_close(scale.flatten(2), columns.mean(1, keepdim=True))


def test_activation_scale_has_its_own_gradient():
    assert torch.autograd.gradcheck(
        lambda x: activation_scale(x, (3, 3), 2, 1), normal(1, 2, 5, 5).requires_grad_(), eps=1e-7
    )


@pytest.mark.parametrize("box_scale", [True, False])
def test_xnor_convolution_by_the_book(box_scale):
    x, weight = normal(2, 4, 6, 6), normal(6, 2, 3, 3, seed=1)
    binary = bwn(weight, bwn_scale(weight))
    y = xnor_conv2d(x, binary, 2, 1, 1, 2, box_scale)
    signs, magnitude = F.pad(sign(x), (1, 1, 1, 1)), F.pad(x.abs(), (1, 1, 1, 1))
    for n, o, i, j in torch.cartesian_prod(*map(torch.arange, y.shape)).tolist():
        first = 2 * (o // 3)
        window = slice(2 * i, 2 * i + 3), slice(2 * j, 2 * j + 3)
        total = (signs[n, first : first + 2, *window] * sign(weight[o])).sum() * weight[o].abs().mean()
        expected = total * magnitude[n, :, *window].mean() if box_scale else total
        assert y[n, o, i, j].item() == pytest.approx(expected.item(), abs=1e-12)


@pytest.mark.parametrize("box_scale", [True, False])
def test_xnor_linear_is_the_convolution_of_one_pixel(box_scale):
    x, weight = normal(5, 7), normal(3, 7, seed=1)
    expected = xnor_conv2d(x[:, :, None, None], weight[:, :, None, None], box_scale=box_scale).flatten(1)
    torch.testing.assert_close(xnor_linear(x, weight, box_scale), expected)


def test_gradient_of_xnor_activations_stops_beyond_one():
    x = torch.tensor([[-1.01, -1.0, 0.5, 1.01]], dtype=torch.double)
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]], dtype=torch.double)
    assert gradient(lambda v: xnor_linear(v, weight, box_scale=False), x).tolist() == [[0, 2, 3, 0]]
    # d(d K)/dx = K dd/dx + d sign(x) / n, with d = -1 - 2 + 3 + 4 = 4 and K = 0.88
    expected = [[-1.0, 2 * 0.88 - 1, 3 * 0.88 + 1, 1.0]]
    torch.testing.assert_close(gradient(lambda v: xnor_linear(v, weight), x), torch.tensor(expected).double())


# -- modules -----------------------------------------------------------------------------------------------------------


def test_sign_quantizer_is_sign_ste():
    x = torch.tensor([-1.5, -1.0, -0.3, 0.0, 0.7, 1.0, 2.0])
    assert SignQuantizer()(x).tolist() == [-1, -1, -1, 1, 1, 1, 1]
    assert gradient(SignQuantizer(), x).tolist() == [0, 1, 1, 1, 1, 1, 0]
    assert gradient(SignQuantizer(bound=None), x).tolist() == [1] * 7


def test_calibration_leaves_given_magnitudes_alone():
    for quantizer, level in ((SignQuantizer(), 1.0), (BinaryConnect(magnitude=0.25), 0.25)):
        quantizer.calibrate(torch.linspace(-3, 3, 10), 3.0)
        assert quantizer(torch.tensor([5.0])).item() == level
        assert quantizer.encode(torch.tensor([5.0])).decode().item() == level


def test_magnitude_has_to_be_positive():
    with pytest.raises(ValueError, match="magnitude must be positive, got 0"):
        BinaryConnect(magnitude=0.0)
