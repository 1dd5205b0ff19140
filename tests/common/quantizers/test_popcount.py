"""Packed signs: the dot product of the lecture, tails of words, borders of convolutions, operation counts."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from common.graph import layer_table, trace
from common.quantizers.binary import activation_scale, bwn, bwn_scale, sign, xnor_conv2d
from common.quantizers.popcount import (
    ideal_speedup,
    operation_counts,
    pack_signs,
    popcount,
    sign_conv2d,
    sign_dot,
    sign_linear,
    unpack_signs,
    xnor_popcount,
)


def normal(*shape, seed=0):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    x.view(-1)[:: max(1, x.numel() // 7)] = 0  # zeros count as +1
    return x


def test_golden_dot_products():
    w, x = torch.tensor([8, -3, 5, -1]), torch.tensor([5, 2, 0, 1])
    assert int(w @ x) == 33
    assert int(sign(w.float()) @ x.float()) == 2
    assert bwn_scale(w.float()[None]).item() == 4.25
    assert float(bwn(w.float()[None], torch.tensor([[4.25]])) @ x.float()) == 8.5
    # The lecture's bits of x are 1101, though its own rule has sign(0) = +1. Its bit strings begin with value 0.
    bits_w, bits_x = torch.tensor([1.0, -1.0, 1.0, -1.0]), torch.tensor([1.0, 1.0, -1.0, 1.0])
    words = pack_signs(bits_w), pack_signs(bits_x)
    assert [f"{int(word):04b}"[::-1] for word in words] == ["1010", "1101"]
    assert f"{~int(words[0] ^ words[1]) & 0b1111:04b}"[::-1] == "1000"
    assert int(xnor_popcount(*words, 4)) == 1
    assert int(sign_dot(*words, 4)) == -2  # -4 + (1 << 1); without brackets C would shift -3 to -6
    assert int(sign_dot(words[0], pack_signs(x.float()), 4)) == 0  # with sign(0) = +1


def test_population_counts_of_all_kinds_of_words():
    words = [0, 1, -1, 2**63 - 1, -(2**63), 0x5555555555555555, 0x0F0F0F0F, -2, 0x8000000000000001 - 2**64]
    assert popcount(torch.tensor(words)).tolist() == [(w % 2**64).bit_count() for w in words]
    random = torch.randint(-(2**63), 2**63 - 1, (10_000,), generator=torch.Generator().manual_seed(0))
    assert popcount(random).tolist() == [(w % 2**64).bit_count() for w in random.tolist()]


@pytest.mark.parametrize("n", range(1, 131))
def test_dot_products_are_exact_for_every_tail_of_a_word(n):
    a, b = normal(3, n), normal(3, n, seed=1)
    words = pack_signs(a)
    assert words.shape == (3, -(-n // 64)) and words.dtype == torch.int64
    assert torch.equal(unpack_signs(words, n), sign(a))
    assert torch.equal(sign_dot(words, pack_signs(b), n).float(), (sign(a) * sign(b)).sum(1))
    assert torch.equal(sign_linear(a, b).float(), sign(a) @ sign(b).T)


def test_bit_of_a_value():
    x = -torch.ones(70)
    x[[0, 63, 65]] = 1.0
    assert pack_signs(x).tolist() == [1 - 2**63, 2]


def test_linear_layers_of_any_rank():
    x, weight = normal(2, 3, 100), normal(5, 100, seed=1)
    assert torch.equal(sign_linear(x, weight).float(), F.linear(sign(x), sign(weight)))


@pytest.mark.parametrize("value", [-1, 0, 1])
@pytest.mark.parametrize(
    "channels, out, kernel, stride, padding, dilation, groups",
    [
        (3, 4, (3, 3), 1, 1, 1, 1),
        (64, 2, (3, 3), 1, 1, 1, 1),
        (65, 2, (1, 1), 2, 0, 1, 1),
        (130, 3, (3, 2), (2, 1), (2, 1), (1, 2), 1),
        (6, 9, (5, 3), (1, 3), (4, 2), (2, 1), 3),
        (8, 8, (3, 3), 2, 1, 1, 8),
    ],
)
def test_convolutions_are_exact(channels, out, kernel, stride, padding, dilation, groups, value):
    x, weight = normal(2, channels, 9, 8), normal(out, channels // groups, *kernel, seed=1)
    ph, pw = (padding, padding) if isinstance(padding, int) else padding
    padded = F.pad(sign(x), (pw, pw, ph, ph), value=float(value))
    expected = F.conv2d(padded, sign(weight), None, stride, 0, dilation, groups)
    y = sign_conv2d(x, weight, stride, padding, dilation, groups, value)
    assert y.dtype == torch.int64 and torch.equal(y.float(), expected)


def test_packed_xnor_net_layer_is_the_float_one():
    x, weight = normal(2, 70, 6, 6), normal(5, 70, 3, 3, seed=1)
    alpha = bwn_scale(weight)
    packed = sign_conv2d(x, weight, 2, 1) * alpha.flatten()[:, None, None] * activation_scale(x, (3, 3), 2, 1)
    torch.testing.assert_close(packed, xnor_conv2d(x, bwn(weight, alpha), 2, 1))


def test_unknown_padding_value():
    with pytest.raises(ValueError, match=r"padding_value must be one of \(-1, 0, 1\), got 2"):
        sign_conv2d(torch.ones(1, 1, 3, 3), torch.ones(1, 1, 3, 3), padding=1, padding_value=2)


def layers():
    network = nn.Sequential(
        nn.Conv2d(3, 70, 3, padding=1), nn.Conv2d(70, 140, 3, 2, 1, groups=2), nn.Flatten(), nn.Linear(140 * 16, 10)
    )
    return layer_table(trace(network, torch.zeros(2, 3, 8, 8)), torch.zeros(2, 3, 8, 8))


def test_operation_counts_by_hand():
    first, second, last = (operation_counts(layer) for layer in layers())
    # 64 positions x 70 outputs x 27 MACs; a word for the 3 channels at each of 9 kernel positions.
    assert (first.macs, first.words, first.multiplications) == (120_960, 9 * 4480, 2 * 4480)
    assert first.scale_macs == 192 + 9 * 64
    # 16 positions x 140 outputs x 9 x 35 channels, which take a word.
    assert (second.macs, second.words, second.multiplications) == (705_600, 9 * 2240, 2 * 2240)
    assert second.scale_macs == 70 * 64 + 9 * 16
    assert second.speedup == pytest.approx(705_600 / (20_160 + 4_480 + 4_624))
    assert (last.macs, last.words, last.multiplications, last.scale_macs) == (22_400, 350, 20, 2240)


def test_operation_counts_without_box_filter_and_with_short_words():
    counts = operation_counts(layers()[1], box_scale=False, word_bits=32)
    assert (counts.words, counts.multiplications, counts.scale_macs) == (2 * 9 * 2240, 2240, 0)


def test_ideal_speedup_is_what_the_counts_approach():
    assert ideal_speedup(256, 9) == pytest.approx(62.27, abs=0.005)  # the paper's 62.27
    assert ideal_speedup(256, 9, word_bits=32) == pytest.approx(31.56, abs=0.005)
    network = nn.Sequential(nn.Conv2d(256, 256, 3, padding=1))
    (layer,) = layer_table(trace(network, torch.zeros(1, 256, 14, 14)), torch.zeros(1, 256, 14, 14))
    assert operation_counts(layer, box_scale=False).speedup == pytest.approx(ideal_speedup(256, 9))
