"""DNAS's own: who learns when, the loss, the choice under a budget, what is skipped and what stays float."""

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from common.compression import packed_bytes
from common.errors import UserError
from common.packing import load_packed
from methods.dnas import DNAS
from methods.dnas.module import cost_factor

QUICK = {"learning_rate": 0.05, "theta_learning_rate": 0.1, "search_fraction": 0.6, "theta_start": 0.25}


def set_probable(module, widths):
    """Make these widths the most probable ones of the blocks, in order."""
    with torch.no_grad():
        for theta, block, width in zip(module.theta, module.blocks, widths, strict=True):
            theta[module.candidates(block).index(width)] = 5.0


def test_blocks_of_the_digits_net_and_what_they_choose_from():
    module = DNAS()
    assert module.blocks == {"block": ["block.conv1", "block.conv2"], "conv2": ["conv2"], "conv3": ["conv3"]}
    assert module.candidates("block") == (0, 1, 2, 3, 4, 8, 32)
    assert module.candidates("conv2") == (1, 2, 3, 4, 8, 32)
    first, second = module.mixed("block")
    assert first.theta is second.theta is module.theta[0]
    layers = DNAS(choice="layer")
    assert list(layers.blocks) == ["block.conv1", "block.conv2", "conv2", "conv3"]
    assert not any(0 in layers.candidates(block) for block in layers.blocks)


def test_all_blocks_of_resnet20_can_be_skipped():
    module = DNAS(model="resnet20")
    assert list(module.blocks) == [f"layer{stage}.{i}" for stage in (1, 2, 3) for i in range(3)]
    assert all(0 in module.candidates(block) for block in module.blocks)


class Watch(Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        theta = [t.detach().clone() for t in pl_module.theta]
        self.seen.append((theta, pl_module.network.get_parameter("conv2.weight").detach().clone()))

    def moved(self, step):
        """(logits, weights) moved in a step."""
        (theta, weight), (theta_after, weight_after) = self.seen[step - 1 : step + 1]
        same = [torch.equal(a, b) for a, b in zip(theta, theta_after, strict=True)]
        assert len(set(same)) == 1
        return not same[0], not torch.equal(weight, weight_after)


@pytest.mark.parametrize("optimizer", ["sgd", "radam"])
def test_logits_and_weights_learn_in_turn(fit, optimizer):
    # 20 steps of search, from step 5 on every fifth batch is the logits': 9, 14, 19.
    watch, module = Watch(), DNAS(**QUICK | {"search_fraction": 0.8}, optimizer=optimizer)
    fit(module, steps=25, callbacks=[watch])
    for step in range(1, 25):
        theta_turn = step in (9, 14, 19)
        assert watch.moved(step) == (theta_turn, not theta_turn)
    assert module.theta_steps() == 3


def test_cost_and_its_factor():
    cost = torch.tensor(1000.0, requires_grad=True)
    factor = cost_factor(cost, 0.1, 0.9)
    assert factor.item() == pytest.approx(0.1 * 6.9077553**0.9)
    factor.backward()
    assert cost.grad.item() == pytest.approx(0.1 * 0.9 * 6.9077553**-0.1 / 1000, rel=1e-4)
    module = DNAS()
    set_probable(module, (0, 2, 8))
    for theta in module.theta:
        theta.data.mul_(100)
    assert module.expected_bits().item() == pytest.approx(2 * 4608 + 8 * 9216)


def test_the_temperature_falls_with_the_search(fit):
    seen = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(float(pl_module.mixed("conv2")[0].temperature))

    fit(DNAS(**QUICK), steps=10, callbacks=[Look()])
    assert seen[:6] == pytest.approx([5.0 * 2.718281828 ** (-0.045 * 15 * i) for i in range(6)], rel=1e-5)


def test_the_choice_skips_and_leaves_float_and_is_packed(fit, tmp_path):
    module = DNAS(**QUICK | {"theta_learning_rate": 0.0})
    set_probable(module, (0, 32, 2))
    fit(module, steps=10)
    assert module.chosen == {"block": 0, "conv2": 32, "conv3": 2}
    sites = module.policy().sites
    assert sites == {"block.conv1.weight": 0, "block.conv2.weight": 0, "conv3.weight": 2}
    floats = 144 + 4608 + 320
    assert module.wcr() == pytest.approx(4 * 18896 / (packed_bytes(9216, 2) + 4 * floats))
    loaded, _ = load_packed(tmp_path / "packed.safetensors")
    assert not loaded.get_parameter("block.conv1.weight").any()
    assert loaded.get_parameter("conv2.weight").unique().numel() > 4000
    x = torch.randn(16, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(loaded(x), module.eval()(x))


@pytest.mark.parametrize("target", [8.0, 12.0])
def test_the_target_is_filled(target):
    module = DNAS(target_wcr=target, first_last="8bit")
    set_probable(module, (8, 32, 4))
    module.freeze()
    assert target <= module.wcr() <= target / 0.9  # few blocks: no combination may be nearer
    assert module.repair_log


def test_without_a_target_the_most_probable_widths_stay():
    module = DNAS()
    set_probable(module, (2, 3, 1))
    module.freeze()
    assert module.chosen == {"block": 2, "conv2": 3, "conv3": 1} and not module.repair_log


def test_samples_follow_the_probabilities():
    module, counts = DNAS(selection="sample", weight_bit_widths=[1, 8]), dict.fromkeys((1, 8), 0)
    with torch.no_grad():
        module.theta[1].copy_(torch.tensor([0.75, 0.25]).log())
    for seed in range(200):
        module.seed = seed
        values = module.preferences()["conv2"]
        counts[max(values, key=lambda width, values=values: values[width])] += 1
    assert 130 <= counts[1] <= 170  # 150 expected, deviation 6


def test_activations_get_pact_and_ends_take_lsq():
    module = DNAS(activation_bit_width=4, first_last="8bit")
    kinds = {name: type(q).__name__ for name, q in module.quantizers.items()}
    assert kinds["conv2.input"] == "PACT" and kinds["linear.input"] == kinds["conv1.weight"] == "LSQ"
    groups = module.parameter_groups()
    members = [id(p) for group in groups for p in group["params"]]
    logits = [id(theta) for theta in module.theta]
    assert sorted(members + logits) == sorted({id(p) for p in module.parameters()})


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"choice": "channel"}, "choice must be block or layer"),
        ({"selection": "best"}, "selection must be argmax or sample"),
        ({"search_fraction": 1.5}, "search_fraction must lie in 0..1, got 1.5"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"weight_bit_widths": [9]}, "weight_bit_widths must be different ones"),
        ({"weight_bit_widths": [0]}, "weight_bit_widths must be different ones"),
        ({"target_wcr": 40.0}, "target_wcr 40 leaves 33 bytes for the searched layers, which take at least"),
        ({"target_wcr": -1.0}, "target_wcr must be a positive rate"),
    ],
)
def test_settings_that_do_not_exist_are_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        DNAS(**settings)
    assert "\n" not in str(caught.value)
