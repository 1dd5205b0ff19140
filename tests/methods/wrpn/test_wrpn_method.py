"""WRPN as a method: grids, the limit of the start weights, widened networks."""

import pytest
import torch

from common.errors import UserError
from common.models import build_model, model_info
from common.models.widened import widen, widened
from common.quantizers.wrpn import WRPN as Grid
from methods.wrpn import WRPN


def test_grids():
    module = WRPN(weight_bit_width=2, activation_bit_width=2)
    weight, inputs = module.quantizers["conv2.weight"], module.quantizers["conv2.input"]
    assert weight(torch.linspace(-2, 2, 99)).unique().tolist() == [-1, 0, 1]
    assert inputs(torch.linspace(-2, 2, 99)).unique().tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert type(WRPN(weight_bit_width=1).quantizers["conv2.weight"]).__name__ == "BWN"


def test_constant_start_keeps_the_range_and_least_squares_finds_one():
    w = 0.1 * torch.randn(4000, generator=torch.Generator().manual_seed(0))
    paper, ours = Grid(2), Grid(2, start="mse")
    paper.calibrate(w)
    ours.calibrate(w)
    assert paper.limit == 1 and not paper(w).any()
    assert ours.limit.item() == pytest.approx(0.1 * 1.2240, rel=0.05)  # of three levels for a normal distribution
    torch.testing.assert_close(ours(w).unique(), ours.limit * torch.tensor([-1.0, 0.0, 1.0]))
    assert torch.equal(ours.inference_form()(w) + 0.0, ours(w) + 0.0)


def test_gradient_ends_at_the_limit():
    grid = Grid(3)
    grid.limit.fill_(0.5)
    w = torch.tensor([-0.51, -0.5, 0.1, 0.5, 0.51], requires_grad=True)
    grid(w).sum().backward()
    assert w.grad.tolist() == [0, 1, 1, 1, 0]


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("base", ["resnet20", "resnet34"])
def test_number_of_parameters_of_a_widened_network(base, width):
    with torch.device("meta"):
        plain = build_model(base)
    names = [name for name, p in plain.named_parameters() if p.dim() > 1]
    expected = 0
    for name, parameter in plain.named_parameters():
        factor = width**2 if parameter.dim() > 1 else width
        if name in (names[0], names[-1]):  # image channels and classes stay
            factor = width
        expected += parameter.numel() * (1 if name == names[-1].replace("weight", "bias") else factor)
    assert sum(p.numel() for p in build_model(f"common.models.widened.{base}", width=width).parameters()) == expected


def test_a_widened_network_starts_with_the_spread_of_the_plain_one_for_its_inputs():
    torch.manual_seed(0)
    plain, wide = build_model("resnet20"), widened("resnet20", 4)
    ratio = wide.layer3[0].conv2.weight.std() / plain.layer3[0].conv2.weight.std()
    assert ratio.item() == pytest.approx(0.5, rel=0.05)


def test_depthwise_and_grouped_convolutions_widen():
    network = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 1), torch.nn.Conv2d(8, 8, 3, groups=8), torch.nn.Conv2d(8, 8, 3, groups=2),
        torch.nn.Flatten(), torch.nn.Linear(8 * 4, 5),
    )  # fmt: skip
    widen(network, 2)
    assert [tuple(m.weight.shape) for m in network if hasattr(m, "weight")] == [
        (16, 3, 1, 1), (16, 1, 3, 3), (16, 8, 3, 3), (5, 64),
    ]  # fmt: skip
    assert network(torch.zeros(2, 3, 6, 6)).shape == (2, 5)


def test_a_widened_network_is_known_by_its_path():
    assert model_info("common.models.widened.resnet20").input_shape == (3, 32, 32)
    module = WRPN(model="common.models.widened.digits_net", model_args={"width": 2})
    assert module.sites["conv2.weight"].num_elements == 4 * 4608
    assert module(torch.zeros(2, 1, 8, 8)).shape == (2, 10)


def test_bad_settings():
    with pytest.raises(UserError, match="width must be at least 1, got 0"):
        widened("digits_net", 0)
    with pytest.raises(UserError, match="start must be constant or mse, got 'max'"):
        WRPN(start="max")
