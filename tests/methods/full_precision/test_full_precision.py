"""The float baseline: it learns, its learning rate falls to 0, its weights start other runs."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback
from safetensors.torch import load_file

from methods.full_precision import FullPrecision


class Rates(Callback):
    def __init__(self):
        self.values = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.values.append(trainer.optimizers[0].param_groups[0]["lr"])


def test_it_has_no_quantizers():
    module = FullPrecision()
    assert not module.quantizers and module.policy().sites == {}


def test_it_learns_digits(fit):
    module = FullPrecision(learning_rate=0.1)
    trainer = fit(module, steps=60, batch_size=64, subset=None)
    metrics = trainer.test(module, datamodule=trainer.datamodule, verbose=False)[0]
    assert metrics["test/top1"] > 85.0


def test_learning_rate_falls_along_a_cosine(fit):
    rates = Rates()
    fit(FullPrecision(learning_rate=0.2), steps=4, callbacks=[rates])
    assert rates.values == pytest.approx([0.2, 0.1707107, 0.1, 0.0292893], abs=1e-6)


def test_accumulated_gradients_reach_the_same_end(fit):
    rates = Rates()
    fit(FullPrecision(learning_rate=0.2), steps=2, accumulate_grad_batches=2, callbacks=[rates])
    assert rates.values == pytest.approx([0.2, 0.2, 0.1, 0.1], abs=1e-6)


def test_optimizer_is_nesterov_with_weight_decay(fit):
    group = fit(FullPrecision(weight_decay=3e-4), steps=1).optimizers[0].param_groups[0]
    assert (group["momentum"], group["nesterov"], group["weight_decay"]) == (0.9, True, 3e-4)


def test_saved_weights_start_another_run(fit, tmp_path):
    module = FullPrecision()
    fit(module, steps=3)
    again = FullPrecision(weights=str(tmp_path / "weights.safetensors"), seed=7)
    x = torch.randn(8, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(again.eval()(x), module.eval()(x))
    assert set(load_file(tmp_path / "weights.safetensors")) == set(module.network.state_dict())
