"""LQ-Nets as a method: its bases move with the data in training alone, and are one in all processes."""

import pytest
import torch

from common.errors import UserError
from common.quantizers.levels import LevelsQuantizer
from common.quantizers.multi_bit import LQNetsActivations, LQNetsWeights, fit_basis
from methods.lq_nets import LQNets


def images(count=32):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def calibrated(**settings):
    module = LQNets(weight_bit_width=2, activation_bit_width=2, **settings)
    module.calibrate([images()])
    return module


def test_the_ends_stay_in_float_and_the_others_have_a_basis_per_channel():
    quantizers = calibrated().quantizers
    assert "conv1.weight" not in quantizers and "linear.input" not in quantizers
    assert quantizers["conv2.weight"].scales.shape == (32, 2) and quantizers["conv2.input"].basis.shape == (2,)


def test_the_start_is_a_fit():
    module = calibrated()
    weights, quantizer = module.network.conv2.weight.detach(), module.quantizers["conv2.weight"]
    again = fit_basis(weights.flatten(1), quantizer.scales)
    torch.testing.assert_close(again, quantizer.scales)


def test_bases_move_in_training_and_stay_in_evaluation():
    module = calibrated()
    bases = [q.basis for q in module.quantizers.values() if isinstance(q, LQNetsActivations)]
    before = torch.stack(bases)
    module.eval()(2 * images())
    assert torch.equal(torch.stack(bases), before)
    module.train()(2 * images())
    assert not torch.equal(torch.stack(bases), before)


def test_momentum_of_bases():
    module = calibrated(momentum_of_bases=0.5)
    momenta = {q.momentum for q in module.quantizers.values() if isinstance(q, LQNetsActivations | LQNetsWeights)}
    assert momenta == {0.5}


def test_the_mean_basis_of_two_processes(monkeypatch):
    module = calibrated()
    other = [q.basis + 1 for q in module.quantizers.values() if isinstance(q, LQNetsActivations)]
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda flat: flat.add_(torch.cat(other)))
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    expected = [basis - 0.5 for basis in other]
    module.after_optimizer_step()
    bases = [q.basis for q in module.quantizers.values() if isinstance(q, LQNetsActivations)]
    torch.testing.assert_close(torch.stack(bases), torch.stack(expected))


@pytest.mark.parametrize("basis", [[0.3, 0.7], [0.5, 0.5], [0.0, 0.4], [0.0, 0.0]])
def test_the_packed_table_is_the_quantizer(basis):
    quantizer = LQNetsActivations(2).eval()
    quantizer.basis.copy_(torch.tensor(basis))
    x = torch.cat([torch.linspace(-1, 2, 3001), quantizer.levels(), quantizer.levels().unique().diff() / 2])
    table = quantizer.inference_form()
    assert type(table) is LevelsQuantizer and torch.equal(table(x), quantizer(x))


def test_widths_that_it_does_not_have():
    with pytest.raises(UserError, match="must be one of"):
        LQNets(weight_bit_width=9)
