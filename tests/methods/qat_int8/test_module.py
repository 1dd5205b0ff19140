"""Training with batch norms seen as folded, and folded at the end."""

import copy
import sys
import types

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.errors import UserError
from common.quantizers import AffineQuantizer
from methods.qat_int8 import QATInt8
from methods.qat_int8.quantizer import FoldedWeights, MinMaxWeights, MovingRange


def images(count=16, seed=0):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def batch_norms(module):
    return [m for m in module.network.modules() if isinstance(m, _BatchNorm)]


def calibrated(**settings):
    module = QATInt8(**settings)
    with torch.no_grad():
        for norm in batch_norms(module):
            norm.running_mean.normal_(generator=torch.Generator().manual_seed(1))
            norm.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
            norm.weight.uniform_(0.5, 2, generator=torch.Generator().manual_seed(3))
    module.calibrate([images()])
    return module


def test_layers_before_a_batch_norm_are_folded_and_the_linear_layer_is_plain():
    module = QATInt8()
    kinds = {name: type(q) for name, q in module.quantizers_of("weight").items()}
    assert kinds.pop("linear.weight") is MinMaxWeights
    assert set(kinds.values()) == {FoldedWeights} and len(kinds) == 5
    assert set(module.norms) == {name.removesuffix(".weight") for name in kinds}
    assert {type(q) for q in module.quantizers_of("edge").values()} == {MovingRange}


def test_the_papers_defaults():
    module = QATInt8()
    assert set(module.policy().sites.values()) == {8} and module.wcr() == 4.0
    assert "conv1.weight" in module.quantizers and "linear.input" in module.quantizers  # first and last like the others


@pytest.mark.parametrize("settings", [{}, {"symmetric": True, "per_channel": True}, {"weight_bit_width": 3}])
def test_folding_keeps_what_evaluation_gives(settings):
    module = calibrated(**settings).eval()
    with torch.no_grad():
        before = module(images(seed=1))
        module.fold()
        after = module(images(seed=1))
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    assert not batch_norms(module) and {type(q) for q in module.quantizers.values()} == {AffineQuantizer}


def test_folding_keeps_sites_and_can_be_repeated():
    module = calibrated().eval()
    sites = list(module.quantizers)
    module.fold()
    once = copy.deepcopy(module.state_dict())
    module.fold()
    assert list(module.quantizers) == sites
    assert all(torch.equal(once[name], value) for name, value in module.state_dict().items())


def test_at_8_bits_a_step_is_nearly_that_of_the_float_network():
    module = calibrated()
    plain = QATInt8(weight_bit_width=32, activation_bit_width=32)
    plain.network.load_state_dict(module.network.state_dict(), strict=False)
    gradients = []
    for each in (module, plain):
        each.train()(images()).square().mean().backward()
        gradients.append(torch.cat([p.grad.flatten() for p in each.network.parameters()]))
    assert torch.cosine_similarity(*gradients, dim=0) > 0.95
    for one, other in zip(batch_norms(module), batch_norms(plain), strict=True):
        torch.testing.assert_close(one.running_var, other.running_var, atol=0.02, rtol=0.02)


class Watch(Callback):
    def __init__(self):
        self.training, self.active, self.factors = [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.training.append(all(norm.training for norm in batch_norms(pl_module)))
        edges = pl_module.quantizers_of("edge").values()
        self.active.append(all(bool(q.active) for q in edges))
        quantizer, norm = pl_module.quantizers["conv2.weight"], pl_module.network.get_submodule("bn2")
        expected = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        self.factors.append(float((quantizer.factor - expected).detach().abs().max()))
        fresh = copy.deepcopy(quantizer)
        fresh.fold(pl_module.network.get_parameter("conv2.weight"), norm)
        assert torch.equal(fresh.grid.grid.scale, quantizer.grid.grid.scale)


def test_statistics_freeze_activations_start_and_factors_follow(fit):
    watch, module = Watch(), QATInt8(batch_norm_freeze_at=0.5, activation_start=0.25)
    fit(module, steps=8, callbacks=[watch])
    assert watch.training == [True] * 4 + [False] * 4
    assert watch.active == [False] * 2 + [True] * 6
    assert max(watch.factors) < 1e-5


def test_an_interrupted_run_is_not_folded(fit, tmp_path):
    class Stop(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            trainer.should_stop = pl_module.step >= 2

    module = QATInt8()
    fit(module, steps=8, callbacks=[Stop()])
    assert batch_norms(module) and not (tmp_path / "packed.safetensors").exists()


class Residual(nn.Module):
    """A batch norm that two readers see, one that adds, and one whose convolution has another reader."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(1, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.bn2 = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.conv3, self.bn3 = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)
        self.linear = nn.Linear(4, num_classes)

    def forward(self, x):
        x = self.bn1(self.conv1(x))  # linear: read by a convolution and an addition
        x = x + self.bn2(self.conv2(x))
        y = self.conv3(x)
        return self.linear((y + self.bn3(y)).mean((2, 3)))


def test_residuals_biases_and_norms_that_cannot_be_folded(monkeypatch):
    monkeypatch.setitem(sys.modules, "residual_net", types.ModuleType("residual_net"))
    sys.modules["residual_net"].Residual = Residual
    module = calibrated(model="residual_net.Residual", num_classes=10, input_shape=(1, 8, 8)).eval()
    assert module.norms == {"conv1": "bn1", "conv2": "bn2"}
    assert not module.sites["conv2.input"].non_negative and module.quantizers["conv2.input"].signed
    with torch.no_grad():
        before = module(images())
        module.fold()
        torch.testing.assert_close(module(images()), before, atol=1e-4, rtol=1e-4)
    assert len(batch_norms(module)) == 1


@pytest.mark.parametrize(
    "settings, match",
    [
        ({"range_momentum": 0.0}, "range_momentum must be in"),
        ({"activation_start": 1.0}, "activation_start must be a fraction"),
        ({"weight_bit_width": 9}, "QATInt8, layer .*: bit_width of MinMaxWeights"),
        ({"activation_bit_width": 1}, "QATInt8, layer .*: bit_width of MovingRange"),
    ],
)
def test_settings_that_it_does_not_have(settings, match):
    with pytest.raises(UserError, match=match):
        QATInt8(**settings)
