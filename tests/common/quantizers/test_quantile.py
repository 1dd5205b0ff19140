"""UNIQ: the golden quantiles, the noise in training, frozen statistics in eval mode."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter

from common.quantizers.quantile import UNIQ, normal_quantiles, truncated_normal
from common.random import stream_key

W = [[2.09, -0.98, 1.48, 0.09], [0.05, -0.14, -1.08, 2.12], [-0.91, 1.92, 0.0, -1.03], [1.87, 0.0, 1.53, 1.49]]
POSITIVE_THRESHOLDS = {4: [0.6744897501960817], 8: [0.31863936396437514, 0.6744897501960817, 1.1503493803760079]}
POSITIVE_LEVELS = {
    4: [0.31863936396437514, 1.1503493803760079],
    8: [0.15731068461017067, 0.4887764111146694, 0.8871465590188758, 1.5341205443525459],
}


def weights(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(9)) * 0.2 + 0.05


@pytest.mark.parametrize("k", [4, 8])
def test_golden_uniq_normal(k):
    levels, thresholds = normal_quantiles(k)
    upper = POSITIVE_LEVELS[k]
    assert levels.tolist() == pytest.approx([*(-x for x in upper[::-1]), *upper], abs=1e-9)
    upper = POSITIVE_THRESHOLDS[k]
    assert thresholds.tolist() == pytest.approx([*(-x for x in upper[::-1]), 0.0, *upper], abs=1e-9)


def test_golden_idempotence_on_W():
    w = torch.tensor(W)
    quantizer = UNIQ(3)
    quantizer.calibrate(w)
    once = quantizer(w)
    assert torch.equal(quantizer(once), once)  # frozen statistics
    quantizer.calibrate(once)
    assert not torch.allclose(quantizer(once), once, atol=1e-3)  # recomputed ones


@pytest.mark.parametrize("bit_width", range(1, 9))
def test_weights_by_the_book(bit_width):
    w, k = weights(2000), 2**bit_width
    quantizer = UNIQ(bit_width)
    quantizer.calibrate(w)
    mean, std = w.double().mean(), w.double().std()
    u = torch.special.ndtr((w.double() - mean) / std)
    expected = mean + std * torch.special.ndtri(((k * u).floor() + 0.5) / k)
    cell = k * u - (k * u).floor()
    clear = (cell > 1e-3) & (cell < 1 - 1e-3)  # float32 decides the others
    torch.testing.assert_close(quantizer(w)[clear].double(), expected[clear], atol=1e-5, rtol=0)
    assert torch.equal(quantizer.encode(w).decode(), quantizer(w))


def test_cells_are_equally_likely():
    quantizer = UNIQ(3)
    x = torch.randn(80_000, generator=torch.Generator().manual_seed(0))
    quantizer.calibrate(x)
    counts = torch.bincount(quantizer.encode(x).codes, minlength=8)
    assert counts.min() > 9600 and counts.max() < 10_400


def test_activations_have_a_zero_and_equal_cells_above_it():
    x = torch.randn(70_000, generator=torch.Generator().manual_seed(0)) + 0.7
    quantizer = UNIQ(3, signed=False)
    quantizer.calibrate(x)
    y = quantizer(x)
    assert (y[x <= 0] == 0).all() and (y[x > 0] > 0).all()
    counts = torch.bincount(quantizer.encode(x[x > 0]).codes, minlength=8)
    assert counts[0] == 0 and counts[1:].max() / counts[1:].min() < 1.1
    assert torch.equal(quantizer(y), y) and quantizer(torch.zeros(3)).tolist() == [0, 0, 0]


def test_gradients():
    w = torch.tensor([-9.0, 0.1, 9.0], requires_grad=True)
    UNIQ(3)(w).sum().backward()
    assert w.grad.tolist() == [1, 1, 1]
    x = torch.tensor([-9.0, 0.1, 9.0], requires_grad=True)
    UNIQ(3, signed=False)(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 0]


# -- noise -----------------------------------------------------------------------------------------------------------


def test_training_adds_uniform_noise_to_the_uniformized_weights():
    w = weights(40, 50).requires_grad_()
    quantizer = UNIQ(2, shape=(40, 50))
    quantizer.calibrate(w.detach())
    quantizer.draw(stream_key(0, 0, "conv1.weight"), 3)
    y = quantizer(w)
    std, mean = torch.std_mean(w.detach())
    shift = torch.special.ndtr((y.detach() - mean) / std) - torch.special.ndtr((w.detach() - mean) / std)
    edge = (y.detach() - mean).abs() / std > 4.2  # clamped at 1e-5
    assert (shift[~edge].abs() < 1 / 8 + 1e-4).all() and shift.abs().max() > 0.12
    middle = torch.special.ndtr((w.detach() - mean) / std) - 0.5
    uniform = shift[middle.abs() < 0.37]
    assert uniform.mean().abs() < 0.01 and uniform.std() == pytest.approx(0.25 / 12**0.5, rel=0.05)
    y.backward(torch.full((40, 50), 3.0))
    assert (w.grad == 3).all()


def test_noise_follows_key_and_step():
    w, quantizer = weights(30), UNIQ(3, shape=(30,))
    results = []
    for key, step in [(1, 0), (1, 1), (2, 0), (1, 0)]:
        quantizer.draw(key, step)
        results.append(quantizer(w))
    assert torch.equal(results[0], results[3])
    assert not torch.equal(results[0], results[1]) and not torch.equal(results[0], results[2])


def test_extreme_weights_stay_finite():
    w = torch.cat([torch.zeros(10_000), torch.tensor([1e6, -1e6])]).requires_grad_()
    quantizer = UNIQ(4, shape=(10_002,))
    quantizer.draw(5, 0)
    assert quantizer(w).isfinite().all() and UNIQ(4, shape=(3,))(torch.zeros(3)).isfinite().all()


def test_stages():
    w, quantizer = weights(30), UNIQ(3, shape=(30,))
    assert quantizer.stage == "noise"
    quantizer.calibrate(w)
    quantizer.draw(1, 0)
    noisy = quantizer(w)
    quantizer.eval()
    quantized = quantizer(w)
    assert quantized.unique().numel() <= 8 and noisy.unique().numel() == 30
    reference = UNIQ(3)
    reference.calibrate(w)
    assert torch.equal(quantized, reference(w))
    quantizer.train()
    quantizer.stage = "quantized"
    assert torch.equal(quantizer(w), quantized)
    assert torch.equal(quantizer(w + 1), quantizer.eval()(w + 1))  # with the statistics of `calibrate`
    quantizer.train().stage = "float"
    assert torch.equal(quantizer(w), w)
    assert torch.equal(quantizer.eval()(w), quantized)


def test_stages_of_activations():
    x, quantizer = torch.randn(50, requires_grad=True), UNIQ(3, signed=False)
    assert torch.equal(quantizer(x), quantizer.eval()(x))
    quantizer.train().stage = "float"
    assert torch.equal(quantizer(x), x)
    quantizer(x).sum().backward()
    assert (x.grad == 1).all()


def test_noise_does_not_change_the_grid():
    w, quantizer = weights(30), UNIQ(3, shape=(30,))
    quantizer.calibrate(w)
    before = quantizer.levels.clone()
    quantizer(5 * w + 1)
    assert torch.equal(quantizer.levels, before)


def test_only_noise_draws_numbers():
    quantizer = UNIQ(3, shape=(30,))
    quantizer.stage = "quantized"
    quantizer.draw(1, 0)
    assert (quantizer.uniform == 0.5).all()


def test_a_stage_is_saved():
    source, target = UNIQ(3, shape=(30,)), UNIQ(3, shape=(30,))
    source.stage = "float"
    target.load_state_dict(source.state_dict())
    assert target.stage == "float"


def test_changes_of_stage_are_no_recompilation():
    torch._dynamo.reset()
    counter = CompileCounter()
    quantizer, w = UNIQ(3, shape=(30,)), weights(30)
    quantizer.calibrate(w)
    compiled = torch.compile(quantizer, backend=counter, fullgraph=True)
    results = []
    for stage in ("float", "noise", "quantized", "noise"):
        quantizer.stage = stage
        quantizer.draw(1, len(results))
        results.append(compiled(w))
        assert torch.equal(results[-1], quantizer(w))
    assert counter.frame_count == 1
    assert len({tuple(y.tolist()) for y in results}) == 4


@pytest.mark.parametrize("mean, std", [(0.7, 1.0), (-0.3, 0.5), (3.0, 1.0), (0.0, 2.0)])
@pytest.mark.parametrize("behind_relu", [True, False])
def test_normal_distribution_behind_a_relu(mean, std, behind_relu):
    x = torch.randn(400_000, generator=torch.Generator().manual_seed(0)) * std + mean
    found = truncated_normal(x.clamp(min=0) if behind_relu else x)
    assert found == pytest.approx((mean, std), abs=0.04 * std)


def test_activations_that_are_not_normal_give_a_grid():
    for x in (torch.zeros(10), torch.tensor([0.0, 2.0, 2.0]), torch.tensor([1e-3] * 500 + [100.0]), -torch.ones(3)):
        quantizer = UNIQ(2, signed=False).eval()
        quantizer.calibrate(x)
        y = quantizer(torch.linspace(-1, 200, 1000))
        assert y.isfinite().all() and (y.diff() >= 0).all() and y[0] == 0


def test_the_random_numbers_are_not_saved():
    assert set(UNIQ(3, shape=(5,)).state_dict()) == set(UNIQ(3).state_dict())


@pytest.mark.parametrize("stage", ["noise", "quantized", "float"])
def test_compiled_is_eager(stage):
    torch._dynamo.reset()
    quantizer = UNIQ(3, shape=(200,))
    quantizer.draw(1, 0)
    quantizer.stage = stage
    quantizer.calibrate(weights(200))
    results = []
    for function in (quantizer, torch.compile(quantizer, backend="aot_eager", fullgraph=True)):
        w = weights(200).requires_grad_()
        y = function(w)
        y.square().sum().backward()
        results.append((y.detach(), w.grad))
    assert torch.equal(results[0][0], results[1][0]) and torch.equal(results[0][1], results[1][1])


def test_autocast_leaves_float32_weights_alone():
    quantizer, w = UNIQ(3, shape=(30,)), weights(30)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert quantizer(w).dtype == torch.float32


def test_unknown_stage():
    with pytest.raises(ValueError, match="stage must be one of float, noise, quantized, got 'frozen'"):
        UNIQ(3).stage = "frozen"


def test_noise_without_a_shape():
    with pytest.raises(ValueError, match="noise is for weights, whose shape is given"):
        UNIQ(3).stage = "noise"


def test_noise_of_activations():
    with pytest.raises(ValueError, match="shape is that of a weight"):
        UNIQ(3, signed=False, shape=(4,))
