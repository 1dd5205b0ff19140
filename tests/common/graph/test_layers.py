"""The layer table against published parameter and multiply-accumulate counts."""

import pytest
import torch
import torchvision
from torch import Tensor, nn

from common.graph import Layer, Read, insert_quantizers, layer_table, trace, uncounted_operators


def table(network: nn.Module, *shape: int) -> tuple[Layer, ...]:
    x = torch.zeros(1, *shape)
    return layer_table(trace(network, x), x)


def totals(layers: tuple[Layer, ...]) -> tuple[int, int]:
    return sum(layer.num_weights for layer in layers), sum(layer.num_macs for layer in layers)


def test_totals_of_mobilenet_v2():
    layers = table(torchvision.models.mobilenet_v2(), 3, 224, 224)
    assert totals(layers) == (3_469_760, 300_774_272)
    assert [sum(layer.kind == kind for layer in layers) for kind in ("conv", "depthwise", "pointwise", "linear")] == [
        1, 17, 34, 1,
    ]  # fmt: skip


def test_totals_of_resnet50():
    layers = table(torchvision.models.resnet50(), 3, 224, 224)
    assert totals(layers) == (25_502_912, 4_089_184_256)
    assert sum(layer.num_weights for layer in layers if layer.kind != "linear") == 23_454_912


def test_totals_of_efficientnet_b0():
    assert totals(table(torchvision.models.efficientnet_b0(), 3, 224, 224)) == (5_236_192, 385_814_752)


@pytest.mark.parametrize(
    "name, size, expected",
    [("mobilenet_v1", 224, (4_209_088, 568_740_352)), ("resnet20", 32, (268_336, 40_551_040))],
)
def test_totals_of_own_networks(name, size, expected):
    from common.models import build_model

    assert totals(table(build_model(name), 3, size, size)) == expected


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(3, 8, (3, 5), stride=(1, 2), padding=(1, 2), bias=False)
        self.relu = nn.ReLU()
        self.depth = nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.point = nn.Conv2d(16, 16, 1)
        self.grouped = nn.Conv2d(16, 8, 1, groups=2)
        self.unused = nn.Linear(3, 3)
        self.fc = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(self.point(self.depth(self.relu(self.wide(x)))))
        return self.fc(self.grouped(x).mean((2, 3)))


def test_every_column():
    wide, depth, point, grouped, fc = table(Mixed(), 3, 8, 8)
    assert wide == Layer(
        name="wide", kind="conv", in_channels=3, out_channels=8, kernel_size=(3, 5), stride=(1, 2),
        dilation=(1, 1), groups=1, input_shapes=((3, 8, 8),), output_shapes=((8, 8, 4),), num_weights=360, num_biases=0,
        num_macs=8 * 4 * 360, reads=(Read(("x.output",), True),), has_bias=False,
    )  # fmt: skip
    assert (depth.kind, depth.groups, depth.num_weights, depth.num_macs) == ("depthwise", 8, 144, 32 * 144)
    assert (depth.input_tensor, depth.num_biases, depth.has_bias) == ("relu.output", 16, True)
    assert (point.kind, point.calls, point.num_weights, point.num_macs) == ("pointwise", 2, 256, 2 * 32 * 256)
    assert (grouped.kind, grouped.num_weights, grouped.num_macs) == ("conv", 64, 32 * 64)
    assert grouped.input_tensor == "point_1.output"
    assert fc == Layer(
        name="fc", kind="linear", in_channels=8, out_channels=5, kernel_size=(1, 1), stride=(1, 1),
        dilation=(1, 1), groups=1, input_shapes=((8,),), output_shapes=((5,),), num_weights=40, num_biases=5,
        num_macs=40, reads=(Read(("mean.output", "grouped.output"), False),), has_bias=True,
    )  # fmt: skip


def test_a_linear_layer_over_positions_counts_every_position():
    (layer,) = table(nn.Sequential(nn.Linear(4, 6)), 7, 4)
    assert (layer.num_macs, layer.output_shape) == (7 * 24, (7, 6))


def test_the_feeding_tensor_is_looked_up_through_reshapes_but_not_pools():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Dropout(), nn.Linear(144, 2))
    assert table(network, 3, 8, 8)[1].input_tensor == "_1.output"
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2))
    assert table(network, 3, 8, 8)[1].input_tensor == "_2.output"


def test_quantizers_do_not_change_the_table():
    x = torch.zeros(1, 3, 8, 8)
    graph_module = trace(Mixed(), x)
    before = layer_table(graph_module, x)
    insert_quantizers(graph_module, {"x.output": nn.Identity(), "relu.output": nn.ReLU(), "depth.weight": nn.ReLU()})
    assert layer_table(graph_module, x) == before


class Fire(nn.Module):
    """A squeeze layer that reads two concatenated tensors, pooled, and the image."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1, dilation=1)
        self.squeeze = nn.Conv2d(11, 2, 3, dilation=2)

    def forward(self, x: Tensor) -> Tensor:
        halves = torch.cat([self.left(x).relu(), self.right(x).relu(), x], 1)
        return self.squeeze(nn.functional.max_pool2d(halves, 2))


def test_a_layer_reads_the_tensors_behind_pools_and_concatenations():
    left, _, squeeze = table(Fire(), 3, 16, 16)
    assert left.reads == (Read(("x.output",), True),)
    between = ("max_pool2d.output", "cat.output")
    assert squeeze.reads == (
        Read((*between, "relu.output"), False),
        Read((*between, "relu_1.output"), False),
        Read((*between, "x.output"), True),
    )
    assert (squeeze.dilation, squeeze.output_shape, squeeze.input_tensor) == ((2, 2), (2, 4, 4), "max_pool2d.output")


def test_shapes_of_every_call_are_kept():
    class Pyramid(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Conv2d(3, 4, 1)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.head(x), self.head(nn.functional.avg_pool2d(x, 2))

    (head,) = table(Pyramid(), 3, 8, 8)
    assert (head.calls, head.output_shapes, head.num_macs) == (2, ((4, 8, 8), (4, 4, 4)), 12 * (64 + 16))


class Strange(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(3, 4, 2)
        self.bn = nn.BatchNorm2d(4)
        self.act = nn.PReLU(4)
        self.kernel = nn.Parameter(torch.zeros(2, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.conv2d(self.act(self.bn(self.up(x))), self.kernel).flatten(2)
        return x @ x.transpose(1, 2)


def test_operators_outside_the_table_are_named():
    network = trace(Strange(), torch.zeros(1, 3, 8, 8))
    assert uncounted_operators(network) == {"up": "ConvTranspose2d", "conv2d": "conv", "matmul": "matmul"}
    attention = trace(torchvision.models.vit_b_32(), torch.zeros(1, 3, 224, 224))
    assert set(uncounted_operators(attention).values()) == {"MultiheadAttention"}
    for name in ("resnet18", "efficientnet_b0", "squeezenet1_1"):
        network = getattr(torchvision.models, name)()
        assert uncounted_operators(trace(network, torch.zeros(1, 3, 224, 224))) == {}
