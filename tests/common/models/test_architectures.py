"""Published counts, shapes and traceability of our own networks, and counts of those taken from libraries."""

import pytest
import torch
from torch import nn

from common.graph import find_sites, trace
from common.models import build_model, list_models, load_weights, model_info
from common.models.cifar_resnet import CifarResNet, PaddedShortcut
from common.models.mobilenet_v1 import MobileNetV1
from common.models.resnet50 import PreActBottleneck
from common.models.squeezenext import SqueezeNext23

CLASSIFIERS = [name for name in list_models() if name != "retinanet_r50_fpn"]
# torchvision's blocks call one ReLU three times, or none but the function
OWN_BLOCKS = [name for name in CLASSIFIERS if name not in ("resnet50_no_max_pool", "inception_v3_no_aux")]


def build_without_memory(name: str, **kwargs) -> nn.Module:
    with torch.device("meta"):
        return build_model(name, **kwargs)


def weights_and_macs(model: nn.Module, input_shape: tuple[int, int, int]) -> tuple[int, int]:
    """Weights of convolution and linear layers (no biases) and MACs of one image; model on the meta device."""
    counts = {"weights": 0, "macs": 0}

    def count(layer: nn.Module, _inputs, output: torch.Tensor) -> None:
        positions = output[0, 0].numel() if output.ndim == 4 else 1
        counts["weights"] += layer.weight.numel()
        counts["macs"] += layer.weight.numel() * positions

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.register_forward_hook(count)
    model.eval()(torch.empty(1, *input_shape, device="meta"))
    return counts["weights"], counts["macs"]


@pytest.mark.parametrize(
    "name, num_parameters",
    [
        # 27*16 + 32 (stem), 6n 3x3 convolutions with batch norm, 650 (classifier), from He et al., section 4.2
        ("resnet20", 269_722),
        ("resnet32", 464_154),
        ("resnet44", 658_586),
        ("resnet56", 853_018),
        ("resnet18_cifar", 11_173_962),
        ("vgg_small", 4_660_106),
        ("digits_net", 19_130),
        ("mobilenet_v1", 4_231_976),
        # torchvision's 3,504,872 and the expansion convolution of the first block, 32 * 32 + 64
        ("mobilenet_v2_relu", 3_505_960),
        # convolutions 3,745,824, linear 9216 * 4096 + 4096^2 + 4096 * 1000 + 1000, batch norms 2 * (1376 + 8192)
        ("alexnet_single", 62_387_912),
        # HAWQ's network; so many has the zoo's 2.0-SqNxt-23
        ("squeezenext23_2x", 2_583_752),
    ],
)
def test_number_of_parameters(name, num_parameters):
    assert sum(p.numel() for p in build_without_memory(name).parameters()) == num_parameters


@pytest.mark.parametrize(
    "name, num_weights, num_macs",
    [
        ("resnet20", 268_336, 40_551_040),
        # 64 positions x (144 + 2 * 2,304), 16 positions x (4,608 + 9,216) after the stride, classifier 320
        ("digits_net", 18_896, 525_632),
        ("mobilenet_v1", 4_209_088, 568_740_352),
        ("mobilenet_v2", 3_469_760, 300_774_272),
        ("resnet50", 25_502_912, 4_089_184_256),
        # the paper prints 0.39 billion MACs; the digits behind that are those on which torchvision and timm agree
        ("efficientnet_b0", 5_236_192, 385_814_752),
        ("timm:efficientnet_b0", 5_236_192, 385_814_752),
    ],
)
def test_number_of_weights_and_macs(name, num_weights, num_macs):
    assert weights_and_macs(build_without_memory(name), model_info(name).input_shape) == (num_weights, num_macs)


@pytest.mark.parametrize("name", CLASSIFIERS)
@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_own_networks_trace_to_equal_outputs(name, training):
    torch.manual_seed(0)
    model = build_model(name, num_classes=7).train(training)
    channels, side, _ = model_info(name).input_shape
    images = torch.randn(2, channels, min(side, 96), min(side, 96))
    torch.manual_seed(1)  # Inception drops inputs of its classifier
    expected = model(images)
    assert expected.shape == (2, 7)
    traced = torch.fx.symbolic_trace(model)
    torch.manual_seed(1)
    assert torch.equal(traced(images), expected)
    assert set(traced.state_dict()) == set(model.state_dict())


@pytest.mark.parametrize("name", OWN_BLOCKS)
def test_every_relu_is_a_module_called_once(name):
    nodes = torch.fx.symbolic_trace(build_model(name)).graph.nodes
    modules = dict(build_model(name).named_modules())
    calls = [n.target for n in nodes if n.op == "call_module" and isinstance(modules[n.target], nn.ReLU | nn.ReLU6)]
    assert len(calls) == len(set(calls)) > 0
    assert not [n for n in nodes if n.op in ("call_function", "call_method") and "relu" in str(n.target)]


def test_padded_shortcut_subsamples_and_pads_both_sides():
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    y = PaddedShortcut(2, 4, stride=2)(x)
    assert y[0, 1].tolist() == [[0.0, 2.0], [8.0, 10.0]]
    assert y[0, 2].tolist() == [[16.0, 18.0], [24.0, 26.0]]
    assert y[0, 0].eq(0).all() and y[0, 3].eq(0).all()


def test_resnet20_has_the_names_of_the_published_checkpoints():
    names = set(build_model("resnet20").state_dict())
    assert len(names) == 19 * 6 + 2  # 19 convolutions with batch norm (5 entries), the classifier
    assert {"conv1.weight", "bn1.running_var", "layer1.0.conv1.weight", "layer3.2.bn2.bias", "linear.bias"} <= names


def test_cifar_resnet_rejects_impossible_depth():
    with pytest.raises(ValueError, match=r"depth must be 6n \+ 2 .* got 21"):
        CifarResNet(21)


def test_mobilenet_v1_width_and_activation():
    model = MobileNetV1(width_mult=0.25, activation="relu6")
    # 470,072 parameters: MobileNetV1 0.25 of the paper's table 7 has 0.5 million
    assert sum(p.numel() for p in model.parameters()) == 470_072
    assert sum(isinstance(m, nn.ReLU6) for m in model.modules()) == 27
    assert model.eval()(torch.zeros(1, 3, 128, 128)).shape == (1, 1000)


def test_mobilenet_v1_rejects_unknown_activation():
    with pytest.raises(ValueError, match=r"activation must be one of.*'tanh'"):
        MobileNetV1(activation="tanh")


def test_mobilenet_v1_rejects_width_zero():
    with pytest.raises(ValueError, match="width_mult must be above 0, got 0"):
        MobileNetV1(width_mult=0)


def test_alexnet_drops_inputs_of_the_first_two_linear_layers_only_where_asked():
    with torch.device("meta"):
        dropouts = [m.p for m in build_model("alexnet_single", dropout=0.5).modules() if isinstance(m, nn.Dropout)]
        assert dropouts == [0.5, 0.5]
        assert {m.p for m in build_model("alexnet_single").modules() if isinstance(m, nn.Dropout)} == {0.0}


def test_squeezenext_width_and_shortcuts():
    # the zoo's counts of 1.0-SqNxt-23 and 1.5-SqNxt-23
    for width_mult, parameters in ((1.0, 724_056), (1.5, 1_511_824)):
        assert sum(p.numel() for p in SqueezeNext23(width_mult=width_mult).parameters()) == parameters
    stages = SqueezeNext23().stages
    assert [[len(unit.shortcut) > 0 for unit in stage] for stage in stages] == [
        [True] + [False] * 5, [True] + [False] * 5, [True] + [False] * 7, [True]
    ]  # fmt: skip


def test_squeezenext_rejects_width_zero():
    with pytest.raises(ValueError, match="width_mult must be above 0, got 0"):
        SqueezeNext23(width_mult=0)


def test_preactivation_block_by_the_book():
    torch.manual_seed(0)
    block = PreActBottleneck(8, 2, stride=2, shortcut=nn.Conv2d(8, 8, 1, stride=2)).eval()
    for module in block.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)
            nn.init.normal_(module.bias)
    x = torch.randn(2, 8, 6, 6)
    y = block.bn1(x).clamp(min=0)
    body = block.conv3(block.bn3(block.conv2(block.bn2(block.conv1(y)).clamp(min=0))).clamp(min=0))
    torch.testing.assert_close(block(x), body + block.shortcut(y), rtol=0, atol=0)
    block.shortcut = None
    block.conv2.stride = (1, 1)
    body = block.conv3(block.bn3(block.conv2(block.bn2(block.conv1(y)).clamp(min=0))).clamp(min=0))
    torch.testing.assert_close(block(x), body + x, rtol=0, atol=0)


@pytest.mark.parametrize("name", ["preact_resnet50", "resnet50_no_max_pool"])
def test_networks_without_max_pool_keep_their_resolutions(name):
    arguments = {"max_pool": False} if name == "preact_resnet50" else {}
    model, sides = build_model(name, **arguments).eval(), []
    for stage in (model.layer1, model.layer2, model.layer3, model.layer4):
        stage.register_forward_hook(lambda _module, _inputs, output: sides.append(output.shape[-1]))
    model(torch.zeros(1, 3, 64, 64))
    assert sides == [16, 8, 4, 2]


def test_resnet50_without_max_pool_has_torchvisions_names():
    assert set(build_model("resnet50_no_max_pool").state_dict()) == set(build_model("resnet50").state_dict())


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_retinanet_traces_to_torchvisions_head_outputs(training):
    torch.manual_seed(0)
    model = build_model("retinanet_r50_fpn", num_classes=5).train(training)
    images = torch.randn(2, 3, 64, 96)
    traced = trace(model, images)  # refuses a graph whose outputs differ
    sizes = [9 * height * width for height, width in ((8, 12), (4, 6), (2, 3), (1, 2), (1, 1))]
    outputs = traced(images)
    assert [tuple(level.shape) for level in outputs["cls_logits"]] == [(2, size, 5) for size in sizes]
    assert [tuple(level.shape) for level in outputs["bbox_regression"]] == [(2, size, 4) for size in sizes]
    expected = model.head(list(model.backbone(images).values()))
    assert set(outputs) == set(expected) == {"cls_logits", "bbox_regression"}
    for key, levels in outputs.items():
        assert torch.equal(torch.cat(levels, dim=1), expected[key])
    other_size = torch.randn(1, 3, 128, 64)
    assert torch.equal(traced(other_size)["cls_logits"][4], model(other_size)["cls_logits"][4])
    assert not [site for site in find_sites(traced, images) if site.operator == "concat"]


def test_retinanet_lends_torchvision_its_parts():
    from torchvision.models.detection import RetinaNet

    torch.manual_seed(0)
    model = build_model("retinanet_r50_fpn", num_classes=5)
    detector = RetinaNet(model.backbone, num_classes=5, head=model.head, min_size=64, max_size=96)
    assert set(detector.state_dict()) == set(model.state_dict())
    target = {"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([3])}
    losses = detector([torch.rand(3, 64, 64)] * 2, [target] * 2)
    assert all(loss.isfinite() and loss > 0 for loss in losses.values())


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("transform_input", [False, True])
def test_inception_without_auxiliary_head_traces(transform_input):
    torch.manual_seed(0)
    model = build_model("inception_v3", aux_logits=False, transform_input=transform_input).eval()
    images = torch.randn(1, 3, 299, 299)
    assert torch.equal(trace(model, images)(images), model(images))


def test_inception_takes_torchvisions_file_and_its_preprocessing(tmp_path):
    torch.manual_seed(0)
    original = build_model("inception_v3", transform_input=True).eval().double()
    torch.save(original.state_dict(), tmp_path / "inception.pth")
    model = build_model("inception_v3_no_aux").eval().double()
    load_weights(model, tmp_path / "inception.pth")
    pixels = torch.rand(2, 3, 75, 75, dtype=torch.float64)
    outputs = []
    for name, network in (("inception_v3", original), ("inception_v3_no_aux", model)):
        mean, std = (
            torch.tensor(values, dtype=torch.float64).view(3, 1, 1)
            for values in (model_info(name).mean, model_info(name).std)
        )
        outputs.append(network((pixels - mean) / std))
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-9, atol=0)


def test_digits_net_learns_the_digits_in_seconds():
    from sklearn.datasets import load_digits

    torch.manual_seed(0)
    digits, info = load_digits(), model_info("digits_net")
    images = (torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16 - info.mean[0]) / info.std[0]
    labels = torch.tensor(digits.target)
    order = torch.randperm(len(labels))
    train, test = order[:1437], order[1437:]
    model = build_model("digits_net")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=8)
    for _ in range(8):
        for batch in train[torch.randperm(len(train))].split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
        schedule.step()
    accuracy = (model.eval()(images[test]).argmax(1) == labels[test]).float().mean().item()
    assert accuracy > 0.97
