"""Bias correction: golden numbers, exact channel means from data, and walking two networks side by side."""

import copy

import pytest
import torch
from torch import Tensor, nn

from common.calibration.batch_norm import expected_inputs
from common.errors import UserError
from common.graph import insert_quantizers, trace
from common.graph.bias_correction import bias_correction, correct_biases, correct_biases_from_data, walk_together
from common.graph.folding import fold_batch_norms
from common.models import build_model
from common.quantizers import AffineQuantizer


def quantize_weights(graph: torch.fx.GraphModule, layers: list[str], bit_width: int) -> None:
    quantizers = {}
    for name in layers:
        quantizer = AffineQuantizer(bit_width)
        quantizer.scale.fill_(graph.get_submodule(name).weight.detach().abs().max() / (2 ** (bit_width - 1) - 1))
        quantizers[f"{name}.weight"] = quantizer
    insert_quantizers(graph, quantizers)


def layers_of(graph: torch.fx.GraphModule) -> list[str]:
    return [name for name, m in graph.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))]


def pair(network: nn.Module, images: Tensor, bit_width: int = 3):
    """(quantized graph, the same without quantizers, statistics)"""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
    with torch.no_grad():
        network.train()(images)
    graph = trace(network.eval(), images)
    statistics = fold_batch_norms(graph)
    reference = copy.deepcopy(graph)
    quantize_weights(graph, layers_of(graph), bit_width)
    return graph, reference, statistics


def test_bias_correction():
    error = torch.tensor([[0.02, -0.01], [0.0, 0.03]], dtype=torch.float64)
    expected_input = torch.tensor([0.6977965574013061, 0.3989422804014327], dtype=torch.float64)
    wanted = [-0.009966508344011795, -0.01196826841204298]
    assert bias_correction(error, expected_input).tolist() == pytest.approx(wanted, abs=1e-12)
    kernel = error[:, :, None, None] * torch.tensor([[0.25, 0.5], [0.5, -0.25]], dtype=torch.float64)
    assert bias_correction(kernel, expected_input).tolist() == pytest.approx(wanted, abs=1e-12)


def test_grouped_layers_see_the_channels_of_their_group():
    error, mean = torch.randn(6, 2, 3, 3), torch.randn(4)
    wanted = [-sum(error[i, j].sum() * mean[(i // 3) * 2 + j] for j in range(2)) for i in range(6)]
    torch.testing.assert_close(bias_correction(error, mean, groups=2), torch.stack(wanted))


def test_the_correction_from_batch_norm_takes_the_shift_out():
    """White noise through one layer: E[x] of the second is exact, and so is the correction, padding apart."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, bias=False))
    images = torch.randn(64, 3, 24, 24)
    graph, reference, statistics = pair(network, images)
    expected = expected_inputs(graph, statistics)

    def shift() -> float:
        with torch.no_grad():
            x = torch.relu(reference.get_submodule("0")(images))
            error = graph.get_submodule("3")(x) - reference.get_submodule("3")(x)
        return float(error.mean((0, 2, 3)).abs().max())

    before = shift()
    corrections = correct_biases(graph, expected)
    assert list(corrections) == ["3"] and corrections["3"].abs().max() > 0.5 * before
    assert shift() < 0.1 * before
    assert reference.get_submodule("3").bias is None
    torch.testing.assert_close(graph.get_submodule("3").bias.detach(), corrections["3"])


def test_the_weights_before_quantization_can_be_given():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
    graph = trace(network, torch.randn(2, 4))
    original = graph.get_submodule("2").weight.detach().clone()
    quantize_weights(graph, ["2"], 3)
    on_the_grid = graph.get_submodule("2")
    with torch.no_grad():
        on_the_grid.weight.copy_(on_the_grid.weight_quantizer(on_the_grid.weight))
    mean = {"2": torch.tensor([0.3, 0.5, 0.1])}
    error = on_the_grid.weight.detach() - original
    nothing = correct_biases(copy.deepcopy(graph), mean)["2"]
    assert nothing.abs().max() < 1e-6
    graph.train()
    torch.testing.assert_close(correct_biases(graph, mean, {"2": original})["2"], -error @ mean["2"])
    assert all(module.training for module in graph.modules())


@pytest.mark.parametrize("name, size", [("mobilenet_v2", 64), ("mobilenet_v2_relu", 64), ("resnet20", 32)])
def test_from_data_every_layer_has_the_means_of_the_float_network(name, size):
    torch.manual_seed(0)
    images = torch.randn(6, 3, size, size)
    graph, reference, _ = pair(build_model(name), images, bit_width=6)
    with torch.no_grad():
        expected, before = reference(images), (graph(images) - reference(images)).square().mean()
    corrections = correct_biases_from_data(graph, reference, images.split(4))
    assert list(corrections) == layers_of(reference)
    for call in walk_together(graph, reference, images.split(4)):
        axis = 1 if isinstance(reference.get_submodule(call.name), nn.Conv2d) else -1
        with torch.no_grad():
            means = [
                torch.cat([network.get_submodule(call.name)(x) for x in inputs]).movedim(axis, 0).flatten(1).mean(1)
                for network, inputs in ((graph, call.inputs), (reference, call.reference_inputs))
            ]
        torch.testing.assert_close(*means, atol=2e-5 * float(means[1].abs().max().clamp(min=1)), rtol=1e-4)
    with torch.no_grad():
        assert torch.equal(reference(images), expected)
        assert (graph(images) - expected).square().mean() < before


def test_only_the_layers_asked_for_are_corrected():
    images = torch.randn(2, 3, 32, 32)
    graph, reference, _ = pair(build_model("resnet20"), images)
    before = copy.deepcopy(graph.state_dict())
    corrections = correct_biases_from_data(graph, reference, [images], layers=["linear"])
    changed = [key for key, value in graph.state_dict().items() if not torch.equal(value, before[key])]
    assert list(corrections) == ["linear"] and changed == ["linear.bias"]
    with pytest.raises(UserError, match="unknown layer conv9"):
        correct_biases_from_data(graph, reference, [images], layers=["conv9"])


def test_a_layer_called_twice_is_corrected_once(shared_relu):
    images = torch.randn(4, 3, 8, 8)
    graph, reference, _ = pair(shared_relu, images)
    assert list(correct_biases_from_data(graph, reference, [images])) == ["stem", "twice", "last", "fc"]


def test_both_networks_run_as_they_would_alone(shared_relu):
    images = torch.randn(4, 3, 8, 8)
    graph, reference, _ = pair(shared_relu, images)
    quantizer = AffineQuantizer(4, signed=False)
    quantizer.scale.fill_(0.3)
    insert_quantizers(graph, {"relu.output": quantizer})
    seen = {graph: [], reference: []}
    for network, inputs in seen.items():
        layers = [network.get_submodule(name) for name in layers_of(reference)]
        hooks = [layer.register_forward_pre_hook(lambda m, x, inputs=inputs: inputs.append(x[0])) for layer in layers]
        with torch.no_grad():
            network.eval()(images)
        for hook in hooks:
            hook.remove()
    graph.train()
    calls = list(walk_together(graph, reference, [images[:1], images[1:]]))
    assert [call.name for call in calls] == ["stem", "twice", "twice", "last", "fc"]
    for i, call in enumerate(calls):
        assert not call.inputs[0].requires_grad
        torch.testing.assert_close(torch.cat(call.inputs), seen[graph][i])
        torch.testing.assert_close(torch.cat(call.reference_inputs), seen[reference][i])
    assert graph.training and not reference.training and torch.is_grad_enabled()


def test_modes_come_back_when_the_walk_ends_early():
    images = torch.randn(1, 3, 32, 32)
    graph, reference, _ = pair(build_model("resnet20"), images)
    graph.train()
    walk = walk_together(graph, reference, [images])
    next(walk)
    assert not graph.training and torch.is_grad_enabled()
    walk.close()
    assert graph.training


def test_different_networks_are_refused():
    images = torch.randn(1, 3, 32, 32)
    graph, _, _ = pair(build_model("resnet20"), images)
    other = trace(build_model("vgg_small").eval(), images)
    with pytest.raises(UserError, match="is not in the reference"):
        correct_biases_from_data(graph, other, [images])
