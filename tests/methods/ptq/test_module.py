"""The calibrator: what each setting does to weights, ranges, roundings and biases."""

import copy

import pytest
import torch

from common.calibration.aciq import ACIQObserver
from common.calibration.kl import KLObserver
from common.calibration.observers import (
    MeanExtremesObserver,
    MinMaxObserver,
    MSEObserver,
    PercentileObserver,
    set_affine_range,
)
from common.errors import UserError
from common.graph import remove_quantizers
from common.graph.bias_correction import walk_together
from common.quantizers import AffineQuantizer
from common.quantizers.kmeans import KMeansQuantizer
from methods.ptq import PTQ


@pytest.fixture(autouse=True)
def _one_seed():
    torch.manual_seed(0)


def trained_like(**settings):
    """A calibrator whose batch norms say something: uneven statistics, scales and shifts."""
    module = PTQ(**settings | {"fold_batch_norm": False, "equalization": False, "absorption": False})
    remove_quantizers(module.network)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for norm in (m for m in module.network.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            shape = norm.bias.shape
            norm.running_mean.copy_(0.3 * torch.randn(shape, generator=generator))
            norm.running_var.copy_(0.2 + torch.rand(shape, generator=generator))
            norm.weight.copy_(0.5 + torch.rand(shape, generator=generator))
            norm.bias.copy_(0.3 * torch.randn(shape, generator=generator))
    fold, equalization = settings.get("fold_batch_norm", True), settings.get("equalization", False)
    module.rewrite(fold, equalization, settings.get("absorption", False))
    module.insert(module._choose())
    return module


def batches(count=4, size=8):
    return [torch.randn(size, 1, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(count)]


def outputs(network, x):
    with torch.no_grad():
        return network.eval()(x)


def reference_of(module):
    reference = copy.deepcopy(module.network)
    remove_quantizers(reference)
    return reference


@pytest.mark.parametrize("settings", [{}, {"equalization": True}], ids=["folded", "equalized"])
def test_the_float_network_keeps_its_outputs(settings):
    x = torch.randn(16, 1, 8, 8)
    expected = outputs(reference_of(trained_like(fold_batch_norm=False)), x)
    found = outputs(reference_of(trained_like(**settings)), x)
    assert (found - expected).abs().max() < 1e-4 * expected.abs().max()


def test_every_weight_and_every_written_activation_has_a_grid():
    module = PTQ()
    assert sorted(module.quantizers_of("weight")) == sorted(f"{layer.name}.weight" for layer in module.layers)
    assert len(module.quantizers_of("tensor")) == 5  # the ReLUs, one behind the residual sum
    assert all(q.quant_min == 0 for q in module.quantizers_of("tensor").values())
    assert not module.quantizers_of("edge")


@pytest.mark.parametrize(
    "rule, first, last, last_input, others",
    [("same", 3, 3, 4, (3, 4)), ("8bit", 8, 8, 8, (3, 4)), ("float", 32, 32, 32, (3, 4))],
)
def test_first_and_last_layer_follow_their_rule(rule, first, last, last_input, others):
    module = PTQ(weight_bit_width=3, activation_bit_width=4, first_last=rule)
    widths = module.policy().sites
    assert widths.get("conv1.weight", 32) == first and widths.get("linear.weight", 32) == last
    assert widths.get("relu3.output", 32) == last_input  # what the last layer reads, behind the pooling
    assert (widths["conv2.weight"], widths["relu1.output"]) == others


def test_a_weights_only_run_has_no_activation_grids_at_the_ends_either():
    module = PTQ(weight_bit_width=3, activation_bit_width=32, first_last="8bit")
    assert not module.quantizers_of("tensor") and module.acr() == 1.0
    assert not module.needs_images


OBSERVERS = {
    "minmax": MinMaxObserver,
    "mean_extremes": MeanExtremesObserver,
    "percentile": lambda: PercentileObserver(99.0, symmetric=False),
    "mse": lambda: MSEObserver(symmetric=False),
    "aciq_laplace": lambda: ACIQObserver("laplace"),
    "aciq_gauss": lambda: ACIQObserver("gauss"),
    "kl": KLObserver,
}


@pytest.mark.parametrize("name", OBSERVERS)
def test_activation_ranges_are_the_observers_on_the_float_network(name):
    module = trained_like(activation_observer=name, percentile=99.0, activation_bit_width=4, weight_bit_width=2)
    network = reference_of(module)
    module.calibrate(batches())
    seen = []
    for x in batches():
        network.relu1.register_forward_hook(lambda m, i, o: seen.append(o.detach()))
        outputs(network, x)
        network.relu1._forward_hooks.clear()
    observer, expected = OBSERVERS[name](), AffineQuantizer(4, signed=False)
    for x in seen:
        observer.update(x)
    set_affine_range(expected, *observer.range(4, signed=False))
    found = module.quantizers["relu1.output"]
    torch.testing.assert_close((found.scale, found.zero_point), (expected.scale, expected.zero_point))


def test_the_moving_average_takes_the_first_batch_and_a_share_of_the_others():
    module = trained_like(activation_observer="moving_average", moving_average_momentum=0.25, activation_bit_width=8)
    network, tops = reference_of(module), []
    network.relu1.register_forward_hook(lambda m, i, o: tops.append(float(o.max())))
    for x in batches(2):
        outputs(network, x)
    module.calibrate(batches(2))
    top = tops[0] + 0.25 * (tops[1] - tops[0])
    assert float(module.quantizers["relu1.output"].scale) == pytest.approx(top / 255, rel=1e-5)


def test_symmetric_activations_have_zero_points_of_zero():
    module = trained_like(activation_grid="symmetric")
    module.calibrate(batches())
    assert all(float(q.zero_point) == 0 for q in module.quantizers_of("tensor").values())


@pytest.mark.parametrize("granularity, size", [("per_tensor", ()), ("per_channel", (16,))])
def test_weight_scales_come_per_tensor_or_per_channel(granularity, size):
    module = PTQ(weight_granularity=granularity)
    module.calibrate(batches(1))
    weight = module.network.get_parameter("conv1.weight")
    top = weight.detach().abs().max() if size == () else weight.detach().abs().amax((1, 2, 3))
    torch.testing.assert_close(module.quantizers["conv1.weight"].scale, top / 127)
    assert module.quantizers["conv1.weight"].scale.shape == size


def unread():
    raise AssertionError("images were asked for")
    yield


def test_the_data_free_settings_read_no_image():
    module = trained_like(
        activation_observer="batch_norm", bias_correction="analytic", equalization=True, absorption=True
    )
    assert not module.needs_images
    module.calibrate(unread())
    top = float(module.quantizers["relu1.output"].scale) * 255
    mean, std = module.statistics["conv1"].mean, module.statistics["conv1"].std
    assert top == pytest.approx(float((mean + 6 * std).max()), rel=1e-5)


def test_ranges_from_batch_norm_need_batch_norm():
    module = PTQ(activation_observer="batch_norm")
    module.statistics = {}
    with pytest.raises(UserError, match=r"batch_norm: no batch norm tells of relu1\.output"):
        module.calibrate([])
    module = PTQ(activation_bit_width=32, bias_correction="analytic")
    module.statistics = {}
    with pytest.raises(UserError, match="analytic: no batch norm of digits_net"):
        module.calibrate([])


@torch.no_grad()
def mean_shifts(network, reference, images):
    found = {}
    for call in walk_together(network, reference, images):
        layer, original = network.get_submodule(call.name), reference.get_submodule(call.name)
        axes = (0, 2, 3) if isinstance(layer, torch.nn.Conv2d) else 0
        y = torch.cat([layer(x) for x in call.inputs]).mean(axes)
        y_float = torch.cat([original(x) for x in call.reference_inputs])
        found[call.name] = float(((y - y_float.mean(axes)) / y_float.std()).abs().max())
    return found


def test_empirical_correction_gives_every_layer_the_float_means():
    module = trained_like(weight_bit_width=3, bias_correction="empirical")
    reference = reference_of(module)
    module.calibrate(batches())
    assert max(mean_shifts(module.network, reference, batches()).values()) < 1e-4


def test_analytic_correction_changes_biases_where_batch_norm_tells_of_the_input():
    found = {}
    for correction in ("none", "analytic"):
        module = trained_like(
            weight_bit_width=2, activation_bit_width=32, weight_granularity="per_tensor", bias_correction=correction
        )
        reference = reference_of(module)
        with torch.no_grad():
            before = {layer.name: reference.get_submodule(layer.name).bias.clone() for layer in module.layers}
        module.calibrate([])
        after = {name: module.network.get_submodule(name).bias for name in before}
        found[correction] = {name: float((after[name].detach() - before[name]).abs().max()) for name in before}
    assert max(found["none"].values()) == 0.0
    assert found["analytic"]["conv2"] > 0.01
    assert found["analytic"]["conv1"] == 0.0  # nothing is known about images


def test_adaround_puts_weights_on_their_grid_and_is_no_worse_than_nearest():
    module = trained_like(weight_bit_width=3, weight_range="mse", rounding="adaround", adaround_steps=60)
    lines = []
    module.calibrate(batches(), progress=lines.append)
    assert all(report.loss <= report.nearest_loss for report in module.rounding_reports.values())
    assert any(report.changed for report in module.rounding_reports.values())
    assert len(lines) == 1 + len(module.layers)
    for name, quantizer in module.quantizers_of("weight").items():
        weight = module.network.get_parameter(name)
        torch.testing.assert_close(quantizer(weight), weight)


def test_kmeans_shares_values():
    module = PTQ(weight_levels="kmeans", weight_granularity="per_tensor", weight_bit_width=3)
    module.calibrate(batches(1))
    quantizer = module.quantizers["conv2.weight"]
    assert isinstance(quantizer, KMeansQuantizer)
    assert quantizer(module.network.get_parameter("conv2.weight")).unique().numel() == 8


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"rounding": "up"}, "rounding must be one of nearest, adaround, got 'up'"),
        ({"activation_observer": "mean"}, "activation_observer must be one of minmax, moving_average"),
        ({"equalization": True, "fold_batch_norm": False}, "equalization needs folded batch norms"),
        ({"absorption": True}, "absorption follows equalization"),
        ({"weight_levels": "kmeans"}, "kmeans shares values per tensor"),
        ({"bias_correction": "moments", "weight_granularity": "per_tensor"}, "moments rescales output channels"),
        ({"calibration_images": 0}, "must be at least 1, got 0 and 16"),
        ({"weight_bit_width": 1}, "weight_bit_width must be at least 2, got 1"),
        ({"activation_bit_width": 17}, "bit_width must be in"),
    ],
)
def test_what_does_not_fit_is_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as error:
        PTQ(**settings)
    assert "\n" not in str(error.value)


@torch.no_grad()
def moments(network, reference, images):
    """Layer -> (mean, std) of each output channel, quantized and float."""
    found = {}
    for call in walk_together(network, reference, images):
        layer, original = network.get_submodule(call.name), reference.get_submodule(call.name)
        axis = 1 if isinstance(layer, torch.nn.Conv2d) else -1
        values = [layer(x).movedim(axis, 0).flatten(1) for x in call.inputs]
        wanted = [original(x).movedim(axis, 0).flatten(1) for x in call.reference_inputs]
        found[call.name] = [(v.mean(1), v.std(1, correction=0)) for v in (torch.cat(values, 1), torch.cat(wanted, 1))]
    return found


def test_matched_moments_are_those_of_the_float_network_and_codes_stay():
    module = trained_like(weight_bit_width=4, weight_range="mse", bias_correction="moments", activation_bit_width=32)
    plain = trained_like(weight_bit_width=4, weight_range="mse", activation_bit_width=32)
    reference = reference_of(module)
    module.calibrate(batches())
    plain.calibrate([])
    for found, wanted in moments(module.network, reference, batches()).values():
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
    for name, quantizer in module.quantizers_of("weight").items():
        codes = quantizer.encode(module.network.get_parameter(name)).codes
        assert torch.equal(codes, plain.quantizers[name].encode(plain.network.get_parameter(name)).codes)
        assert not torch.equal(quantizer.scale, plain.quantizers[name].scale)
