"""Counts of the networks in published tables, from the layer table: exact integers."""

import pytest
import torch
from torch import nn
from torchvision.models.detection import retinanet_resnet50_fpn

from common.graph import Layer, layer_table, trace
from common.models import build_model, model_info


def layers_of(name: str, **arguments) -> tuple[Layer, ...]:
    """The layer table for one image of the network's usual size; nothing is computed."""
    with torch.device("meta"):
        model, image = build_model(name, **arguments), torch.empty(1, *model_info(name).input_shape)
    return layer_table(trace(model, image), image)


def num_parameters(name: str, **arguments) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in build_model(name, **arguments).parameters())


def batch_norm_channels(name: str, **arguments) -> int:
    with torch.device("meta"):
        modules = list(build_model(name, **arguments).modules())
    return sum(m.num_features for m in modules if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d))


NO_MAX_POOL = {"max_pool": False, "shortcut_batch_norm": True}


@pytest.mark.parametrize(
    "name, arguments, parameters, weights, macs, channels",
    [
        ("resnet20", {}, 269_722, 268_336, 40_551_040, 688),
        ("vgg_small", {}, 4_660_106, 4_656_512, 607_600_640, 1_792),
        ("mobilenet_v1", {}, 4_231_976, 4_209_088, 568_740_352, 10_944),
        ("mobilenet_v2", {}, 3_504_872, 3_469_760, 300_774_272, 17_056),
        ("resnet18", {}, 11_689_512, 11_678_912, 1_814_073_344, 4_800),
        ("resnet34", {}, 21_797_672, 21_779_648, 3_663_761_408, 8_512),
        ("resnet50", {}, 25_557_032, 25_502_912, 4_089_184_256, 26_560),
        ("squeezenet1_1", {}, 1_235_496, 1_231_552, 349_151_936, 0),
        # HAWQ-V2's 91.2 MB are those of Inception without its auxiliary head
        ("inception_v3", {"aux_logits": False}, 23_834_568, 23_799_136, 5_713_216_096, 17_216),
        ("inception_v3_no_aux", {}, 23_834_568, 23_799_136, 5_713_216_096, 17_216),
        ("alexnet_single", {}, 62_387_912, 62_367_776, 1_135_256_096, 9_568),
        ("squeezenext23_2x", {}, 2_583_752, 2_548_096, 875_752_960, 11_552),
        # ResNet-50's weights, without its batch norms in shortcuts: 256 + 512 + 1024 + 2048 channels less
        ("preact_resnet50", {}, 25_549_352, 25_502_912, 4_089_184_256, 22_720),
        # AdaBits' BitOPs: 3 * 64 * 64 * 56 * 56 MACs more than with a max-pool
        ("preact_resnet50", NO_MAX_POOL, 25_557_032, 25_502_912, 4_127_719_424, 26_560),
        ("resnet50_no_max_pool", {}, 25_557_032, 25_502_912, 4_127_719_424, 26_560),
        # mmdetection's documentation gives its RetinaNet 239.32 billion at this size, biases and batch norms included
        ("retinanet_r50_fpn", {}, 37_968_692, 37_910_720, 238_536_058_880, 26_560),
    ],
)
def test_parameters_weights_macs_and_batch_norm_channels(name, arguments, parameters, weights, macs, channels):
    assert num_parameters(name, **arguments) == parameters
    assert batch_norm_channels(name, **arguments) == channels
    layers = layers_of(name, **arguments)
    assert (sum(layer.num_weights for layer in layers), sum(layer.num_macs for layer in layers)) == (weights, macs)
    biases = sum(layer.num_biases for layer in layers)
    assert weights + biases + 2 * channels == parameters  # nothing else has parameters, nothing is never called


@pytest.mark.parametrize(
    "name, macs, outputs, weights, kernels",
    [
        # 96 * 55^2, 256 * 27^2 and (384 + 384 + 256) * 13^2 outputs, times 363, 2400, 2304, 3456 and 3456
        ("alexnet_single", 1_076_634_144, 650_080, 3_745_824, 1_376),
        ("resnet18", 1_813_561_344, 2_483_712, 11_166_912, 4_800),
    ],
)
def test_counts_over_convolutions_are_those_of_kcnn(name, macs, outputs, weights, kernels):
    convolutions = [layer for layer in layers_of(name) if layer.kind != "linear"]
    assert sum(layer.num_macs for layer in convolutions) == macs
    assert sum(torch.Size(layer.output_shape).numel() for layer in convolutions) == outputs
    assert sum(layer.num_weights for layer in convolutions) == weights
    assert sum(layer.out_channels for layer in convolutions) == kernels


def test_retinanet_has_torchvisions_parameters_but_for_classes_p6_and_batch_norm():
    with torch.device("meta"):
        torchvisions = sum(p.numel() for p in retinanet_resnet50_fpn(weights_backbone=None).parameters())
    classes = 9 * (91 - 80) * (256 * 3 * 3 + 1)
    p6_from_c5 = (2048 - 256) * 256 * 3 * 3
    # without weights torchvision takes trainable batch norms; with weights frozen ones, which hold buffers
    assert num_parameters("retinanet_r50_fpn") == torchvisions - classes + p6_from_c5
    assert torchvisions == 34_014_999 + 53_120


def test_retinanets_head_counts_every_level():
    layers = {layer.name: layer for layer in layers_of("retinanet_r50_fpn")}
    sides = [(100, 160), (50, 80), (25, 40), (13, 20), (7, 10)]
    positions = sum(height * width for height, width in sides)
    for name, channels in (
        ("head.classification_head.conv.0.0", 256),
        ("head.classification_head.cls_logits", 720),
        ("head.regression_head.bbox_reg", 36),
    ):
        assert layers[name].output_shapes == tuple((channels, *side) for side in sides)
        assert layers[name].num_macs == positions * channels * 256 * 9
    assert layers["backbone.fpn.extra_blocks.p6"].in_channels == 2048
    assert layers["backbone.fpn.extra_blocks.p6"].calls == 1


def test_no_max_pool_runs_only_the_first_1x1_at_twice_the_resolution():
    plain = {layer.name: layer.num_macs for layer in layers_of("resnet50")}
    without = {layer.name: layer.num_macs for layer in layers_of("resnet50_no_max_pool")}
    assert {name for name in plain if plain[name] != without[name]} == {"layer1.0.conv1"}
    assert without["layer1.0.conv1"] == 4 * plain["layer1.0.conv1"]
