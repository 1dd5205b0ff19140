"""Tracing changes nothing: outputs, running statistics, gradients, names, modes."""

import copy
import importlib.util

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn

from common.errors import UserError
from common.graph import find_sites, trace

needs_timm = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")


def images(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(7))


def test_a_small_network_with_shared_modules_is_unchanged(shared_relu, traced_copy, assert_same_behaviour):
    graph_module, reference = traced_copy(shared_relu, images(16))
    assert_same_behaviour(reference, graph_module, images(16))


@pytest.mark.parametrize(
    "name, size",
    [("resnet18", 64), ("resnet50", 32), ("mobilenet_v2", 64), ("efficientnet_b0", 64), ("squeezenet1_1", 64)],
)
def test_torchvision_networks_are_unchanged(name, size, traced_copy, assert_same_behaviour):
    graph_module, reference = traced_copy(torchvision.models.get_model(name), images(size))
    assert_same_behaviour(reference, graph_module, images(size))


@needs_timm
@pytest.mark.parametrize("settings", [{}, {"drop_path_rate": 0.2}, {"drop_path_rate": 0.2, "drop_rate": 0.3}])
def test_timm_efficientnet_is_unchanged(settings, traced_copy, assert_same_behaviour):
    import timm

    graph_module, reference = traced_copy(timm.create_model("efficientnet_b0", **settings), images())
    assert_same_behaviour(reference, graph_module, images())


@needs_timm
def test_plain_symbolic_trace_of_timm_efficientnet_is_wrong_in_train_mode(assert_same_behaviour):
    """What `trace` is for: fx alone freezes the mode inside BatchNormAct2d, and says nothing."""
    import timm

    network = timm.create_model("efficientnet_b0").eval()
    reference = copy.deepcopy(network)
    plain = torch.fx.symbolic_trace(network)
    with torch.no_grad():
        assert torch.equal(plain(images()), reference(images()))
    with pytest.raises(AssertionError, match="differ"):
        assert_same_behaviour(reference, plain, images())


@pytest.mark.parametrize("name", ["resnet20", "digits_net", "vgg_small", "mobilenet_v1", "mobilenet_v2_relu"])
def test_own_networks_are_unchanged(name, traced_copy, assert_same_behaviour):
    from common.models import build_model, model_info

    channels, size, _ = model_info(name).input_shape
    x = torch.randn(2, channels, min(size, 64), min(size, 64))
    graph_module, reference = traced_copy(build_model(name), x)
    assert_same_behaviour(reference, graph_module, x)


class WithLeftovers(nn.Module):
    """A module that is never called, one with two names, a non-persistent buffer, a tensor and a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
        self.second = nn.Conv2d(4, 4, 1)
        self.first = nn.Conv2d(3, 4, 1)
        self.block = nn.ModuleDict({"alias": self.second})
        self.alias = self.first
        self.gain = nn.Parameter(torch.ones(4, 1, 1))
        self.register_buffer("shift", torch.zeros(1), persistent=False)
        self.tensor = torch.tensor(2.0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.first(x)) * self.gain + self.shift
        return self.block["alias"](x * self.tensor) + torch.tensor([0.5])


def test_state_dict_keeps_keys_order_and_objects(traced_copy, assert_same_behaviour):
    network = WithLeftovers()
    attributes = set(network.__dict__)
    graph_module, reference = traced_copy(network, images(8))
    assert list(graph_module.state_dict()) == list(reference.state_dict())
    parameters = dict(graph_module.named_parameters())
    for name, parameter in network.named_parameters():
        assert parameters[name] is parameter
    assert set(network.__dict__) == attributes
    with torch.no_grad():
        assert torch.equal(graph_module(images(8)), reference(images(8)))
        graph_module.load_state_dict({key: torch.ones_like(v) for key, v in reference.state_dict().items()})
        reference.load_state_dict(graph_module.state_dict())
        assert torch.equal(graph_module(images(8)), reference(images(8)))
        duplicate = copy.deepcopy(graph_module)
        assert torch.equal(duplicate(images(8)), reference(images(8)))
    assert list(duplicate.state_dict()) == list(reference.state_dict())


def test_arithmetic_on_buffers_stays_in_the_graph():
    """Evaluated while tracing, it would keep the values of that moment."""

    class Shift(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            return x - (self.mean + 1.0)

    graph_module = trace(nn.Sequential(Shift()), images(8))
    graph_module.load_state_dict({"0.mean": torch.tensor([4.0])})
    assert torch.equal(graph_module(images(8)), images(8) - 5.0)


@needs_timm
def test_state_dict_of_a_split_batch_norm_keeps_its_keys():
    import timm

    network = timm.create_model("efficientnet_b0").train()
    keys = list(network.state_dict())
    graph_module = trace(network, images())
    assert list(graph_module.state_dict()) == keys
    assert graph_module.bn1.weight is network.bn1.weight
    assert graph_module.bn1.running_mean is network.bn1.running_mean
    assert type(graph_module.bn1) is nn.BatchNorm2d
    assert type(network.bn1).__name__ == "BatchNormAct2d"


def test_split_batch_norm_may_have_an_activation_with_parameters(traced_copy, assert_same_behaviour):
    class Fused(nn.BatchNorm2d):
        def __init__(self) -> None:
            super().__init__(4)
            self.act = nn.PReLU()

        def forward(self, x: Tensor) -> Tensor:
            return self.act(F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, self.training))

    class Counting(Fused):
        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.num_batches_tracked.add_(1)
            return super().forward(x)

    graph_module, reference = traced_copy(nn.Sequential(nn.Conv2d(3, 4, 3), Counting()), images(8))
    assert list(graph_module.state_dict()) == list(reference.state_dict())
    assert_same_behaviour(reference, graph_module, images(8))
    with pytest.raises(UserError, match=r"1 \(Fused\): it does something else than batch norm"):
        trace(nn.Sequential(nn.Conv2d(3, 4, 3), Fused()), images(8))


def test_tracing_leaves_modes_statistics_and_random_state_alone(shared_relu):
    shared_relu.train()
    shared_relu.bn.eval()
    modes = [m.training for m in shared_relu.modules()]
    state = {k: v.clone() for k, v in shared_relu.state_dict().items()}
    random_state = torch.get_rng_state()
    graph_module = trace(shared_relu, images(16))
    assert [m.training for m in shared_relu.modules()] == modes
    assert graph_module.training and not graph_module.bn.training and graph_module.relu.training
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(v, state[k]) for k, v in shared_relu.state_dict().items())


class FunctionalDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.dropout2d(self.conv(x), 0.4, training=self.training)
        x = F.dropout(x, p=0.3, training=self.training)
        return F.dropout(x, 0.5, training=True)  # always on: stays a function


def test_functional_dropout_follows_the_mode(traced_copy, assert_same_behaviour):
    graph_module, reference = traced_copy(FunctionalDropout().eval(), images(8))
    assert [type(m) for m in graph_module.children()] == [nn.Conv2d, nn.Dropout2d, nn.Dropout]
    assert_same_behaviour(reference, graph_module, images(8))


def test_modules_that_read_the_mode_stay_whole(traced_copy, assert_same_behaviour):
    class Noise(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + (lambda: torch.randn_like(x) if self.training else 0.0)()

    class OwnNorm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mean", torch.zeros(1))

        def forward(self, x: Tensor) -> Tensor:
            if self.training:
                self.mean.mul_(0.9).add_(0.1 * x.detach().mean())
            return x - self.mean

    network = nn.Sequential(nn.Conv2d(3, 4, 3), OwnNorm(), Noise())
    graph_module, reference = traced_copy(network, images(8))
    assert_same_behaviour(reference, graph_module, images(8))


class Branching(nn.Module):
    def __init__(self, forward) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.relu = nn.ReLU()
        self.register_buffer("mean", torch.zeros(4))
        self.register_buffer("var", torch.ones(4))
        self.rule = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.rule(self, self.conv(x))


@pytest.mark.parametrize(
    "rule, message",
    [
        (lambda m, x: x if x.sum() > 0 else -x, r"cannot trace inner \(Branching\): symbolically traced variables"),
        (lambda m, x: F.batch_norm(x, m.mean, m.var, training=m.training), "cannot trace node batch_norm: it differs"),
        (lambda m, x: m.relu(x) if m.training else x, "cannot trace node inner_relu: "),
        (lambda m, x: x * 2 if m.training else x * 3, "cannot trace node mul: it differs between train and eval mode"),
        (lambda m, x: x + torch.rand(4, 1, 1), "cannot trace Outer: its forward draws random numbers"),
        (lambda m, x: nn.Linear(3, 3)(x), r"cannot trace Linear"),
    ],
)
def test_what_cannot_be_traced_is_named_in_one_line(rule, message):
    class Outer(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Branching(rule)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)

    network = Outer()
    with pytest.raises(UserError, match=message) as error:
        trace(network, images(8))
    assert "\n" not in str(error.value)
    assert network.training and all(module.training for module in network.modules())


def test_a_graph_that_computes_something_else_is_refused():
    class Stateful(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            Stateful.calls += 1
            return x * (1.0 if Stateful.calls <= 2 else 3.0)  # two tracing passes, then another result

    with pytest.raises(UserError, match="gives other outputs than the network"):
        trace(nn.Sequential(nn.Conv2d(3, 4, 3), Stateful()), images(8))


def test_the_example_must_fit(shared_relu):
    with pytest.raises(UserError, match="does not run on the example input"):
        trace(shared_relu, torch.zeros(2, 5, 8, 8))
    with pytest.raises(UserError, match="no value for input"):
        trace(nn.Sequential(nn.ReLU()), ())


def test_optional_arguments_keep_their_defaults():
    class Optional(nn.Module):
        def forward(self, x: Tensor, y: Tensor | None = None, scale: float = 2.0) -> Tensor:
            return x * scale if y is None else x + y

    x = images(8)
    assert torch.equal(trace(Optional(), x)(x), x * 2.0)
    assert torch.equal(trace(Optional(), (x, x))(x, x), x + x)


def test_networks_on_the_meta_device_are_traced(shared_relu):
    """Sites and layer tables of large networks without allocating them."""
    x = torch.zeros(1, 3, 16, 16, device="meta")
    assert len(find_sites(trace(shared_relu.to("meta"), x), x)) == 26


def test_a_deep_copy_is_independent(shared_relu, assert_same_behaviour):
    graph_module = trace(shared_relu, images(16))
    duplicate = copy.deepcopy(graph_module)
    assert list(duplicate.state_dict()) == list(graph_module.state_dict())
    assert not {p.data_ptr() for p in duplicate.parameters()} & {p.data_ptr() for p in graph_module.parameters()}
    assert_same_behaviour(graph_module, duplicate, images(16))
