"""UNIQ: stages, frozen weights, statistics of inputs, the final weights in the file."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from common.errors import UserError
from common.packing import load_packed
from methods.uniq import UNIQ

LAYERS = ("conv1", "block.conv1", "block.conv2", "conv2", "conv3", "linear")
ENTRIES = {"float": "f", "noise": "n", "quantized": "q"}


class Watch(Callback):
    """Stages of weights and inputs before, and all weights after every batch."""

    def __init__(self):
        self.weights, self.inputs, self.values = [], [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        found = pl_module.quantizers
        self.weights.append("".join(ENTRIES[found[f"{name}.weight"].stage] for name in LAYERS))
        self.inputs.append("".join(ENTRIES[found[f"{name}.input"].stage] for name in LAYERS[1:]))
        self.values.append({s: w.detach().clone() for s, w in pl_module.latent_weights().items()})


def test_layers_take_turns_twice_and_inputs_follow(fit):
    module, watch = UNIQ(), Watch()
    assert module.order == list(LAYERS)
    fit(module, steps=12, callbacks=[watch])
    assert watch.weights == [
        "nfffff", "qnffff", "qqnfff", "qqqnff", "qqqqnf", "qqqqqn",
        "nqqqqq", "qnqqqq", "qqnqqq", "qqqnqq", "qqqqnq", "qqqqqn",
    ]  # fmt: skip
    assert watch.inputs == ["fffff", "qffff", "qqfff", "qqqff", "qqqqf"] + ["qqqqq"] * 7


def test_frozen_weights_do_not_move_and_the_others_do(fit):
    module, watch = UNIQ(passes=1, learning_rate=0.1, weight_decay=0.1), Watch()
    fit(module, steps=12, callbacks=[watch])
    for step in range(1, 12):
        for index, name in enumerate(LAYERS):
            same = torch.equal(watch.values[step][f"{name}.weight"], watch.values[step - 1][f"{name}.weight"])
            assert same == (watch.weights[step][index] == "q")


def test_warm_up_is_in_float(fit):
    module, watch = UNIQ(passes=1, warm_up=0.5), Watch()
    fit(module, steps=12, callbacks=[watch])
    assert watch.weights[:7] == ["ffffff"] * 6 + ["nfffff"] and watch.weights[-1] == "qqqqqn"


def test_the_file_has_the_statistics_of_the_final_weights(fit, tmp_path):
    module = UNIQ(weight_bit_width=2, learning_rate=0.05)
    fit(module, steps=12)
    packed, _ = load_packed(tmp_path / "packed.safetensors")
    normal = torch.distributions.Normal(0.0, 1.0)
    quantiles = normal.icdf((torch.arange(4) + 0.5) / 4)
    for name in ("conv2", "linear"):  # frozen since the stage before last but one; noisy to the end
        weight = module.network.get_parameter(f"{name}.weight").detach()
        expected = weight.mean() + weight.std() * quantiles
        values = packed.get_parameter(f"{name}.weight").detach()
        torch.testing.assert_close(values.unique(), expected, atol=1e-5, rtol=1e-4)


class Grids(Callback):
    def __init__(self):
        self.scales = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.scales.append([pl_module.quantizers[f"{name}.input"].scale.item() for name in LAYERS[1:]])


def test_an_input_is_fitted_when_its_layer_has_its_turn(fit):
    grids = Grids()
    fit(UNIQ(passes=1, learning_rate=0.05), steps=6, callbacks=[grids])
    for step in range(1, 6):
        changed = [a != b for a, b in zip(grids.scales[step], grids.scales[step - 1], strict=True)]
        assert changed == [index == step - 1 for index in range(5)]


def test_fitting_inputs_leaves_frozen_batch_norm_frozen(fit):
    module = UNIQ(batch_norm="freeze")
    before = {k: v.clone() for k, v in module.network.state_dict().items() if "running" in k}
    fit(module, steps=4)
    assert all(torch.equal(module.network.state_dict()[k], v) for k, v in before.items())


def test_weights_alone():
    module = UNIQ(activation_bit_width=32)
    assert set(module.quantizers) == {f"{name}.weight" for name in LAYERS}


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"passes": 0}, "passes must be at least 1, got 0"),
        ({"warm_up": 1.0}, "warm_up must be a fraction of the training below 1, got 1.0"),
        ({"weight_bit_width": 9}, "bit_width of UNIQ must be one of"),
    ],
)
def test_settings_that_it_does_not_have(settings, message):
    with pytest.raises(UserError, match=message):
        UNIQ(**settings)
