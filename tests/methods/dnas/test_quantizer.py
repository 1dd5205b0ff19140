"""DNAS's mixed weight by the book, its gradients, codes and skips; the Gumbel-softmax; blocks."""

import math

import pytest
import torch
from torch import nn

from common.graph import trace
from common.models import build_model
from common.search.gumbel import exponential_temperature, gumbel_softmax
from methods.dnas.blocks import block_of, can_be_skipped
from methods.dnas.quantizer import MixedWeight

CANDIDATES = (0, 1, 2, 3, 32)


def mixed(candidates=CANDIDATES, seed=1):
    generator = torch.Generator().manual_seed(seed)
    module = MixedWeight(candidates, nn.Parameter(torch.randn(len(candidates), generator=generator)))
    w = 0.3 * torch.randn(6, 4, 3, 3, generator=generator)
    module.calibrate(w)
    module.noise.copy_(torch.randn(len(candidates), generator=generator))
    module.temperature.fill_(0.7)
    return module, w


def by_the_book(w, width, reach):
    if width == 0:
        return torch.zeros_like(w)
    if width == 1:
        return w.abs().mean() * torch.where(w >= 0, 1.0, -1.0)
    if width == 32:
        return w
    unit = torch.tanh(w) / torch.tanh(w).abs().max()
    steps = 2**width - 1
    return reach * (2 * torch.round((unit / 2 + 0.5) * steps) / steps - 1)


def test_the_mixture_is_the_weighted_sum_of_its_candidates():
    module, w = mixed()
    reach = torch.tanh(w).abs().max()
    noisy = [(t + g) / 0.7 for t, g in zip(module.theta.tolist(), module.noise.tolist(), strict=True)]
    parts = [math.exp(value) for value in noisy]
    expected = sum(p / sum(parts) * by_the_book(w, width, reach) for p, width in zip(parts, CANDIDATES, strict=True))
    torch.testing.assert_close(module(w), expected)


def test_a_mixed_convolution_is_the_mixture_of_convolutions():
    module, w = mixed()
    x = torch.randn(2, 4, 8, 8)
    outputs = [torch.conv2d(x, module.quantized(w, width)) for width in CANDIDATES]
    expected = sum(m * y for m, y in zip(module.mask(), outputs, strict=True))
    torch.testing.assert_close(torch.conv2d(x, module(w)), expected)


def test_the_gradient_of_the_logits_is_that_of_the_softmax():
    module, w = mixed()
    upstream = torch.randn(w.shape, generator=torch.Generator().manual_seed(5))
    (module(w) * upstream).sum().backward()
    mask = module.mask().detach()
    values = torch.stack([(module.quantized(w, width) * upstream).sum() for width in CANDIDATES])
    torch.testing.assert_close(module.theta.grad, mask * (values - (mask * values).sum()) / 0.7, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("index", range(len(CANDIDATES)))
def test_eval_mode_has_the_most_probable_width_alone(index):
    module, w = mixed()
    with torch.no_grad():
        module.theta[index] = 9.0
    width = CANDIDATES[index]
    assert int(module.bit_width) == width
    expected = module.quantized(w, width)
    assert torch.equal(module.eval()(w), expected)
    module.train().fix(width)
    assert torch.equal(module(w), expected) and int(module.bit_width) == width
    if width == 32:
        with pytest.raises(ValueError, match="float weights have no codes"):
            module.encode(w)
    else:
        encoding = module.encode(w)
        assert torch.equal(encoding.decode() + 0.0, expected + 0.0)
        assert encoding.code_bytes == -(-w.numel() * width // 8) == encoding.pack().numel()


def test_candidates_have_the_scale_of_the_weights():
    module, w = mixed((2, 3, 8, 32))
    for width in (2, 3, 8):
        y = module.quantized(w, width)
        assert y.abs().max().item() == pytest.approx(torch.tanh(w).abs().max().item())
    assert (module.quantized(w, 8) - torch.tanh(w)).abs().max() < module.reach / 255 * 1.001
    zeros = torch.zeros(2, 2)
    module.calibrate(zeros)
    assert module(zeros).isfinite().all()


@pytest.mark.parametrize("candidates", [(), (2, 2), (9,), (-1, 2)])
def test_candidates_that_do_not_exist(candidates):
    with pytest.raises(ValueError, match="weight_bit_widths must be different ones of 0"):
        MixedWeight(candidates, nn.Parameter(torch.zeros(len(candidates))))


def test_only_a_candidate_can_be_fixed():
    with pytest.raises(ValueError, match=r"bit_width must be one of \(0, 1, 2, 3, 32\), got 4"):
        mixed()[0].fix(4)


def test_gumbel_softmax_and_its_temperature():
    logits, noise = torch.tensor([1.0, 0.0]), torch.tensor([0.5, 0.0])
    assert gumbel_softmax(logits, noise, 0.5).tolist() == pytest.approx([0.9525741, 0.0474259])  # 1 / (1 + e^-3)
    assert gumbel_softmax(logits, noise, 0.01).tolist() == pytest.approx([1.0, 0.0])
    assert exponential_temperature(5.0, 0.045, 0) == 5.0
    assert exponential_temperature(5.0, 0.045, 90) == pytest.approx(0.0871119)


def test_blocks_of_networks():
    layers = ["conv1", "layer1.0.conv1", "layer1.0.conv2", "layer2.0.conv1", "layer2.0.shortcut.0", "features.1.0"]
    found = [block_of(name, layers) for name in layers]
    assert found == ["conv1", "layer1.0", "layer1.0", "layer2.0", "layer2.0", "features.1.0"]


def test_what_has_a_shortcut_can_be_skipped():
    graph = trace(build_model("digits_net"), torch.zeros(2, 1, 8, 8)).graph
    assert can_be_skipped(graph, ["block.conv1", "block.conv2"]) and can_be_skipped(graph, ["block.conv1"])
    assert not can_be_skipped(graph, ["conv2"]) and not can_be_skipped(graph, ["block.conv1", "conv3"])
    graph = trace(build_model("resnet18_cifar"), torch.zeros(2, 3, 32, 32)).graph
    assert can_be_skipped(graph, ["layer1.0.conv1", "layer1.0.conv2"])
    assert not can_be_skipped(graph, ["layer2.0.conv1", "layer2.0.conv2", "layer2.0.shortcut.0"])
