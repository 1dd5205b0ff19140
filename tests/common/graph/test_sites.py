"""Sites: which there are, what they say, which of them papers quantize."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from common.graph import Site, activation_outputs, find_sites, insert_quantizers, trace


def sites_of(network: nn.Module, *shape: int) -> tuple[torch.fx.GraphModule, tuple[Site, ...]]:
    x = torch.randn(1, *shape)
    graph_module = trace(network, x)
    return graph_module, find_sites(graph_module, x)


def by_name(sites: tuple[Site, ...]) -> dict[str, Site]:
    assert len({site.name for site in sites}) == len(sites)
    return {site.name: site for site in sites}


def test_names_and_order_of_a_small_network(shared_relu):
    """A ReLU module used three times is three tensor sites; a convolution called twice has one weight."""
    _, sites = sites_of(shared_relu, 3, 8, 8)
    assert [site.name for site in sites] == [
        "x.output",
        "stem.input", "stem.weight", "stem.output",
        "bn.output",
        "relu.output",
        "twice.input", "twice.weight", "twice.bias", "twice.output",
        "add.output",
        "relu_1.output",
        "twice_1.output",
        "relu_2.output",
        "last.input", "last.weight", "last.bias", "last.output",
        "bn_last.output",
        "add_1.output",
        "relu_3.output",
        "adaptive_avg_pool2d.output",
        "fc.input", "fc.weight", "fc.bias", "fc.output",
    ]  # fmt: skip


def test_what_a_site_says(shared_relu):
    _, found = sites_of(shared_relu, 3, 8, 8)
    sites = by_name(found)
    assert sites["stem.weight"] == Site(
        "stem.weight", "weight", (8, 3, 3, 3), 216, "stem", None, "conv", False, ("stem",)
    )
    assert sites["twice.bias"] == Site(
        "twice.bias", "bias", (8,), 8, "twice", None, "conv", False, ("twice", "twice_1")
    )
    assert sites["twice.input"] == Site(
        "twice.input", "edge", (8, 8, 8), 512, "twice", "relu", "relu", True, ("twice", "twice_1")
    )
    assert sites["relu.output"] == Site(
        "relu.output", "tensor", (8, 8, 8), 512, None, "relu", "relu", True, ("twice", "add", "add_1")
    )
    # Through flatten: the pool's reader is the classifier, and the classifier reads the pool.
    assert sites["adaptive_avg_pool2d.output"].consumers == ("fc",)
    assert sites["adaptive_avg_pool2d.output"].non_negative
    assert sites["fc.input"] == Site("fc.input", "edge", (8,), 8, "fc", "adaptive_avg_pool2d", "pool", True, ("fc",))
    assert sites["fc.output"].consumers == ("output",)


@pytest.mark.parametrize(
    "function, operator, non_negative",
    [
        (lambda x: F.relu(x), "relu", True),
        (lambda x: x.relu_(), "relu", True),
        (lambda x: torch.relu(x), "relu", True),
        (lambda x: F.relu6(x), "relu6", True),
        (lambda x: x.sigmoid(), "sigmoid", True),
        (lambda x: F.hardsigmoid(x), "hardsigmoid", True),
        (lambda x: F.silu(x), "silu", False),
        (lambda x: F.hardswish(x), "hardswish", False),
        (lambda x: F.gelu(x), "gelu", False),
        (lambda x: torch.tanh(x), "tanh", False),
        (lambda x: x.clamp(0, 1), "clamp", True),
        (lambda x: torch.clamp(x, min=0.0), "clamp", True),
        (lambda x: torch.clamp(x, -1, 1), "clamp", False),
        (lambda x: x.clamp(max=1.0), "clamp", False),
        (lambda x: F.hardtanh(x), "hardtanh", False),
        (lambda x: F.hardtanh(x, 0.0, 1.0), "hardtanh", True),
        (lambda x: x + 1, "other", False),
        (lambda x: x + x, "add", False),
        (lambda x: x.relu().add(x.relu()), "add", True),
        (lambda x: x.relu() - 1, "other", False),
        (lambda x: x * x.sigmoid(), "mul", False),
        (lambda x: x.relu() * x.sigmoid(), "mul", True),
        (lambda x: F.max_pool2d(x.relu(), 2), "pool", True),
        (lambda x: F.max_pool2d(x, 2), "pool", False),
        (lambda x: x.relu().mean((2, 3)), "pool", True),
        (lambda x: torch.cat([x.relu(), x.sigmoid()], 1), "concat", True),
        (lambda x: torch.cat([x.relu(), x], 1), "concat", False),
        (lambda x: F.pad(x.relu()[:, :, ::2], (1, 1)), "pad", True),
        (lambda x: F.pad(x.relu(), (1, 1), value=-1.0), "pad", False),
        (lambda x: F.max_pool2d(x.relu().reshape(x.shape[0], -1, 2, 2), 2), "pool", True),
    ],
)
def test_operator_and_sign(function, operator, non_negative):
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    _, sites = sites_of(Net(), 4, 4, 4)
    assert (sites[-1].kind, sites[-1].operator, sites[-1].non_negative) == ("tensor", operator, non_negative)


@pytest.mark.parametrize(
    "module, operator, non_negative",
    [
        (nn.ReLU(), "relu", True),
        (nn.ReLU6(), "relu6", True),
        (nn.Hardtanh(0.0, 4.0), "hardtanh", True),
        (nn.Hardtanh(), "hardtanh", False),
        (nn.SiLU(), "silu", False),
        (nn.Hardswish(), "hardswish", False),
        (nn.Hardsigmoid(), "hardsigmoid", True),
        (nn.PReLU(), "prelu", False),
        (nn.LeakyReLU(), "leaky_relu", False),
        (nn.Sequential(nn.ReLU(), nn.ZeroPad2d(1)), "pad", True),
        (nn.Sequential(nn.ReLU(), nn.ConstantPad2d(1, -2.0)), "pad", False),
        (nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)), "pool", True),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), "batch_norm", False),
        (nn.GroupNorm(1, 4), "other", False),
    ],
)
def test_operator_and_sign_of_modules(module, operator, non_negative):
    _, sites = sites_of(nn.Sequential(module), 4, 4, 4)
    assert (sites[-1].operator, sites[-1].non_negative) == (operator, non_negative)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.flatten(1),
        lambda x: x.view(x.size(0), -1),
        lambda x: x.reshape(x.shape[0], -1),
        lambda x: x[:, ::2],
        lambda x: torch.chunk(x, 2, dim=1)[0],
        lambda x: F.dropout(x, 0.5),
        lambda x: x.permute(0, 2, 3, 1).contiguous(),
        lambda x: torchvision.ops.StochasticDepth(0.5, "row")(x),
        lambda x: nn.functional.channel_shuffle(x, 2),
    ],
)
def test_reshapes_and_dropouts_carry_the_site_of_their_input(function):
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.relu = nn.ReLU()
            self.sigmoid = nn.Sigmoid()
            self.depth = torchvision.ops.StochasticDepth(0.5, "row")

        def forward(self, x: Tensor) -> Tensor:
            return self.sigmoid(function(self.depth(self.relu(x))))

    if "StochasticDepth" in function.__code__.co_names:
        function = lambda x: x  # noqa: E731  a module is not made inside a forward; self.depth stands for it
    _, sites = sites_of(Net(), 4, 4, 4)
    assert [site.name for site in sites] == ["x.output", "relu.output", "sigmoid.output"]
    assert sites[1].consumers == ("sigmoid",)


def test_what_does_not_depend_on_the_input_is_no_site():
    """A scaled gain is no activation, and adding it is no residual addition."""

    class Gain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1, 4, 1, 1))

        def forward(self, x: Tensor) -> Tensor:
            return (x.relu() + self.gain * 2).reshape(x.shape[0] * 2, -1)

    _, sites = sites_of(Gain(), 4, 4, 4)
    assert [(site.name, site.operator) for site in sites] == [
        ("x.output", "input"), ("relu.output", "relu"), ("add.output", "other"),
    ]  # fmt: skip
    assert not sites[-1].non_negative


def counts(network: nn.Module, size: int, channels: int = 3) -> tuple[int, dict[str, int], int]:
    graph_module, sites = sites_of(network, channels, size, size)
    chosen = activation_outputs(sites, graph_module)
    return len(chosen), dict(Counter(site.operator for site in chosen)), max(site.num_elements for site in chosen)


def test_activation_outputs_of_resnet50_are_its_49_relus():
    assert counts(torchvision.models.resnet50(), 224) == (49, {"relu": 49}, 802_816)


def test_activation_outputs_of_mobilenet_v2():
    expected = (62, {"relu6": 35, "batch_norm": 17, "add": 10}, 1_204_224)
    assert counts(torchvision.models.mobilenet_v2(), 224) == expected


def test_activation_outputs_of_efficientnet_b0():
    """Two SiLUs a block (one in the first) and stem and head, SE: one SiLU, sigmoid and product a block."""
    number, words, _ = counts(torchvision.models.efficientnet_b0(), 64)
    assert words == {"silu": 49, "sigmoid": 16, "mul": 16, "batch_norm": 16, "add": 9}
    assert number == 106


@pytest.mark.parametrize(
    "name, size, expected",
    [
        ("resnet20", 32, (19, {"relu": 19}, 16_384)),
        ("mobilenet_v1", 224, (27, {"relu": 27}, 802_816)),
        # Its expansion at t = 1 adds one ReLU to torchvision's 62.
        ("mobilenet_v2_relu", 224, (63, {"relu": 36, "batch_norm": 17, "add": 10}, None)),
    ],
)
def test_activation_outputs_of_own_networks(name, size, expected):
    from common.models import build_model

    number, words, largest = counts(build_model(name), size)
    assert (number, words) == expected[:2]
    assert expected[2] in (None, largest)


def test_resnet20_elements_per_stage():
    from common.models import build_model

    graph_module, sites = sites_of(build_model("resnet20"), 3, 32, 32)
    chosen = activation_outputs(sites, graph_module)
    assert [site.num_elements for site in chosen] == [16384] * 7 + [8192] * 6 + [4096] * 6
    assert all(site.non_negative for site in chosen)


@pytest.mark.parametrize(
    "layers, chosen",
    [
        ([nn.Conv2d(3, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 2)], ["_1.output"]),
        ([nn.Conv2d(3, 4, 3), nn.MaxPool2d(2), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1)], ["_3.output"]),
        ([nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)], ["_1.output"]),
        ([nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1), nn.Sigmoid()], ["_0.output"]),
        ([nn.Conv2d(3, 4, 3), nn.ReLU(), nn.ReLU6(), nn.Dropout(), nn.Conv2d(4, 4, 1)], ["_1.output", "_2.output"]),
    ],
)
def test_activation_outputs_of_chains(layers, chosen):
    graph_module, sites = sites_of(nn.Sequential(*layers), 3, 8, 8)
    assert [site.name for site in activation_outputs(sites, graph_module)] == chosen


def test_shapes_do_not_depend_on_the_batch_and_nothing_changes(shared_relu):
    graph_module, sites = sites_of(shared_relu.train(), 3, 8, 8)
    random_state = torch.get_rng_state()
    state = {key: value.clone() for key, value in graph_module.state_dict().items()}
    assert find_sites(graph_module, torch.randn(5, 3, 8, 8, generator=torch.Generator())) == sites
    assert graph_module.training
    assert all(torch.equal(value, state[key]) for key, value in graph_module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random_state)


def test_modules_that_need_real_numbers_are_run_on_them():
    """Meta tensors have no values; the propagation then falls back to the example, statistics and modes untouched."""

    class NeedsNumbers(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            if float(x.abs().max()) > 0 or self.training:
                return super().forward(x)
            return x

    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.relu = nn.Conv2d(3, 4, 3), NeedsNumbers(4), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.relu(self.norm(self.conv(x)))

    network = Whole().train()
    graph_module, sites = sites_of(network, 3, 8, 8)
    assert by_name(sites)["norm.output"].shape == (4, 6, 6)
    assert int(network.norm.num_batches_tracked) == 0
    assert graph_module.norm.training


def test_sites_stay_the_same_when_quantizers_are_in(shared_relu):
    graph_module, sites = sites_of(shared_relu, 3, 8, 8)
    chosen = activation_outputs(sites, graph_module)

    class Unexpected(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("a quantizer was run: an observer would have recorded the example")

    insert_quantizers(graph_module, {site.name: Unexpected() for site in sites})
    assert find_sites(graph_module, torch.zeros(1, 3, 8, 8)) == sites
    assert activation_outputs(sites, graph_module) == chosen
