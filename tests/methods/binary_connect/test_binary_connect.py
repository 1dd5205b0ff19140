"""BinaryConnect: magnitudes, random signs, resume."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from methods.binary_connect import BinaryConnect


def test_all_layers_are_binary_by_default_and_inputs_are_not():
    layers = ("conv1", "block.conv1", "block.conv2", "conv2", "conv3", "linear")
    assert set(BinaryConnect().quantizers) == {f"{name}.weight" for name in layers}


@pytest.mark.parametrize("magnitude, expected", [("one", 1.0), ("glorot", (1.5 / (9 * 48)) ** 0.5)])
def test_weights_are_plus_minus_h_and_latent_ones_stay_within(fit, magnitude, expected):
    module = BinaryConnect(magnitude=magnitude, learning_rate=0.1)
    fit(module, steps=3)
    layer = module.eval().network.conv2
    assert layer.weight_quantizer(layer.weight).abs().unique().tolist() == [pytest.approx(expected)]
    assert layer.weight.abs().max() <= expected * (1 + 1e-6)


def test_trained_weights_may_fill_the_range_with_the_same_signs():
    module = BinaryConnect(fill_range=True)
    before = module.network.conv2.weight.detach().clone()
    module.calibrate([])
    weight = module.network.conv2.weight.detach()
    assert float(weight.abs().max()) == pytest.approx(1)
    torch.testing.assert_close(weight / before, (1 / before.abs().max()).expand_as(before))


class Signs(Callback):
    """The binary weights of each training step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        quantizer = pl_module.network.conv2.weight_quantizer
        self.seen.append(quantizer(torch.zeros(quantizer.uniform.shape)).clone())


def test_random_signs_are_fresh_in_every_step_and_at_every_layer(fit):
    module, signs = BinaryConnect(stochastic=True), Signs()
    fit(module, steps=4, callbacks=[signs])
    for one, other in zip(signs.seen, signs.seen[1:], strict=False):
        agreeing = (one == other).float().mean()
        assert 0.45 < agreeing < 0.55  # 4608 fair coins
    first, second = module.network.block.conv1.weight_quantizer, module.network.block.conv2.weight_quantizer
    assert not torch.equal(first.uniform, second.uniform)


def test_eval_mode_takes_the_sign(fit):
    module = BinaryConnect(stochastic=True)
    fit(module, steps=2)
    layer = module.eval().network.conv2
    assert torch.equal(layer.weight_quantizer(layer.weight), torch.where(layer.weight >= 0, 1.0, -1.0))


def test_a_resumed_stochastic_run_equals_an_uninterrupted_one(fit, tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if pl_module.step == 5:
                trainer.save_checkpoint(tmp_path / "5.ckpt")

    whole, resumed = BinaryConnect(stochastic=True), BinaryConnect(stochastic=True)
    fit(whole, max_epochs=1, callbacks=[Save()])
    fit(resumed, max_epochs=1, resume=tmp_path / "5.ckpt")
    assert torch.equal(whole.network.conv2.weight, resumed.network.conv2.weight)
