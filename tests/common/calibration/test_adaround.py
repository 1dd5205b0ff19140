"""AdaRound: its formulas, and that a layer's output comes out better than with nearest rounding."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from common.calibration.adaround import (
    AdaptiveRounding,
    adaround,
    annealed_beta,
    initial_rounding,
    rectified_sigmoid,
    rounding_regularizer,
)
from common.calibration.observers import mse_max_abs, set_affine_range, set_symmetric_range
from common.errors import UserError
from common.graph import insert_quantizers, quantizers, trace
from common.graph.folding import fold_batch_norms
from common.models import build_model
from common.quantizers import AffineQuantizer, Quantizer

V = torch.tensor([-4.0, -2.5, -1.0, 0.0, 1.0, 2.5, 4.0], dtype=torch.float64)


def with_weight_quantizers(graph, bit_width, layers=None, channels=True):
    """(graph with MSE-calibrated symmetric weight quantizers, a copy without)"""
    reference = copy.deepcopy(graph)
    chosen = {}
    for name, module in graph.named_modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)) and (layers is None or name in layers):
            quantizer = AffineQuantizer(bit_width, channels=module.weight.shape[0] if channels else None)
            set_symmetric_range(quantizer, mse_max_abs(module.weight, bit_width, axis=0 if channels else None))
            chosen[f"{name}.weight"] = quantizer
    insert_quantizers(graph, chosen)
    return graph.eval(), reference.eval()


# formulas


def test_adaround_rectified_sigmoid_and_regularizer():
    h = [0.0, 0.0, 0.22272970564399416, 0.5000000000000001, 0.777270294356006, 1.0, 1.0]
    assert rectified_sigmoid(V).tolist() == pytest.approx(h, abs=1e-12)
    at_20 = [0.0, 0.0, 0.9999924374757063, 1.0, 0.9999924374757063, 0.0, 0.0]
    at_2 = [0.0, 0.0, 0.6924847354709356, 1.0, 0.6924847354709351, 0.0, 0.0]
    assert rounding_regularizer(V, 20).tolist() == pytest.approx(at_20, abs=1e-12)
    assert rounding_regularizer(V, 2).tolist() == pytest.approx(at_2, abs=1e-12)


def test_adaround_init_leaves_the_weights_as_they_are():
    fraction = torch.tensor([0.1, 0.25, 0.5, 0.9], dtype=torch.float64)
    v = [-1.6094379124341005, -0.887303195000903, -4.440892098500625e-16, 1.6094379124340994]
    assert initial_rounding(fraction).tolist() == pytest.approx(v, abs=1e-12)
    fraction = torch.linspace(0, 0.999, 500, dtype=torch.float64)
    torch.testing.assert_close(rectified_sigmoid(initial_rounding(fraction)), fraction, atol=1e-12, rtol=0)


def test_adaround_saturates_beyond_log_11():
    """(zeta - gamma) sigmoid(V) + gamma reaches 0 and 1 at |V| = 2.3978952727983707; beyond, the gradient is 0."""
    v = torch.tensor([-2.4, -2.39, 2.39, 2.4], dtype=torch.float64, requires_grad=True)
    h = rectified_sigmoid(v)
    h.sum().backward()
    assert h[0] == 0 and h[3] == 1 and 0 < h[1] < 0.01 and 0.99 < h[2] < 1
    sigmoid = torch.sigmoid(v.detach())
    wanted = 1.2 * sigmoid * (1 - sigmoid) * torch.tensor([0.0, 1.0, 1.0, 0.0])
    torch.testing.assert_close(v.grad, wanted)
    assert math.log(11) == pytest.approx(2.3978952727983707, abs=1e-12)
    assert initial_rounding(torch.zeros(1, dtype=torch.float64)).item() == pytest.approx(-2.3978952727983707, abs=1e-9)


def test_gradients_of_the_smooth_parts():
    v = torch.linspace(-2.2, 2.2, 12, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rectified_sigmoid, (v,))
    assert torch.autograd.gradcheck(lambda v: rounding_regularizer(v, 4.0), (v,))


def test_beta_falls_by_a_cosine_after_the_warm_start():
    assert [annealed_beta(step, 1000) for step in (0, 200, 1000)] == pytest.approx([20, 20, 2])
    assert annealed_beta(600, 1000) == pytest.approx(11)
    assert annealed_beta(400, 1000) == pytest.approx(2 + 9 * (1 + math.cos(math.pi / 4)))


@pytest.mark.parametrize("channels", [None, 3])
@pytest.mark.parametrize("affine", [False, True])
def test_soft_weights_start_at_the_weights_and_end_on_the_grid(channels, affine):
    torch.manual_seed(0)
    weight = torch.randn(3, 2, 3, 3)
    grid = AffineQuantizer(3, channels=channels)
    rows = weight.flatten(1) if channels else weight.reshape(1, -1)
    if affine:
        low, high = 0.8 * rows.amin(1), 0.8 * rows.amax(1)
        set_affine_range(grid, *((low, high) if channels else (low[0], high[0])))
    else:
        set_symmetric_range(grid, 0.8 * rows.abs().amax(1) if channels else 0.8 * weight.abs().max())
    rounding = AdaptiveRounding(weight, grid)
    soft = rounding()
    low, high = grid(torch.full_like(weight, -99)), grid(torch.full_like(weight, 99))
    torch.testing.assert_close(soft, torch.minimum(torch.maximum(weight, low), high), atol=1e-5, rtol=0)
    assert torch.equal(grid(rounding.rounded()), rounding.rounded())
    # up or down, and nowhere else
    assert ((rounding.rounded() - grid(weight)).abs() <= rounding.scale * 1.001).all()
    with torch.no_grad():
        rounding.v.fill_(3.0)
    assert rounding.is_settled() and torch.equal(rounding(), rounding.rounded())
    up = torch.minimum(rounding.scale * (torch.floor(weight / rounding.scale) + 1), high)
    torch.testing.assert_close(rounding(), torch.maximum(up, low))


# whole networks


@pytest.fixture(scope="module")
def resnet20():
    torch.manual_seed(0)
    network = build_model("resnet20")
    images = torch.randn(48, 3, 16, 16).cumsum(-1) / 4  # neighbours alike, as in pictures
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
    with torch.no_grad():
        network.train()(images)
    graph = trace(network.eval(), images[:1])
    fold_batch_norms(graph)
    return graph, images


@pytest.mark.parametrize("bit_width", [3, 4])
def test_on_the_calibration_set_it_is_better_than_nearest_rounding(resnet20, bit_width):
    graph, images = resnet20
    layers = ["conv1", "layer1.0.conv1", "linear"]
    network, reference = with_weight_quantizers(copy.deepcopy(graph), bit_width, layers)
    nearest = copy.deepcopy(network)
    finished = []
    reports = adaround(
        network, reference, images.split(16), steps=200, progress=lambda name, report: finished.append(name)
    )
    assert list(reports) == finished == layers
    for report in reports.values():
        assert report.loss <= report.nearest_loss
        assert report.trained_loss < 0.9 * report.nearest_loss and report.changed > 0
    for name in layers:
        layer = network.get_submodule(name)
        assert torch.equal(layer.weight_quantizer(layer.weight), layer.weight)
        step = layer.weight_quantizer.scale.reshape(-1, *[1] * (layer.weight.dim() - 1))
        original = reference.get_submodule(name).weight
        inside = original.abs() <= step * (2 ** (bit_width - 1) - 1)
        assert ((layer.weight - original).abs() <= step * 1.001)[inside].all()
    with torch.no_grad():
        expected = reference(images)
        errors = [(candidate(images) - expected).square().mean() for candidate in (network, nearest)]
    assert errors[0] < errors[1]
    # the traced network, whose layers the reference has, is not touched
    assert torch.equal(graph.get_submodule("conv1").weight, reference.get_submodule("conv1").weight)


def test_the_first_layers_loss_is_the_error_of_its_activation(resnet20):
    graph, images = resnet20
    network, reference = with_weight_quantizers(copy.deepcopy(graph), 3, ["conv1"])
    report = adaround(network, reference, [images], steps=20)["conv1"]

    def loss(candidate):
        with torch.no_grad():
            difference = torch.relu(candidate.get_submodule("conv1")(images)) - torch.relu(
                reference.get_submodule("conv1")(images)
            )
        return difference.square().sum(1).mean().item()

    assert loss(network) == pytest.approx(report.loss, rel=1e-4)
    nearest, _ = with_weight_quantizers(copy.deepcopy(graph), 3, ["conv1"])
    assert loss(nearest) == pytest.approx(report.nearest_loss, rel=1e-4)


def test_the_same_seed_gives_the_same_rounding(resnet20):
    graph, images = resnet20
    found = []
    for seed in (0, 0, 1):
        network, reference = with_weight_quantizers(copy.deepcopy(graph), 3, ["conv1"])
        adaround(network, reference, [images], steps=50, batch_size=2, seed=seed)
        found.append(network.get_submodule("conv1").weight.clone())
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


def test_without_training_nearest_rounding_is_kept(resnet20):
    graph, images = resnet20
    network, reference = with_weight_quantizers(copy.deepcopy(graph), 3, ["conv1"])
    report = adaround(network, reference, [images], steps=0)["conv1"]
    assert report.changed == 0 and report.loss == report.nearest_loss and report.steps == 0
    layer = network.get_submodule("conv1")
    assert torch.equal(layer.weight, layer.weight_quantizer(reference.get_submodule("conv1").weight))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_small_layer_gets_one_of_the_best_of_all_roundings(seed):
    torch.manual_seed(seed)
    linear = nn.Linear(8, 1, bias=False)
    x = torch.randn(256, 3) @ torch.randn(3, 8) + 0.1 * torch.randn(256, 8)  # correlated: nearest is not the best
    network, reference = with_weight_quantizers(trace(nn.Sequential(linear), x), 3, channels=False)
    report = adaround(network, reference, [x], steps=600, batch_size=256, learning_rate=0.03)["0"]
    weight, scale = linear.weight.detach(), network.get_submodule("0").weight_quantizer.scale
    choices = torch.tensor(list(itertools.product([0.0, 1.0], repeat=8)))
    candidates = scale * torch.clamp(torch.floor(weight / scale) + choices, -3, 3)
    losses = ((candidates - weight) @ x.T).square().mean(1)
    assert (losses < 0.999 * report.loss).sum() <= 3  # of 256
    assert report.steps < 600  # every rounding had settled


def test_later_layers_make_up_for_the_errors_of_earlier_ones():
    """x_hat comes from the rounded first layer, whose error the second can see and partly undo."""
    torch.manual_seed(0)
    graph = trace(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(1, 16))
    x = torch.randn(512, 16)
    network, reference = with_weight_quantizers(graph, 2, channels=False)
    report = adaround(network, reference, [x], steps=400)["2"]
    with torch.no_grad():
        error = (network(x) - reference(x)).square().sum(1).mean().item()
    assert report.loss == pytest.approx(error, rel=1e-4)  # asymmetric: the whole error so far, not this layer's own


@pytest.mark.parametrize("activation", [nn.ReLU6(), nn.SiLU(), nn.LeakyReLU(0.3)])
def test_the_activation_behind_is_part_of_the_loss(activation):
    torch.manual_seed(0)
    graph = trace(nn.Sequential(nn.Linear(6, 5), activation), torch.randn(1, 6))
    x = 4 * torch.randn(64, 6)
    network, reference = with_weight_quantizers(graph, 3)
    report = adaround(network, reference, [x], steps=0)["0"]
    with torch.no_grad():
        error = (network(x) - reference(x)).square().sum(1).mean().item()
    assert report.loss == pytest.approx(error, rel=1e-4)


def test_activation_quantizers_act_on_the_inputs(resnet20):
    graph, images = resnet20
    network, reference = with_weight_quantizers(copy.deepcopy(graph), 4, ["linear"])
    quantizer, edge = (AffineQuantizer(2, signed=False) for _ in range(2))
    quantizer.scale.fill_(1.0)
    edge.scale.fill_(0.5)
    insert_quantizers(network, {"layer3_2_relu2.output": quantizer, "linear.input": edge})
    report = adaround(network, reference, [images], steps=0)["linear"]
    with torch.no_grad():
        error = (network(images) - reference(images)).square().sum(1).mean().item()
    assert report.loss == pytest.approx(error, rel=1e-4)
    assert len(quantizers(network)) == 3


class Halves(Quantizer):
    def __init__(self) -> None:
        super().__init__()

    def forward(self, x):
        return x / 2

    def inference_form(self):
        return self


def test_what_cannot_be_rounded_is_refused(resnet20):
    graph, images = resnet20
    network, reference = with_weight_quantizers(copy.deepcopy(graph), 4, ["conv1"])
    with pytest.raises(UserError, match="unknown layer conv7"):
        adaround(network, reference, [images], layers=["conv7"])
    with pytest.raises(UserError, match=r"layer layer1\.0\.conv1 has no affine weight quantizer"):
        adaround(network, reference, [images[:2]], steps=0, layers=["layer1.0.conv1"])
    insert_quantizers(network, {"layer1.0.conv1.weight": Halves()})
    with pytest.raises(UserError, match=r"layer layer1\.0\.conv1 has no affine weight quantizer"):
        adaround(network, reference, [images[:2]], steps=0, layers=["layer1.0.conv1"])
