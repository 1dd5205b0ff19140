from collections import OrderedDict

import pytest
from torch import nn

from common.bit_policy import BitPolicy, GroupBits, LayerBits
from common.errors import UserError
from hardware import CostModel, cost_model, uniform_widths
from hardware.network import describe

# 12 x 12 images; weights 216, 72, 512, 5760
NET = describe(
    "net",
    nn.Sequential(
        OrderedDict(
            first=nn.Conv2d(3, 8, 3, padding=1),
            relu1=nn.ReLU(),
            dw=nn.Conv2d(8, 8, 3, padding=1, groups=8),
            relu2=nn.ReLU(),
            pw=nn.Conv2d(8, 64, 1, bias=False),
            relu3=nn.ReLU(),
            pool=nn.AvgPool2d(4),
            flatten=nn.Flatten(),
            last=nn.Linear(576, 10),
        )
    ),
    (3, 12, 12),
)
FIRST, DEPTHWISE, POINTWISE, LAST = NET.layers
COMPLETE = {
    "first.weight": 8,
    "dw.weight": 3,
    "pw.weight": 4,
    "last.weight": 8,
    "relu1.output": 5,
    "relu2.output": 6,
    "relu3.output": 7,
}
KERNEL_WISE = ("bismo-edge", "bismo-cloud", "bismo-edge-fast", "bismo-cloud-fast", "size", "bitops")
NOT_KERNEL_WISE = ("bitfusion", "bitfusion-search", "bitfusion-energy")


def policy(**changes) -> BitPolicy:
    """COMPLETE with changes, as in dw_weight=4; None leaves a site out."""
    named = {name.replace("_", "."): bits for name, bits in changes.items()}
    sites = {name: bits for name, bits in (COMPLETE | named).items() if bits is not None}
    return BitPolicy("net", (3, 12, 12), sites)


def test_bitops_by_hand():
    # positions 144; the image has 8 bits, average pooling keeps the 7 bits of what it reads
    macs = (216 * 144, 72 * 144, 512 * 144, 5760)
    cost = cost_model("bitops").policy_cost(NET.layers, policy())
    assert cost.names == ("first", "dw", "pw", "last")
    assert cost.costs == (macs[0] * 8 * 8, macs[1] * 3 * 5, macs[2] * 4 * 6, macs[3] * 8 * 7)
    assert cost.total == sum(cost.costs)
    assert cost.counted == (True, True, True, True)
    assert cost.unit == ""


def test_size_by_hand():
    cost = cost_model("size").policy_cost(NET.layers, policy())
    assert cost.costs == (216, 27, 256, 5760)
    assert cost.unit == "B"
    # 72 weights of 1 bit are 9 bytes; of 3 bits in one of 8 channels: 9 * (7 + 3) bits are 11.25, so 12 bytes
    assert cost_model("size").layer_cost(DEPTHWISE, GroupBits("out", (7, 1), (1, 3)), 8) == 12


def test_first_and_last_layer_cost_nothing_where_they_are_not_counted():
    for name in ("bismo-edge", "bismo-cloud", "bismo-edge-fast", "bismo-cloud-fast"):
        model = cost_model(name)
        cost = model.policy_cost(NET.layers, policy())
        assert cost.counted == (False, True, True, False)
        assert cost.costs[0] == cost.costs[3] == 0
        assert cost.total == cost.costs[1] + cost.costs[2] > 0
        # they may have any width there, float too
        assert model.policy_cost(NET.layers, policy(first_weight=None, last_weight=32, relu3_output=None)) == cost
        assert model.layer_cost(FIRST, 8, 8) > 0  # asked for by itself, a layer has a cost
    for name in ("bitfusion", "bitfusion-search", "bitfusion-energy", "size", "bitops"):
        assert all(cost > 0 for cost in cost_model(name).policy_cost(NET.layers, policy()).costs)


@pytest.mark.parametrize(
    "target, changes, message",
    [
        (
            "bismo-edge",
            {"dw_weight": None},
            "layer 'dw' has weights at 32 bits (float: the policy does not name 'dw.weight'); bismo-edge takes 1 to 8",
        ),
        (
            "bitfusion",
            {"relu3_output": None},
            "layer 'last' reads 32 bits (float: the policy names neither 'last.input' nor all of its sources "
            "(relu3.output)); bitfusion takes 1 to 8",
        ),
        ("bitfusion", {"dw_weight": 9}, "layer 'dw' has weights at 9 bits; bitfusion takes 1 to 8"),
        ("bitfusion-energy", {"dw_weight": 0}, "layer 'dw' has weights at 0 bits; bitfusion-energy takes 1 to 8"),
        ("bismo-cloud", {"relu1_output": 16}, "layer 'dw' reads 16 bits; bismo-cloud takes 1 to 8"),
        ("bismo-cloud", {"relu1_output": 0}, "layer 'dw' reads 0 bits; bismo-cloud takes 1 to 8"),
        ("size", {"dw_weight": 0}, "layer 'dw' has weights at 0 bits; size takes 1 to 32"),
    ],
)
def test_widths_that_a_model_does_not_take_are_refused_by_name(target, changes, message):
    with pytest.raises(UserError) as error:
        cost_model(target).policy_cost(NET.layers, policy(**changes))
    assert str(error.value) == message


def test_float_layers_have_a_size_and_bitops():
    bare = BitPolicy("net", (3, 12, 12), {})
    assert cost_model("size").policy_cost(NET.layers, bare).total == 4 * (216 + 72 + 512 + 5760)
    assert cost_model("bitops").policy_cost(NET.layers, bare).costs[2] == 512 * 144 * 32 * 32


@pytest.mark.parametrize("target", [*KERNEL_WISE, *NOT_KERNEL_WISE])
@pytest.mark.parametrize("layer", NET.layers, ids=lambda layer: layer.kind)
def test_groups_of_one_width_cost_what_the_width_does(target, layer):
    model = cost_model(target)
    uniform = model.layer_cost(layer, 5, 6)
    outputs = layer.out_channels
    assert model.layer_cost(layer, GroupBits("out", (1, outputs - 1), (5, 5)), 6) == uniform
    assert model.layer_cost(layer, GroupBits("in", (layer.in_channels // layer.groups,), (5,)), 6) == uniform
    assert model.layer_cost(layer, 5, GroupBits("out", (3, 3), (2, 6))) == uniform  # inputs run at the widest
    if model.kernel_wise:
        assert model.function(layer, (5,) * outputs, 6) == uniform


@pytest.mark.parametrize("target", KERNEL_WISE)
def test_kernel_wise_cost_lies_between_those_of_the_narrowest_and_the_widest(target):
    model = cost_model(target)
    for layer in NET.layers:
        groups = GroupBits("out", (layer.out_channels // 2, layer.out_channels - layer.out_channels // 2), (2, 8))
        low, mixed, high = (model.layer_cost(layer, bits, 4) for bits in (2, groups, 8))
        assert low <= mixed <= high
    # half of the 64 channels at 2 bits, half at 8
    low, mixed, high = (model.layer_cost(POINTWISE, bits, 4) for bits in (2, GroupBits("out", (32, 32), (2, 8)), 8))
    assert mixed == (low + high) / 2 if target in ("size", "bitops") else low < mixed < high


def test_kernel_wise_column_groups_by_hand():
    # 8 inputs are one word of 32 bits: a row takes a cycle; 144 positions are 18 row tiles of 8; a = 1
    # 8 column groups, 4 of them at 2 bits and 4 at 8: compute 18 * 40 cycles; activations 144; weights 32 * 2 + 32 * 8
    fast = cost_model("bismo-edge-fast").layer_cost(POINTWISE, GroupBits("out", (32, 32), (2, 8)), 1)
    assert fast == pytest.approx(18 * 40 / 200e3)


def test_pruned_channels_drop_out():
    model = cost_model("bismo-edge")
    half = describe("half", nn.Sequential(nn.Conv2d(8, 32, 1)), (8, 12, 12)).layers[0]
    assert model.layer_cost(POINTWISE, GroupBits("out", (32, 32), (4, 0)), 4) == model.layer_cost(half, 4, 4)
    assert cost_model("size").layer_cost(POINTWISE, GroupBits("out", (32, 32), (4, 0)), 4) == 8 * 32 * 4 / 8


@pytest.mark.parametrize(
    "target, groups, message",
    [
        *(
            (
                name,
                GroupBits("out", (32, 32), (2, 8)),
                f"layer 'pw': {name} has no model of weights whose width varies along their output channels",
            )
            for name in NOT_KERNEL_WISE
        ),
        (
            "bismo-edge",
            GroupBits("in", (4, 4), (2, 8)),
            "layer 'pw': bismo-edge has no model of weights whose width varies along their input channels",
        ),
        (
            "bismo-edge",
            GroupBits("out", (32, 16), (2, 8)),
            "layer 'pw': the policy groups 48 output channels of its weights; they have 64",
        ),
        (
            "size",
            GroupBits("out", (63,), (4,)),
            "layer 'pw': the policy groups 63 output channels of its weights; they have 64",
        ),
        (
            "bitops",
            GroupBits("in", (64,), (4,)),
            "layer 'pw': the policy groups 64 input channels of its weights; they have 8",
        ),
        ("bismo-edge", GroupBits("out", (32, 32), (2, 9)), "layer 'pw': weights at 9 bits; bismo-edge takes 1 to 8"),
        ("bismo-edge", GroupBits("out", (64,), (9,)), "layer 'pw' has weights at 9 bits; bismo-edge takes 1 to 8"),
    ],
)
def test_groups_that_a_model_does_not_take_are_refused_by_name(target, groups, message):
    with pytest.raises(UserError) as error:
        cost_model(target).policy_cost(NET.layers, policy(pw_weight=groups))
    assert str(error.value) == message


def test_uniform_widths():
    assert uniform_widths(NET.layers, 4, 5) == [LayerBits(4, 5)] * 4
    assert uniform_widths(NET.layers, 4, 5, 8) == [LayerBits(8, 8), LayerBits(4, 5), LayerBits(4, 5), LayerBits(8, 8)]
    assert uniform_widths(NET.layers[:1], 4, 5, 8) == [LayerBits(8, 8)]


def test_a_cost_model_is_a_function():
    model = CostModel(
        "mine", "latency", "us", "one microsecond per input bit", lambda layer, w, a: layer.in_channels * a
    )
    cost = model.network_cost(NET.layers, uniform_widths(NET.layers, 4, 2))
    assert cost.costs == (6, 16, 16, 1152)
    assert cost.unit == "us"


def test_one_width_per_layer():
    with pytest.raises(ValueError, match="shorter"):
        cost_model("size").network_cost(NET.layers, uniform_widths(NET.layers, 4, 4)[:3])


def test_a_grouped_convolution_is_costed_or_refused_by_name():
    net = describe("grouped", nn.Sequential(nn.Conv2d(16, 32, 3, groups=2)), (16, 10, 10))
    assert cost_model("bitops").layer_cost(net.layers[0], 4, 4) == 64 * 32 * 8 * 9 * 16
    assert cost_model("bismo-edge").layer_cost(net.layers[0], 4, 4) > 0
    with pytest.raises(UserError, match="layer '0' has 2 groups of 8 channels; the spatial array has a model of dense"):
        cost_model("bitfusion").network_cost(net.layers, uniform_widths(net.layers, 4, 4))
