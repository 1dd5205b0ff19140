"""Cross-layer equalization: outputs stay, ranges meet, and branches are left alone."""

import copy
import os
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.errors import UserError
from common.graph import find_sites, insert_quantizers, trace
from common.graph.equalization import (
    ChannelCappedReLU,
    absorb_high_biases,
    equalizable_pairs,
    equalize,
    grouped_product,
    replace_relu6,
)
from common.graph.folding import NormStatistics, fold_batch_norms, own_parameters
from common.models import build_model, load_weights
from common.quantizers import AffineQuantizer

SHARED = Path(os.environ.get("SHARED_DIR", Path(__file__).resolve().parents[4] / "shared"))


def outputs(network: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return network(x)


def uneven(network: nn.Module, images: Tensor) -> nn.Module:
    """Batch norms with the images' statistics and gains from 0.1 to 10."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            with torch.no_grad():
                module.weight.copy_(10 ** (torch.rand(module.weight.shape) - 0.5))
                module.bias.normal_()
    network.train()
    outputs(network, images)
    return network.eval()


def folded(network: nn.Module, images: Tensor) -> tuple[torch.fx.GraphModule, dict[str, NormStatistics]]:
    graph = trace(network, images)
    return graph, fold_batch_norms(graph)


def sequence(*modules: nn.Module) -> torch.fx.GraphModule:
    first = modules[0]
    x = torch.randn(2, first.in_channels, 8, 8) if isinstance(first, nn.Conv2d) else torch.randn(2, first.in_features)
    return trace(nn.Sequential(*modules), x).eval()


def names(graph: torch.fx.GraphModule) -> list[tuple[str, str]]:
    return [(pair.first, pair.second) for pair in equalizable_pairs(graph)]


def ranges(graph: torch.fx.GraphModule, pair, symmetric: bool = True) -> tuple[Tensor, Tensor]:
    """Of the first layer's output channels and of the second's input channels, by loops."""
    first, second = (graph.get_submodule(name) for name in (pair.first, pair.second))
    groups = getattr(second, "groups", 1)
    inside, outside = second.weight.shape[1], second.weight.shape[0] // groups

    def extent(values: Tensor) -> Tensor:
        return values.abs().max() if symmetric else values.max() - values.min()

    of_first = [extent(row) for row in first.weight.detach()]
    of_second = []
    for channel in range(inside * groups):
        group = channel // inside
        rows = second.weight.detach()[group * outside : (group + 1) * outside]
        of_second.append(extent(rows[:, channel % inside]))
    return torch.stack(of_first), torch.stack(of_second)


def test_equalization():
    network = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2, bias=False)).double()
    x = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
    with torch.no_grad():
        network[0].weight.copy_(torch.tensor([[10.0, -8.0], [0.1, 0.05]], dtype=torch.float64))
        network[0].bias.copy_(torch.tensor([1.0, 0.02], dtype=torch.float64))
        network[2].weight.copy_(torch.tensor([[0.2, 3.0], [-0.1, 2.0]], dtype=torch.float64))
    graph = trace(network, x)
    (pair,) = equalize(graph)
    before = ranges(trace(network, x), pair)
    assert before[0].tolist() == [10.0, 0.1] and before[1].tolist() == [0.2, 3.0]
    first, second = graph.get_submodule("0"), graph.get_submodule("2")
    scale = (network[0].weight / first.weight)[:, 0]
    close = {"atol": 1e-9, "rtol": 0}
    torch.testing.assert_close(
        scale, torch.tensor([7.0710678118654755, 0.18257418583505539], dtype=torch.float64), **close
    )
    expected = [[1.414213562373095, -1.131370849898476], [0.5477225575051662, 0.27386127875258304]]
    torch.testing.assert_close(first.weight.data, torch.tensor(expected, dtype=torch.float64), **close)
    expected = [0.1414213562373095, 0.10954451150103321]
    torch.testing.assert_close(first.bias.data, torch.tensor(expected, dtype=torch.float64), **close)
    expected = [[1.4142135623730951, 0.5477225575051662], [-0.7071067811865476, 0.36514837167011077]]
    torch.testing.assert_close(second.weight.data, torch.tensor(expected, dtype=torch.float64), **close)
    for after in ranges(graph, pair):
        assert after.tolist() == pytest.approx([1.4142135623730951, 0.5477225575051662], abs=1e-9)
    for candidate in (network, graph):
        assert outputs(candidate, x)[0].tolist() == pytest.approx([1.9649999999999999, -0.9299999999999999], abs=1e-12)


@pytest.mark.parametrize("name, size", [("mobilenet_v2", 64), ("mobilenet_v2_relu", 64), ("resnet20", 32)])
def test_outputs_stay_and_ranges_meet(name, size):
    images = torch.randn(4, 3, size, size)
    network = uneven(build_model(name), images)
    expected = outputs(network, images)
    graph, statistics = folded(network, images)
    before = dict(statistics)
    pairs = equalize(graph, statistics)
    assert (outputs(graph, images) - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))
    for pair in pairs:
        first, second = ranges(graph, pair)
        torch.testing.assert_close(first, second, rtol=1e-3, atol=1e-7)
        # mean and spread go down with the weights
        scale = before[pair.first].std / statistics[pair.first].std
        torch.testing.assert_close(before[pair.first].mean / scale, statistics[pair.first].mean)
    assert torch.equal(outputs(network, images), expected)


def test_pairs_of_mobilenet_v2_leave_residual_sums_alone():
    """Stem, each block's expansion, depthwise and projection, and the projections whose output is nowhere added."""
    images = torch.randn(1, 3, 64, 64)
    graph, _ = folded(build_model("mobilenet_v2").eval(), images)
    pairs = names(graph)
    assert pairs[:4] == [
        ("features.0.0", "features.1.conv.0.0"),
        ("features.1.conv.0.0", "features.1.conv.1"),
        ("features.1.conv.1", "features.2.conv.0.0"),
        ("features.2.conv.0.0", "features.2.conv.1.0"),
    ]
    assert pairs[-2:] == [("features.17.conv.2", "features.18.0"), ("features.18.0", "classifier.1")]
    # 17 blocks: 1 pair in the first, 2 in the others; stem; last projection, head; no projection of an added block
    within = [pair for pair in pairs if pair[0].split(".")[:2] == pair[1].split(".")[:2]]
    assert len(within) == 33
    projections = [pair[0] for pair in pairs if pair not in within and pair[0] not in ("features.0.0", "features.18.0")]
    assert projections == ["features.1.conv.1", "features.17.conv.2"]


def test_pairs_of_resnet20_lie_inside_its_blocks():
    graph, _ = folded(build_model("resnet20").eval(), torch.randn(1, 3, 32, 32))
    blocks = [f"layer{stage}.{block}" for stage in (1, 2, 3) for block in range(3)]
    assert names(graph) == [(f"{block}.conv1", f"{block}.conv2") for block in blocks]


@pytest.mark.parametrize(
    "between",
    [
        [],
        [nn.ReLU()],
        [nn.LeakyReLU(0.1)],
        [nn.PReLU(6)],
        [nn.ReLU(), nn.MaxPool2d(2)],
        [nn.AvgPool2d(2), nn.ReLU()],
        [nn.Dropout(), nn.Identity()],
        [nn.ReLU6()],
        [nn.ReLU6(), nn.ReLU6()],
    ],
    ids=lambda modules: "-".join(type(m).__name__ for m in modules) or "nothing",
)
def test_what_may_stand_between(between):
    graph = sequence(nn.Conv2d(3, 6, 3), *between, nn.Conv2d(6, 4, 1))
    x = torch.randn(2, 3, 8, 8) * 5
    expected = outputs(graph, x)
    before = graph.get_submodule("0").weight.clone()
    assert len(equalize(graph)) == 1
    torch.testing.assert_close(outputs(graph, x), expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(graph.get_submodule("0").weight, before)


@pytest.mark.parametrize(
    "between",
    [
        [nn.SiLU()],
        [nn.Hardswish()],
        [nn.Tanh()],
        [nn.BatchNorm2d(6)],
        [nn.RReLU()],
        [nn.ReLU(), nn.ChannelShuffle(2)],
        [nn.Hardtanh(0.0, 4.0)],
        [nn.GroupNorm(2, 6)],
        [nn.Softmax(1)],
    ],
    ids=lambda modules: "-".join(type(m).__name__ for m in modules),
)
def test_what_may_not(between):
    assert names(sequence(nn.Conv2d(3, 6, 3), *between, nn.Conv2d(6, 4, 1))) == []


@pytest.mark.parametrize(
    "head",
    [
        [nn.AdaptiveAvgPool2d(1), nn.Flatten()],
        [nn.ReLU6(), nn.AdaptiveMaxPool2d(1), nn.Flatten(1)],
    ],
)
def test_a_classifier_behind_global_pooling(head):
    graph = sequence(nn.Conv2d(3, 6, 3), *head, nn.Linear(6, 4))
    x = torch.randn(2, 3, 8, 8) * 5
    expected = outputs(graph, x)
    assert len(equalize(graph)) == 1
    torch.testing.assert_close(outputs(graph, x), expected, atol=1e-5, rtol=1e-5)


def test_flattened_maps_and_linear_layers_over_rows_do_not_meet():
    assert names(sequence(nn.Conv2d(3, 6, 3), nn.Flatten(), nn.Linear(216, 4))) == []
    assert names(sequence(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Linear(6, 4))) == []
    assert names(sequence(nn.Conv2d(3, 6, 3), nn.Dropout(), nn.Linear(6, 4))) == []


class Branches(nn.Module):
    """Functions and methods instead of modules, a residual sum, one convolution called twice, an output in between."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e, self.f = (nn.Conv2d(6, 6, 1) for _ in range(6))
        self.twice = nn.Conv2d(6, 6, 1)
        self.fc = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.b(F.relu6(self.a(x)))  # a pair
        x = x + self.c(x)  # b has two readers; c is added
        y = self.e(self.d(x).relu())  # a pair; e is an output
        x = self.f(self.twice(self.twice(y)))
        return y, self.fc(F.relu(x).mean((2, 3)))  # a pair


def test_branches_outputs_and_shared_layers_end_the_search():
    torch.manual_seed(0)
    x = torch.randn(2, 6, 4, 4) * 5
    graph = trace(Branches(), x).eval()
    assert names(graph) == [("a", "b"), ("d", "e"), ("f", "fc")]
    expected = outputs(graph, x)
    sites = [site.name for site in find_sites(graph, x)]
    equalize(graph)
    for found, wanted in zip(outputs(graph, x), expected, strict=True):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)
    assert [site.name for site in find_sites(graph, x)] == sites
    relu6 = next(site for site in find_sites(graph, x) if site.name == "relu6.output")
    assert (relu6.operator, relu6.non_negative) == ("relu6", True)


@pytest.mark.parametrize("symmetric", [True, False])
def test_grouped_and_depthwise_layers(symmetric):
    torch.manual_seed(0)
    graph = sequence(
        nn.Conv2d(4, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=12),
        nn.ReLU6(), nn.Conv2d(12, 5, 1, bias=False),
    )  # fmt: skip
    x = torch.randn(2, 4, 8, 8) * 3
    expected = outputs(graph, x)
    pairs = equalize(graph, symmetric=symmetric)
    assert [(p.first, p.second) for p in pairs] == [("0", "2"), ("2", "4"), ("4", "6")]
    torch.testing.assert_close(outputs(graph, x), expected, atol=1e-5, rtol=1e-5)
    for pair in pairs:
        first, second = ranges(graph, pair, symmetric)
        torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-7)
    assert graph.get_submodule("6").bias is None


def test_channels_without_range_keep_their_scale():
    graph = sequence(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        graph.get_submodule("0").weight[1] = 0
        graph.get_submodule("2").weight[:, 2] = 0
    before = graph.get_submodule("0").weight.clone(), graph.get_submodule("0").bias.clone()
    equalize(graph)
    after = graph.get_submodule("0")
    assert torch.equal(after.bias[1], before[1][1]) and torch.equal(after.weight[2], before[0][2])
    assert all(bool(torch.isfinite(p).all()) for p in graph.parameters())


def test_scales_are_bounded():
    graph = sequence(nn.Conv2d(1, 1, 1), nn.ReLU(), nn.Conv2d(1, 1, 1))
    with torch.no_grad():
        graph.get_submodule("0").weight.fill_(1e20)
        graph.get_submodule("2").weight.fill_(1e-20)
    equalize(graph, max_rounds=1)
    assert graph.get_submodule("0").weight.item() == pytest.approx(1e12)


def test_relu6_becomes_a_cap_for_every_channel():
    graph = sequence(nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Conv2d(4, 2, 1))
    before = graph.get_submodule("0").weight.clone()
    equalize(graph)
    caps = next(m for m in graph.modules() if isinstance(m, ChannelCappedReLU)).caps
    scale = (before / graph.get_submodule("0").weight)[:, 0, 0, 0]
    torch.testing.assert_close(caps, 6 / scale)
    state = copy.deepcopy(graph).state_dict()
    assert torch.equal(state["own_activations._1.caps"], caps)
    equalize(graph)  # once more: nothing left to do
    torch.testing.assert_close(next(m for m in graph.modules() if isinstance(m, ChannelCappedReLU)).caps, caps)


def test_gradients_of_the_capped_relu():
    module = ChannelCappedReLU(torch.tensor([1.0, 2.0]))
    x = torch.tensor([[[[-1.0, 0.5, 1.5]], [[-1.0, 1.5, 2.5]]]], requires_grad=True)
    y = module(x)
    assert y.tolist() == [[[[0.0, 0.5, 1.0]], [[0.0, 1.5, 2.0]]]]
    y.sum().backward()
    assert x.grad.tolist() == [[[[0.0, 1.0, 0.0]], [[0.0, 1.0, 0.0]]]]
    rows = ChannelCappedReLU(torch.tensor([1.0, 2.0]))(torch.tensor([[3.0, 3.0]]))
    assert rows.tolist() == [[1.0, 2.0]]


def test_relu6_can_be_replaced_instead():
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU6(), nn.Conv2d(4, 2, 1))
    x = torch.randn(2, 3, 5, 5) * 10
    graph = trace(network, x)
    assert replace_relu6(graph) == 1
    plain = nn.Sequential(network[0], nn.ReLU(), network[2])
    assert torch.equal(outputs(graph, x), outputs(plain, x)) and not torch.equal(outputs(network, x), outputs(plain, x))
    equalize(graph)
    called = [graph.get_submodule(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    assert not [module for module in called if isinstance(module, nn.ReLU6)]
    torch.testing.assert_close(outputs(graph, x), outputs(plain, x), atol=1e-5, rtol=1e-5)


def test_quantized_networks_are_refused():
    graph = sequence(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    insert_quantizers(graph, {"0.weight": AffineQuantizer(8)})
    for change in (equalize, lambda g: absorb_high_biases(g, {})):
        with pytest.raises(UserError, match=r"0\.weight is quantized already"):
            change(graph)


def test_equalization_recovers_what_uneven_channels_cost():
    """Per tensor at 6 bits: channel ranges that differ 300-fold lose nearly all, equalized ones little."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3, groups=16), nn.ReLU(), nn.Conv2d(16, 8, 1)]
    graph = sequence(*layers)
    x = torch.randn(8, 3, 12, 12)
    with torch.no_grad():
        scale = torch.logspace(-1.25, 1.25, 16)[torch.randperm(16)]
        graph.get_submodule("0").weight *= scale[:, None, None, None]
        graph.get_submodule("0").bias *= scale
        graph.get_submodule("2").weight /= scale[:, None, None, None]
    expected = outputs(graph, x)

    def error(graph: torch.fx.GraphModule, per_channel: bool) -> float:
        graph = copy.deepcopy(graph)
        for name in ("0", "2", "4"):
            weight = graph.get_submodule(name).weight
            dims = (1, 2, 3) if per_channel else (0, 1, 2, 3)
            scale = weight.detach().abs().amax(dims, keepdim=True) / 31
            weight.data = scale * torch.round(weight.data / scale)
        return float((outputs(graph, x) - expected).square().mean() / expected.var())

    per_tensor, per_channel = error(graph, False), error(graph, True)
    equalize(graph)
    equalized = error(graph, False)
    assert per_channel < 0.02 * per_tensor and equalized < 0.02 * per_tensor


# high-bias absorption


def test_grouped_product_is_a_loop_over_groups():
    matrix, vector = torch.randn(6, 2), torch.randn(4)
    expected = torch.cat([matrix[:3] @ vector[:2], matrix[3:] @ vector[2:]])
    torch.testing.assert_close(grouped_product(matrix, vector, 2), expected)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.LeakyReLU(0.1)])
@pytest.mark.parametrize("groups", [1, 2])
def test_absorption_changes_nothing_where_inputs_are_above_c(activation, groups):
    torch.manual_seed(0)
    graph = sequence(nn.Conv2d(3, 4, 1, bias=False), activation, nn.Conv2d(4, 6, 3, groups=groups, bias=False))
    x = 0.01 * torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        own_parameters(graph, "0", bias=True).bias.copy_(torch.tensor([2.0, 1.0, 0.2, 7.0]))
    expected = outputs(graph, x)
    mean, std = torch.tensor([2.0, 1.0, 0.2, 7.0]), torch.tensor([0.1, 0.2, 0.1, 0.1])
    statistics = {"0": NormStatistics(mean, std)}
    amount = absorb_high_biases(graph, statistics)["0"]
    last = 6.0 if isinstance(activation, nn.ReLU6) else 6.7
    assert amount.tolist() == pytest.approx([1.7, 0.4, 0.0, last], abs=1e-6)
    torch.testing.assert_close(graph.get_submodule("0").bias.data, mean - amount)
    torch.testing.assert_close(statistics["0"].mean, mean - amount)
    torch.testing.assert_close(outputs(graph, x), expected, atol=1e-5, rtol=1e-5)


def test_absorption_is_wrong_by_the_padding_at_the_border_only():
    torch.manual_seed(0)
    graph = sequence(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1, groups=4))
    graph.get_submodule("0").bias.data.fill_(2.0)
    x, statistics = 0.01 * torch.randn(2, 3, 8, 8), {"0": NormStatistics(torch.full((4,), 2.0), torch.full((4,), 0.1))}
    expected = outputs(graph, x)
    untouched = copy.deepcopy(graph)
    assert absorb_high_biases(untouched, dict(statistics), skip_padded=True) == {}
    assert torch.equal(outputs(untouched, x), expected)
    absorb_high_biases(graph, statistics)
    difference = (outputs(graph, x) - expected).abs()
    assert difference[..., 1:-1, 1:-1].max() < 1e-5 < difference.max()


def test_without_statistics_or_high_biases_nothing_is_absorbed():
    graph = sequence(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    assert absorb_high_biases(graph, {}) == {}
    assert absorb_high_biases(graph, {"0": NormStatistics(torch.ones(4), torch.ones(4))}) == {}


def test_the_provided_mobilenet_v2_keeps_its_outputs():
    weights = SHARED / "data" / "mobilenetv2_gluon_backbone_fp32.npz"
    if not weights.is_file():
        pytest.skip(f"no {weights.name}")
    network = build_model("mobilenet_v2_relu", num_classes=10)
    load_weights(network.eval(), weights)
    images = torch.randn(2, 3, 224, 224)
    expected = outputs(network, images)
    graph, statistics = folded(network, images)
    equalize(graph, statistics)
    assert (outputs(graph, images) - expected).abs().max() < 1e-4 * max(1.0, float(expected.abs().max()))
