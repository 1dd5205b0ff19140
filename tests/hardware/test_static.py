from collections import OrderedDict

import pytest
from torch import nn

from common.errors import UserError
from hardware import network
from hardware.network import describe
from hardware.static import (
    KB,
    KIB,
    MB,
    MIB,
    SizeConvention,
    activation_size,
    bitops,
    compression_rate,
    layer_outputs,
    mean_weight_bits,
    model_size,
    multi_bit_counts,
    relu_outputs,
)

# 8 x 8 images. Weights 108, 144, 10 * 4; biases 4, 0, 10; MACs 108 * 64, 144 * 64, 40; outputs 256, 256, 10
NET = describe(
    "net",
    nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(3, 4, 3, padding=1),
            bn=nn.BatchNorm2d(4),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(4, 4, 3, padding=1, bias=False),
            relu2=nn.ReLU6(),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
            fc=nn.Linear(4, 10),
        )
    ),
    (3, 8, 8),
)
K_MEANS = SizeConvention(first_layer_bits=32)  # HAQ, table 6
FIRST_LAST_8 = SizeConvention(first_layer_bits=8, last_layer_bits=8)  # AdaBits


def test_units():
    assert (KB, MB, KIB, MIB) == (1000, 1_000_000, 1024, 1_048_576)


@pytest.mark.parametrize(
    "convention, bits",
    [
        (SizeConvention(), 4 * 292 + 14 * 32 + 4 * 2 * 32),
        (SizeConvention(bias_bits=0, batch_norm_values=0), 4 * 292),
        (SizeConvention(batch_norm_values=4), 4 * 292 + 14 * 32 + 4 * 4 * 32),
        (SizeConvention(bias_bits=8), 4 * 292 + 14 * 8 + 4 * 2 * 32),
        (SizeConvention(first_layer_bits=32), 32 * 108 + 4 * 184 + 14 * 32 + 4 * 2 * 32),
        (SizeConvention(last_layer_bits=8), 4 * 252 + 8 * 40 + 14 * 32 + 4 * 2 * 32),
        (SizeConvention(codebooks=True), 4 * 292 + 14 * 32 + 4 * 2 * 32 + 3 * 16 * 32),
        (
            SizeConvention(first_layer_bits=8, codebooks=True),
            8 * 108 + 4 * 184 + 14 * 32 + 4 * 2 * 32 + (256 + 2 * 16) * 32,
        ),
        (  # a float layer has no codebook
            SizeConvention(first_layer_bits=32, codebooks=True),
            32 * 108 + 4 * 184 + 14 * 32 + 4 * 2 * 32 + 2 * 16 * 32,
        ),
    ],
)
def test_model_size_by_hand(convention, bits):
    assert model_size(NET, 4, convention) == bits / 8


# HAQ, table 6, as printed
@pytest.mark.parametrize(
    "model, bits, printed",
    [
        ("mobilenet_v1", 2, "1.09"),
        ("mobilenet_v1", 3, "1.60"),
        ("mobilenet_v1", 4, "2.10"),
        ("mobilenet_v1", 32, "16.14"),
        ("mobilenet_v2", 2, "0.96"),
        ("mobilenet_v2", 3, "1.38"),
        ("mobilenet_v2", 4, "1.79"),
        ("mobilenet_v2", 32, "13.37"),
        ("resnet50", 2, "6.32"),
        ("resnet50", 3, "9.36"),
        ("resnet50", 4, "12.40"),
        ("resnet50", 32, "97.49"),
    ],
)
def test_k_means_sizes_equal_the_printed_ones(model, bits, printed):
    assert f"{model_size(network(model), bits, K_MEANS) / MIB:.2f}" == printed


def test_codebooks_of_mobilenet_v1_at_4_bits_take_1728_bytes():
    codebooks = SizeConvention(first_layer_bits=32, codebooks=True)
    net = network("mobilenet_v1")
    assert model_size(net, 4, codebooks) - model_size(net, 4, K_MEANS) == 27 * 16 * 4


# AdaBits, tables of MobileNet: first and last layer at 8 bits; printed sizes in MB, BitOPs in billions
@pytest.mark.parametrize(
    "model, bits, printed_size, printed_bitops",
    [
        ("mobilenet_v1", 8, "4.10", "36.40"),
        ("mobilenet_v1", 6, "3.34", "20.81"),
        ("mobilenet_v1", 5, "2.96", "14.68"),
        ("mobilenet_v1", 4, "2.58", "9.67"),
        ("mobilenet_v2", 8, "3.44", "19.25"),
        ("mobilenet_v2", 6, "2.92", "11.17"),
        ("mobilenet_v2", 5, "2.66", "7.99"),
        ("mobilenet_v2", 4, "2.40", "5.39"),
    ],
)
def test_adabits_sizes_and_bitops_equal_the_printed_ones(model, bits, printed_size, printed_bitops):
    net = network(model)
    assert f"{model_size(net, bits, FIRST_LAST_8) / MIB:.2f}" == printed_size
    assert f"{bitops(net.layers, bits, bits) / 1e9:.2f}" == printed_bitops


@pytest.mark.parametrize(
    "model, bits, uniform, first_last_8",
    [
        ("mobilenet_v1", 4, 9_099_845_632, 9_669_222_400),
        ("mobilenet_v1", 5, 14_218_508_800, 14_681_127_424),
        ("mobilenet_v1", 6, 20_474_652_672, 20_806_789_120),
        ("mobilenet_v1", 8, 36_399_382_528, 36_399_382_528),
        ("mobilenet_v2", 4, 4_812_388_352, 5_394_053_120),
        ("mobilenet_v2", 5, 7_519_356_800, 7_991_959_424),
        ("mobilenet_v2", 6, 10_827_873_792, 11_167_178_240),
        ("mobilenet_v2", 8, 19_249_553_408, 19_249_553_408),
    ],
)
def test_bitops_are_exact(model, bits, uniform, first_last_8):
    layers = network(model).layers
    assert bitops(layers, bits, bits, first_last_bits=None) == uniform
    assert bitops(layers, bits, bits) == first_last_8


def test_bitops_by_hand():
    assert bitops(NET.layers, 2, 3, 8) == (108 * 64 + 40) * 64 + 144 * 64 * 6
    assert bitops(NET.layers, 2, 3, None) == (108 * 64 + 40 + 144 * 64) * 6
    assert bitops(NET.layers[:1], 2, 3, 8) == 108 * 64 * 64  # the first layer is the last one too


def test_compression_rate():
    assert compression_rate(4) == 8
    assert compression_rate(2.5) == 12.8


def test_mean_weight_bits():
    assert mean_weight_bits(NET.layers, {"conv1": 8, "conv2": 2, "fc": 4}) == (108 * 8 + 144 * 2 + 40 * 4) / 292
    with pytest.raises(KeyError, match="conv2"):
        mean_weight_bits(NET.layers, {"conv1": 8, "fc": 4})


@pytest.mark.parametrize(
    "model, total, largest", [("mobilenet_v1", 5_043_688, 802_816), ("mobilenet_v2", 6_679_112, 1_204_224)]
)
def test_layer_outputs(model, total, largest):
    elements = layer_outputs(network(model))
    assert (sum(elements.values()), max(elements.values())) == (total, largest)
    assert activation_size(elements, 8, "sum") == total
    assert activation_size(elements, 4, "max") == largest / 2


@pytest.mark.parametrize(
    "model, tensors, largest, total",
    [
        ("resnet20", 19, 16_384, 188_416),
        ("mobilenet_v2", 35, 1_204_224, 6_105_792),
        ("resnet18", 17, 802_816, 2_308_096),
    ],
)
def test_relu_outputs(model, tensors, largest, total):
    elements = relu_outputs(network(model))
    assert (len(elements), max(elements.values()), sum(elements.values())) == (tensors, largest, total)


def test_activation_size_by_hand():
    elements = relu_outputs(NET)
    assert elements == {"relu1.output": 256, "relu2.output": 256}
    assert activation_size(elements, {"relu1.output": 2, "relu2.output": 8}) == 256
    assert activation_size(elements, {"relu1.output": 2, "relu2.output": 8}, "sum") == 64 + 256
    with pytest.raises(UserError, match="taken over max or sum, not 'mean'"):
        activation_size(elements, 4, "mean")
    with pytest.raises(UserError, match="there is no activation"):
        activation_size(relu_outputs(network("efficientnet_b0")), 4)


# KCNN, tables 1 and 2: over A MACs, O outputs, N weights and K kernels of the convolutions
@pytest.mark.parametrize(
    "model, macs, outputs, weights, kernels, printed",
    [
        ("alexnet_single", 1_076_634_144, 650_080, 3_745_824, 1376, (1656, 828, 552, 414, 331)),
        ("resnet18", 1_813_561_344, 2_483_712, 11_166_912, 4800, (730, 365, 243, 182, 146)),
    ],
)
def test_multi_bit_counts(model, macs, outputs, weights, kernels, printed):
    layers = network(model).layers
    for planes, multiplications in enumerate(printed, start=1):
        counts = multi_bit_counts(layers, planes)
        assert int(counts.multiplications) == multiplications
        assert counts.multiplications == pytest.approx(macs / (planes * outputs), rel=1e-12)
        assert counts.additions == pytest.approx(macs / (planes * macs + (planes - 1) * outputs), rel=1e-12)
        assert counts.weights == pytest.approx(32 * weights / (planes * (weights + 32 * kernels)), rel=1e-12)


@pytest.mark.parametrize(
    "model, planes, additions, weights",
    [
        ("alexnet_single", 1, "1.0000", "31.628"),
        ("alexnet_single", 3, "0.3332", "10.543"),
        ("alexnet_single", 5, "0.1999", "6.326"),
        ("resnet18", 1, "1.0000", "31.566"),
        ("resnet18", 3, "0.3330", "10.522"),
        ("resnet18", 5, "0.1998", "6.313"),
    ],
)
def test_multi_bit_ratios(model, planes, additions, weights):
    counts = multi_bit_counts(network(model).layers, planes)
    assert (f"{counts.additions:.4f}", f"{counts.weights:.3f}") == (additions, weights)


def test_multi_bit_counts_of_nothing_are_refused():
    with pytest.raises(UserError, match="need a convolution and at least one plane"):
        multi_bit_counts(NET.layers[2:], 2)
    with pytest.raises(UserError, match="need a convolution and at least one plane"):
        multi_bit_counts(NET.layers, 0)
