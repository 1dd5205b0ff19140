import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from torch import nn

from common.bit_policy import GroupBits, LayerBits
from common.errors import UserError
from hardware import cost_model, network, uniform_widths
from hardware.network import describe
from hardware.plot import bandwidth, plot_cost
from hardware.roofline import roofline


@pytest.fixture
def draw(monkeypatch):
    """draw(network, target, widths) -> the axes of the picture."""
    figures = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, *args, **options: figures.append(figure))

    def draw(net, target, widths):
        model = cost_model(target)
        plot_cost("unused.png", net, model, widths, model.network_cost(net.layers, widths))
        return figures[-1].axes

    return draw


def curves(axes, style):
    """(x, y) of the lines of one style: "-" slanted roof, "--" peaks, "None" points."""
    return [line.get_xydata() for line in axes.lines if line.get_linestyle() == style]


@pytest.mark.parametrize("target", ["bismo-edge", "bitfusion", "size"])
def test_writes_a_picture(tmp_path, target):
    net, model = network("mobilenet_v2"), cost_model(target)
    widths = uniform_widths(net.layers, 4, 4)
    path = tmp_path / "cost"  # a PNG whatever the name says
    plot_cost(path, net, model, widths, model.network_cost(net.layers, widths))
    image = matplotlib.image.imread(path, format="png")
    height = 546 if target == "size" else 1092  # without a machine there is no roofline
    assert image.shape[:2] == (height, 1300)
    assert 0.05 < (image[..., :3].min(axis=2) < 0.9).mean() < 0.5  # neither empty nor full


@pytest.mark.parametrize(
    "target, bits_per_cycle, mhz",
    [("bismo-edge", 32 + 32, 200), ("bismo-cloud", 256 + 256, 200), ("bitfusion", 128, 500)],
)
def test_bandwidth_is_that_of_all_ports(target, bits_per_cycle, mhz):
    assert bandwidth(cost_model(target).machine) == bits_per_cycle * mhz * 1e6


@pytest.mark.parametrize("target", ["bismo-edge", "bismo-cloud", "bitfusion"])
def test_no_layer_lies_above_a_roof(target):
    machine = cost_model(target).machine
    slope = bandwidth(machine)
    for layer in network("mobilenet_v2").layers:
        for w, a in ((1, 1), (2, 8), (8, 2), (4, 4), (8, 8)):
            point = roofline(machine, layer, w, a)
            assert point.attainable <= point.peak * (1 + 1e-12)
            assert point.attainable <= point.intensity * slope * (1 + 1e-12)
            if point.bound == "memory":
                assert point.attainable == pytest.approx(point.intensity * slope)


@pytest.mark.parametrize("target", ["bismo-edge", "bismo-cloud", "bitfusion", "bitfusion-energy"])
def test_points_and_roofs_of_the_picture(draw, target):
    net, model = network("mobilenet_v2"), cost_model(target)
    widths = [LayerBits(2 + i % 7, 2 + i % 5) for i in range(53)]
    axes = draw(net, target, widths)[1]
    assert (axes.get_xscale(), axes.get_yscale()) == ("log", "log")
    ((left, right),) = curves(axes, "-")
    slope = bandwidth(model.machine) / 1e9
    for x, y in (left, right):
        assert y == pytest.approx(slope * x)
    points = np.concatenate(curves(axes, "None"))
    counted = [(*pair, u) for *pair, u in zip(net.layers, model.counted(net.layers), widths, strict=True) if pair[1]]
    assert len(points) == len(counted)
    peaks = set()
    for (x, y), (layer, _, bits) in zip(points, counted, strict=True):
        point = roofline(model.machine, layer, bits.weight, bits.activation)
        assert (x, y) == (point.intensity, point.attainable / 1e9)
        assert left[0] <= x
        assert y <= slope * x * (1 + 1e-12)
        peaks.add(point.peak / 1e9)
    horizontal = curves(axes, "--")
    assert {y for (_, y), _ in horizontal} == {y for _, (_, y) in horizontal} == peaks
    for (start, height), (end, _) in horizontal:  # from the slanted roof to the right of all points
        assert height == pytest.approx(slope * start)
        assert end >= points[:, 0].max()
    assert right[1] == max(peaks)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    gbit = {"bismo-edge": "12.8", "bismo-cloud": "102"}.get(target, "64")
    assert labels[-2:] == ["peak at the layers' widths", f"intensity x bandwidth ({gbit} Gbit/s)"]
    assert "bound by compute" in labels


@pytest.mark.parametrize("target, bars", [("bismo-edge", 51), ("bitfusion", 53), ("size", 53)])
def test_a_bar_per_counted_layer(draw, target, bars):
    net, model = network("mobilenet_v2"), cost_model(target)
    widths = uniform_widths(net.layers, 4, 6)
    axes = draw(net, target, widths)[0]
    costs = [cost for cost in model.network_cost(net.layers, widths).costs if cost]
    assert [bar.get_height() for bar in axes.patches] == costs
    assert len(costs) == bars
    labels = [label.get_text() for label in axes.get_xticklabels()]
    assert labels[-1] == ("features.18.0 4/6" if target == "bismo-edge" else "classifier.1 4/6")
    assert axes.get_ylabel() == {"bismo-edge": "latency [ms]", "bitfusion": "latency [ms]", "size": "size [B]"}[target]


def test_labels_of_many_layers_are_left_out(draw):
    net = network("efficientnet_b0")
    assert list(draw(net, "bitops", uniform_widths(net.layers, 4, 4))[0].get_xticks()) == []


def test_groups_of_widths_are_drawn_at_their_mean(draw):
    net = describe("two", nn.Sequential(*[nn.Conv2d(16, 16, 1) for _ in range(3)]), (16, 8, 8))
    groups = LayerBits(GroupBits("out", (8, 8), (2, 6)), 4)
    axes = draw(net, "bismo-edge", [groups] * 3)
    point = roofline(cost_model("bismo-edge").machine, net.layers[1], 4, 4)
    assert np.concatenate(curves(axes[1], "None")).tolist() == [[point.intensity, point.attainable / 1e9]]
    assert axes[0].get_xticklabels()[0].get_text() == "1 4/4"
    pruned = LayerBits(GroupBits("out", (15, 1), (0, 1)), 4)  # rounds to 0 bits
    assert len(curves(draw(net, "bismo-edge", [pruned] * 3)[1], "None")) == 1


def test_a_network_of_which_no_layer_counts_has_a_picture_too(draw):
    net = describe("two", nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)), (3, 8, 8))
    assert len(draw(net, "bismo-edge", uniform_widths(net.layers, 4, 4))) == 1


def test_a_file_that_cannot_be_written(tmp_path):
    net, model = network("digits_net"), cost_model("bitops")
    widths = uniform_widths(net.layers, 4, 4)
    cost = model.network_cost(net.layers, widths)
    with pytest.raises(UserError, match=r"cannot write .*none/plot.png: No such file or directory"):
        plot_cost(tmp_path / "none" / "plot.png", net, model, widths, cost)
    with pytest.raises(UserError, match=r"cannot write .*: Is a directory"):
        plot_cost(tmp_path, net, model, widths, cost)
