"""INQ: portions are reached in their stages, quantized weights never move, the rate restarts."""

import math

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from common.errors import UserError
from common.packing import load_packed
from common.quantizers.inq import INQ as Grid
from methods.inq import INQ


class Watch(Callback):
    """What is fixed, and at what, after every batch; learning rates."""

    def __init__(self, site="conv2.weight"):
        self.site, self.fixed, self.values, self.rates = site, [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        quantizer, weight = pl_module.quantizers[self.site], pl_module.network.get_parameter(self.site)
        self.fixed.append(quantizer.fixed.clone())
        self.values.append(quantizer(weight).detach().clone())

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_quantized_weights_never_move(fit, tmp_path):
    """With momentum and weight decay, in the paper's portions."""
    module, watch = INQ(learning_rate=0.1, weight_decay=0.1), Watch()
    fit(module, steps=8, callbacks=[watch])
    size = watch.fixed[0].numel()
    counts = [math.floor(portion * size) for portion in (0.5, 0.5, 0.75, 0.75, 0.875, 0.875, 1.0, 1.0)]
    assert [int(fixed.sum()) for fixed in watch.fixed] == counts
    for step in range(7):
        fixed = watch.fixed[step]
        assert watch.fixed[step + 1][fixed].all()
        assert torch.equal(watch.values[step + 1][fixed], watch.values[step][fixed])
        moved = watch.values[step + 1][~watch.fixed[step + 1]] != watch.values[step][~watch.fixed[step + 1]]
        assert moved.all()
    packed = load_packed(tmp_path / "packed.safetensors")[0].get_parameter("conv2.weight").detach()
    assert torch.equal(packed, watch.values[-1])
    powers = packed[packed != 0].abs().log2()
    assert torch.equal(powers, powers.round()) and powers.unique().numel() <= 8


def test_exponents_are_those_of_the_weights_at_the_start(fit):
    module = INQ(weight_bit_width=3)
    weight = module.network.get_parameter("conv3.weight").detach().clone()
    fit(module, steps=4)
    expected = 2.0 ** math.floor(math.log2(4 * weight.abs().max().item() / 3))
    assert module.quantizers["conv3.weight"].grid.scale.item() == expected


def test_two_bits_are_ternary(fit, tmp_path):
    module = INQ(weight_bit_width=2, largest="error")
    fit(module, steps=4)
    packed = load_packed(tmp_path / "packed.safetensors")[0].get_parameter("conv2.weight").detach()
    scale = module.quantizers["conv2.weight"].grid.scale.item()
    assert packed.unique().tolist() == [-scale, 0.0, scale]


def test_the_power_of_least_error():
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0))
    x[0] = 7.0
    grids = {rule: Grid(2, largest=rule) for rule in ("max", "error")}
    for grid in grids.values():
        grid.calibrate(x)
    assert grids["max"].scale == 8 and grids["error"].scale == 1
    errors = [((x.abs() >= 0.5 * p) * (x.abs() - p) ** 2 + (x.abs() < 0.5 * p) * x**2).sum() for p in (0.5, 1, 2)]
    assert errors[1] < errors[0] and errors[1] < errors[2]


def test_stages_begin_where_they_are_told_to(fit):
    module, watch = INQ(portions=[0.25, 1.0], stage_starts=[0.25, 0.75]), Watch()
    fit(module, steps=8, callbacks=[watch])
    size = watch.fixed[0].numel()
    assert [int(fixed.sum()) for fixed in watch.fixed] == [0] * 2 + [size // 4] * 4 + [size] * 2


def test_more_stages_than_batches_still_quantize_everything(fit):
    module = INQ()
    fit(module, steps=2)
    assert all(bool(q.fixed.all()) for q in module.quantizers.values())


@pytest.mark.parametrize(
    "restart, expected", [(True, [0.4, 0.04, 0.4, 0.04, 0.4, 0.04, 0.4, 0.04]), (False, [0.4] * 4 + [0.04] * 4)]
)
def test_the_learning_rate_restarts_with_every_stage(fit, restart, expected):
    settings = {"learning_rate_schedule": "constant", "learning_rate_drops": [0.5], "learning_rate": 0.4}
    module, watch = INQ(restart_learning_rate=restart, **settings), Watch()
    fit(module, steps=8, callbacks=[watch])
    assert watch.rates == pytest.approx(expected)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"portions": [0.5, 0.4, 1.0]}, "portions must ascend from above 0 to 1"),
        ({"portions": [0.5, 0.9]}, "portions must ascend from above 0 to 1"),
        ({"stage_starts": [0, 0.5]}, "stage_starts must be as many as portions, 4"),
        ({"stage_starts": [0, 0.5, 0.4, 0.8]}, "stage_starts must be ascending fractions"),
        ({"stage_starts": [0, 0.5, 0.8, 1.0]}, "stage_starts must be ascending fractions"),
        ({"largest": "mean"}, "largest must be max or error, got 'mean'"),
        ({"weight_bit_width": 9}, "bit_width of INQ must be one of"),
    ],
)
def test_settings_that_it_does_not_have(settings, message):
    with pytest.raises(UserError, match=message):
        INQ(**settings)
