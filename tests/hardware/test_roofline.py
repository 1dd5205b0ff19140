from functools import cache

import pytest
import torch
from torch import nn

from common.errors import UserError
from common.graph import Layer, layer_table, trace
from common.models import build_model
from hardware.bit_serial import BISMO_CLOUD, BISMO_EDGE, cycles_fast
from hardware.roofline import roofline
from hardware.spatial import BITFUSION, cycles

MACHINES = {"cloud": BISMO_CLOUD, "edge": BISMO_EDGE, "bitfusion": BITFUSION}


@cache
def mobilenet_v2() -> tuple[Layer, ...]:
    image = torch.zeros(1, 3, 224, 224)
    return layer_table(trace(build_model("mobilenet_v2"), image), image)


def layer(module: nn.Module, *input_shape: int) -> Layer:
    image = torch.zeros(1, *input_shape)
    return layer_table(trace(nn.Sequential(module), image), image)[0]


def test_bit_serial_point_by_hand():
    each = layer(nn.Conv2d(256, 64, 1), 256, 8, 8)  # 64 positions of 16 images; 64 * 256 * 64 MACs each
    point = roofline(BISMO_CLOUD, each, 2, 1)
    # compute 16 images, 4 row tiles, 4 column groups, e = 2: 512 cycles; activations 16 * 64 rows; weights 16 * 64 * 2
    assert point.bound == "weight"
    assert point.intensity == 16 * 64 * 256 * 64 / (256 * (1024 + 2048))
    assert point.attainable == 16 * 64 * 256 * 64 / 2048 * 200e6
    assert point.peak == 16 * 16 * 256 / 2 * 200e6
    assert point.share == pytest.approx(512 / 2048)  # nothing is padded here


def test_spatial_point_by_hand():
    each = layer(nn.Conv2d(64, 64, 1), 64, 8, 8)
    point = roofline(BITFUSION, each, 4, 8)
    # compute 64 positions, 8 column groups, 64 / 16 steps: 2048; memory (4096 * 8 + 4096 * 4 + 64 * 4096) / 128: 2432
    assert point.bound == "memory"
    assert point.intensity == 64 * 4096 / (2432 * 128)
    assert point.attainable == 64 * 4096 / 2432 * 500e6
    assert point.peak == 64 * 2 * 500e6
    assert point.share == pytest.approx(2048 / 2432)
    assert roofline(BITFUSION, each, 8, 8).bound == "compute"


@pytest.mark.parametrize("machine", MACHINES)
def test_attainable_is_the_plain_roofline_and_below_the_peak(machine):
    machine = MACHINES[machine]
    function, images = (cycles, 1) if machine is BITFUSION else (cycles_fast, machine.batch)
    for each in mobilenet_v2():
        for w, a in ((1, 1), (2, 8), (4, 4), (8, 8)):
            point = roofline(machine, each, w, a)
            seconds = function(machine, each, w, a) / (machine.clock_mhz * 1e6)
            assert point.attainable == pytest.approx(images * each.num_macs / seconds)
            assert 0 < point.share == point.attainable / point.peak <= 1
            ports = 1 if machine is BITFUSION else 2
            bandwidth = {"bitfusion": 128 * 500e6, "bismo-cloud": 256 * 200e6, "bismo-edge": 32 * 200e6}[machine.name]
            assert point.attainable <= point.intensity * bandwidth * ports * (1 + 1e-12)


@pytest.mark.parametrize("machine", ["cloud", "edge"])
def test_depthwise_layers_wait_for_activations_at_any_weight_width(machine):
    for each in mobilenet_v2():
        if each.kind == "depthwise":
            points = [roofline(MACHINES[machine], each, w, 4) for w in (1, 4, 8)]
            assert {point.bound for point in points} == {"activation"}
            assert max(point.intensity for point in points) < 1
            assert len({point.attainable for point in points}) == 1


def test_expansions_compute_from_4_bits_on_and_the_classifier_waits_for_weights():
    for each in mobilenet_v2():
        if each.kind == "pointwise" and each.out_channels > each.in_channels:
            assert roofline(BISMO_CLOUD, each, 4, 4).bound == "compute"
    assert roofline(BISMO_CLOUD, mobilenet_v2()[-1], 4, 4).bound == "weight"


def test_several_calls_make_one_point():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(32, 32, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x))

    image = torch.zeros(1, 32, 12, 12)
    (both,) = layer_table(trace(Twice(), image), image)
    for machine in MACHINES.values():
        once, twice = (
            roofline(machine, each, 4, 4) for each in (layer(nn.Conv2d(32, 32, 3, padding=1), 32, 12, 12), both)
        )
        assert twice == once


@pytest.mark.parametrize("machine", MACHINES)
def test_refuses_pruned_layers(machine):
    with pytest.raises(UserError, match="a roofline needs weights of at least 1 bit, got 0"):
        roofline(MACHINES[machine], mobilenet_v2()[3], 0, 4)
