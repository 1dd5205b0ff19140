"""Quantizers go in, are found again, come out; the network's own names and objects stay."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from common.errors import UserError
from common.graph import (
    QuantizedConv2d,
    QuantizedLinear,
    find_sites,
    insert_quantizers,
    layer_table,
    quantizers,
    remove_quantizers,
    trace,
)


class Scale(nn.Module):
    """Stands for a quantizer: x -> factor * x, with a parameter, so that every place it acts on is visible."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


class PassOn(nn.Module):
    """x -> another tensor object of equal value, a node of its own in the autograd graph."""

    def forward(self, x: Tensor) -> Tensor:
        return x.view_as(x)


def images(size: int = 16) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(7))


@pytest.mark.parametrize("quantizer", [nn.Identity, PassOn])
def test_identity_quantizers_everywhere_change_nothing(quantizer, shared_relu, traced_copy, assert_same_behaviour):
    graph_module, reference = traced_copy(shared_relu, images())
    sites = find_sites(graph_module, images())
    insert_quantizers(graph_module, {site.name: quantizer() for site in sites})
    assert list(graph_module.state_dict()) == list(reference.state_dict())
    assert_same_behaviour(reference, graph_module, images())


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2", "efficientnet_b0"])
def test_identity_quantizers_everywhere_change_nothing_in_torchvision(name, traced_copy, assert_same_behaviour):
    graph_module, reference = traced_copy(torchvision.models.get_model(name), images(32))
    sites = find_sites(graph_module, images(32))
    insert_quantizers(graph_module, {site.name: PassOn() for site in sites})
    assert list(quantizers(graph_module)) == [site.name for site in sites]
    assert_same_behaviour(reference, graph_module, images(32))


class Two(nn.Module):
    """One tensor read by two layers and an addition."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 3, 3, stride=2, padding=2, dilation=2, padding_mode="circular")
        self.b = nn.Conv2d(3, 3, 1, stride=2, bias=False)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(3, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(x)
        return self.fc((self.a(x) + self.b(x) + x[:, :, ::2, ::2]).flatten(2).mean(-1))


def by_hand(net: Two, x: Tensor, **factor: float) -> Tensor:
    """Two, with factors where quantizers may sit: in = the tensor, a_in/b_in/a_w/a_b/fc_w... = the layers' parts."""
    f = {key: factor.get(key, 1.0) for key in ("t", "a_in", "b_in", "a_w", "a_b", "fc_w", "fc_b")}
    x = F.relu(x) * f["t"]
    padded = F.pad(x * f["a_in"], (2, 2, 2, 2), mode="circular")
    a = F.conv2d(padded, net.a.weight * f["a_w"], net.a.bias * f["a_b"], stride=2, dilation=2)
    b = F.conv2d(x * f["b_in"], net.b.weight, stride=2)
    return F.linear((a + b + x[:, :, ::2, ::2]).flatten(2).mean(-1), net.fc.weight * f["fc_w"], net.fc.bias * f["fc_b"])


@pytest.mark.parametrize(
    "factors",
    [
        {"relu.output": ("t", 0.5)},
        {"a.input": ("a_in", 0.5)},
        {"a.input": ("a_in", 0.5), "b.input": ("b_in", 2.0)},
        {"relu.output": ("t", 3.0), "b.input": ("b_in", 2.0)},
        {"a.weight": ("a_w", 0.25)},
        {"a.bias": ("a_b", 0.25), "fc.weight": ("fc_w", 4.0), "fc.bias": ("fc_b", 0.5)},
    ],
)
def test_each_site_acts_on_its_tensor_only(factors):
    network = Two()
    graph_module = trace(network, images())
    insert_quantizers(graph_module, {site: Scale(value) for site, (_, value) in factors.items()})
    expected = by_hand(network, images(), **dict(factors.values()))
    torch.testing.assert_close(graph_module(images()), expected)
    assert not torch.allclose(by_hand(network, images()), expected)


def test_quantized_layers_keep_names_objects_and_settings():
    network = Two()
    reference = copy.deepcopy(network)
    keys = list(network.state_dict())
    graph_module = trace(network, images())
    hooked = []
    graph_module.a.register_forward_hook(lambda *_: hooked.append("a"))
    insert_quantizers(graph_module, {"a.weight": nn.Identity(), "fc.bias": nn.Identity()})
    assert isinstance(graph_module.a, QuantizedConv2d) and isinstance(graph_module.fc, QuantizedLinear)
    assert graph_module.a.weight is network.a.weight and graph_module.fc.bias is network.fc.bias
    assert list(graph_module.state_dict()) == keys
    assert graph_module.a.padding_mode == "circular" and graph_module.a.dilation == (2, 2)
    with torch.no_grad():
        assert torch.equal(graph_module(images()), reference(images()))
    assert hooked == ["a"]
    assert type(network.a) is nn.Conv2d and type(network.fc) is nn.Linear  # the original is left as it was
    assert list(network.a.children()) == list(network.fc.children()) == []


def test_quantizer_state_goes_under_the_layer_and_under_activation_quantizers():
    graph_module = trace(Two(), images())
    sites = ["relu.output", "a.weight", "a.bias", "a.input"]
    insert_quantizers(graph_module, {site: Scale(1.0) for site in sites})
    added = set(graph_module.state_dict()) - set(Two().state_dict())
    assert added == {
        "activation_quantizers.relu.factor",
        "a.weight_quantizer.factor",
        "a.bias_quantizer.factor",
        "a.input_quantizer.factor",
    }


def test_quantizers_are_found_in_execution_order_whatever_the_order_of_insertion():
    graph_module = trace(Two(), images())
    wanted = ["x.output", "relu.output", "a.input", "a.weight", "a.bias", "b.weight", "fc.input", "fc.weight"]
    given = {site: Scale(1.0) for site in sorted(wanted)}
    insert_quantizers(graph_module, {site: given[site] for site in sorted(wanted)[:4]})
    insert_quantizers(graph_module, {site: given[site] for site in sorted(wanted)[4:]})
    found = quantizers(graph_module)
    assert list(found) == wanted
    assert all(found[site] is given[site] for site in wanted)


def test_one_layer_called_twice_has_one_weight_quantizer(shared_relu):
    calls = []

    class Count(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(tuple(x.shape))
            return x

    graph_module = trace(shared_relu, images())
    insert_quantizers(graph_module, {"twice.weight": Count()})
    graph_module(images())
    assert calls == [(8, 1, 3, 3), (8, 1, 3, 3)]
    assert list(quantizers(graph_module)) == ["twice.weight"]


def test_a_layer_with_two_names_is_replaced_under_both():
    class Alias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = nn.Sequential(nn.Conv2d(3, 3, 1))
            self.same = self.block[0]

        def forward(self, x: Tensor) -> Tensor:
            return self.same(self.block(x))

    graph_module = trace(Alias(), images())
    (name,) = {site.layer for site in find_sites(graph_module, images()) if site.kind == "weight"}
    insert_quantizers(graph_module, {f"{name}.weight": Scale(2.0)})
    assert graph_module.same is graph_module.block.get_submodule("0")
    assert isinstance(graph_module.same, QuantizedConv2d)


def test_layers_called_by_keyword():
    class Keyword(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 1)
            self.fc = nn.Linear(16, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(input=self.conv(input=x))

    network = Keyword()
    graph_module = trace(network, images())
    assert [layer.input_tensor for layer in layer_table(graph_module, images())] == ["x.output", "conv.output"]
    insert_quantizers(graph_module, {"conv.input": Scale(2.0), "fc.weight": Scale(0.5)})
    expected = F.linear(network.conv(images() * 2), network.fc.weight * 0.5, network.fc.bias)
    torch.testing.assert_close(graph_module(images()), expected)


def test_several_inputs_can_be_quantized():
    class Sum(nn.Module):
        def forward(self, left: Tensor, right: Tensor) -> Tensor:
            return left - right

    graph_module = trace(Sum(), (images(), images()))
    insert_quantizers(graph_module, {"left.output": Scale(2.0), "right.output": Scale(3.0)})
    torch.testing.assert_close(graph_module(images(), images()), -images())
    assert [node.op for node in graph_module.graph.nodes][:3] == ["placeholder", "placeholder", "call_module"]


def test_remove_gives_the_plain_network_back(shared_relu, traced_copy, assert_same_behaviour):
    graph_module, reference = traced_copy(shared_relu, images())
    code = graph_module.code
    sites = find_sites(graph_module, images())
    insert_quantizers(graph_module, {site.name: Scale(2.0) for site in sites})
    assert not torch.allclose(graph_module(images()), reference(images()))
    graph_module.bn.reset_running_stats(), reference.bn.reset_running_stats()
    graph_module.bn_last.reset_running_stats(), reference.bn_last.reset_running_stats()
    remove_quantizers(graph_module)
    assert quantizers(graph_module) == {}
    assert graph_module.code == code
    assert [type(m) for m in graph_module.modules()][1:] == [type(m) for m in reference.modules()][1:]
    assert list(graph_module.state_dict()) == list(reference.state_dict())
    assert_same_behaviour(reference, graph_module, images())
    insert_quantizers(graph_module, {"relu.output": Scale(2.0)})  # and it can be used again
    assert list(quantizers(graph_module)) == ["relu.output"]


def test_a_deep_copy_knows_its_sites_and_shares_nothing():
    graph_module = trace(Two(), images())
    insert_quantizers(graph_module, {"relu.output": Scale(2.0), "a.weight": Scale(3.0), "b.input": Scale(4.0)})
    duplicate = copy.deepcopy(graph_module)
    assert torch.equal(duplicate(images()), graph_module(images()))
    found = quantizers(duplicate)
    assert [(site, quantizer.factor.item()) for site, quantizer in found.items()] == [
        ("relu.output", 2.0), ("a.weight", 3.0), ("b.input", 4.0),
    ]  # fmt: skip
    with torch.no_grad():
        found["relu.output"].factor.fill_(1.0)
    assert quantizers(graph_module)["relu.output"].factor.item() == 2.0
    assert not torch.equal(duplicate(images()), graph_module(images()))
    remove_quantizers(duplicate)
    assert len(quantizers(graph_module)) == 3


@pytest.mark.parametrize("training", [True, False])
def test_quantizers_follow_mode_and_device(training):
    graph_module = trace(Two(), images()).train(training)
    given = {"relu.output": Scale(1.0).double(), "a.weight": Scale(1.0), "a.input": Scale(1.0)}
    insert_quantizers(graph_module, given)
    assert all(q.training is training for q in given.values())
    graph_module.train(not training)
    assert all(q.training is not training for q in given.values())
    graph_module.to(torch.float64)
    assert graph_module(images().double()).dtype == torch.float64


@pytest.mark.parametrize(
    "site, message",
    [
        ("relu_7.output", r"unknown site relu_7.output; did you mean relu.output"),
        ("a.wieght", r"unknown site a.wieght; did you mean a.weight"),
        ("b.bias", r"unknown site b.bias; layer b has no bias"),
        ("flatten.output", r"unknown site flatten.output"),
        ("zzz", r"unknown site zzz; find_sites lists the sites"),
        ("a.weight", r"site a.weight is quantized already"),
        ("relu.output", r"site relu.output is quantized already"),
    ],
)
def test_bad_sites_are_refused_and_nothing_changes(site, message):
    graph_module = trace(Two(), images())
    insert_quantizers(graph_module, {"a.weight": Scale(2.0), "relu.output": Scale(2.0)})
    code = graph_module.code
    with pytest.raises(UserError, match=message):
        insert_quantizers(graph_module, {"fc.weight": Scale(2.0), site: Scale(2.0)})
    assert graph_module.code == code
    assert list(quantizers(graph_module)) == ["relu.output", "a.weight"]


def test_layers_that_cannot_be_replaced_are_named():
    class OwnConv(nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    graph_module = trace(nn.Sequential(OwnConv(3, 4, 1)), images())
    with pytest.raises(UserError, match=r"cannot quantize 0\.weight: OwnConv has a forward of its own"):
        insert_quantizers(graph_module, {"0.weight": Scale(1.0)})
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 1))
    with pytest.raises(UserError, match=r"cannot quantize 0.weight: its weight is computed"):
        insert_quantizers(trace(nn.Sequential(normed), images()), {"0.weight": Scale(1.0)})
    with pytest.raises(UserError, match="expected a traced network, got Two"):
        insert_quantizers(Two(), {"a.weight": Scale(1.0)})


def test_an_inserted_resnet_compiles_to_one_graph():
    graph_module = trace(torchvision.models.resnet18(), images(32))
    sites = find_sites(graph_module, images(32))
    insert_quantizers(graph_module, {site.name: Scale(1.0) for site in sites if site.kind != "bias"})
    compiled = torch.compile(graph_module, backend="aot_eager", fullgraph=True)
    state = copy.deepcopy(graph_module.state_dict())
    expected = graph_module.train()(images(32))
    graph_module.load_state_dict(state)
    torch.testing.assert_close(compiled(images(32)), expected)


def test_surgery_reaches_a_compiled_network():
    """torch.compile sees the change: the next call runs with the quantizer."""
    network = Two().eval()
    graph_module = trace(network, images())
    compiled = torch.compile(graph_module, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images()), by_hand(network, images()))
    insert_quantizers(compiled, {"relu.output": Scale(2.0), "a.weight": Scale(3.0)})
    torch.testing.assert_close(compiled(images()), by_hand(network, images(), t=2.0, a_w=3.0))
    assert list(quantizers(compiled)) == ["relu.output", "a.weight"]
    remove_quantizers(compiled)
    torch.testing.assert_close(compiled(images()), by_hand(network, images()))
