"""HMQ's training: equations 7 to 12, presets, blocks of known networks, two phases, the packed file at the end."""

import math
import os
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from pytorch_lightning.callbacks import Callback

from common.bit_policy import BitPolicy
from common.compression import packed_bytes
from common.errors import UserError
from common.packing import load_packed, size_account
from methods.full_precision import FullPrecision
from methods.hmq import HMQ
from methods.hmq.module import PRESETS, Choices, compression_loss, expected_compression_rate

QUICK = {"learning_rate": 1e-3, "logit_learning_rate_multiplier": 100.0, "calibration_batches": 2}


class Watch(Callback):
    """Notes numbers of every step."""

    def __init__(self, look):
        self.look, self.seen = look, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(self.look(pl_module, outputs))


def images(count=8, seed=0):
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


# -- equations --------------------------------------------------------------------------------------------------------


def test_expected_compression_is_equation_7():
    rate = expected_compression_rate(torch.tensor([8.0, 5.0, 3.0]), torch.tensor([100.0, 300.0, 600.0]))
    assert rate.item() == pytest.approx(7.804878, abs=1e-6)


def test_compression_loss_is_equation_9_and_its_penalty_that_of_equation_8():
    loss = compression_loss(torch.tensor(7.804878, dtype=torch.double), 8.0)
    assert loss.item() == pytest.approx(0.024390, abs=1e-6)
    assert 32 * loss.item() ** 2 == pytest.approx(0.019036, abs=1e-6)


@pytest.mark.parametrize("rate", [8.0, 9.0, 32.0])
def test_no_loss_on_or_above_the_target(rate):
    assert compression_loss(torch.tensor(rate), 8.0).item() == 0.0


def test_expected_rate_of_the_network_is_a_sum_over_its_blocks():
    module = HMQ()
    sizes = {"conv1": 144, "block.conv1": 2304, "block.conv2": 2304, "conv2": 4608, "conv3": 9216, "linear": 320}
    with torch.no_grad():
        for block in module.weight_blocks.values():
            block.logits.normal_()
    bits = 0.0
    for name, size in sizes.items():
        logits = module.weight_blocks[f"{name}.weight"].logits.detach()
        probabilities = (logits.exp() / logits.exp().sum()).sum(0)
        bits += size * sum((b + 1) * p for b, p in enumerate(probabilities.tolist()))
    assert module.expected_wcr().item() == pytest.approx(32 * 18896 / bits, rel=1e-5)


def test_loss_of_a_step_is_equation_8(fit):
    module = HMQ(**QUICK, target_wcr=16, rate_weight=7.0, ramp_cycles=1)
    fit(module, steps=4)
    module.train()
    for block in module.blocks.values():
        block.searching = True
    module.step = 0
    module.log = lambda *args: None
    x, labels = images(16), torch.arange(16) % 10
    module.before_step(x)
    logits = module(x)
    task = torch.nn.functional.cross_entropy(logits, labels)
    penalty = ((16 - module.expected_wcr()) / 16) ** 2
    # The same noise again: training-mode batch norm and blocks give the same logits.
    assert module.training_loss(x, labels).item() == pytest.approx((task + 7 * penalty).item(), rel=1e-5)
    assert penalty.item() > 0.01


# -- choices ----------------------------------------------------------------------------------------------------------


def test_presets_differ_as_documented():
    follow = asdict(PRESETS["follow"])
    assert follow == {
        "num_thresholds": 9,
        "weight_exponent_margin": 0,
        "activation_maximum": "running",
        "maximum_at": "output",
        "calibrate_quantized": False,
        "upper_at_threshold": False,
        "ends_are_clipped": False,
        "temperature_rate": 0.01,
        "activation_logit_learning_rate": None,
        "initial_logits": "paper",
        "noise": "sample",
        "expected_bits": "softmax",
        "selection": "marginal",
        "min_activation_bit_width": 1,
        "skip_classifier": False,
    }
    paper = {name: value for name, value in asdict(PRESETS["paper"]).items() if value != follow[name]}
    assert paper == {
        "temperature_rate": pytest.approx(math.exp(-2)),
        "noise": "tensor",
        "expected_bits": "sample",
        "selection": "joint",
    }
    code = {name: value for name, value in asdict(PRESETS["code"]).items() if value != follow[name]}
    assert code == {
        "num_thresholds": 8,
        "weight_exponent_margin": 1,
        "activation_maximum": "leaky",
        "maximum_at": "input",
        "calibrate_quantized": True,
        "upper_at_threshold": True,
        "ends_are_clipped": True,
        "activation_logit_learning_rate": 1e-2,
        "initial_logits": "code",
        "min_activation_bit_width": 4,
    }


@pytest.mark.parametrize("preset", ["follow", "paper", "code"])
def test_every_preset_trains_and_packs(preset, fit, tmp_path):
    module = HMQ(**QUICK, preset=preset)
    fit(module, steps=6)
    loaded, _ = load_packed(tmp_path / "packed.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(images()), module.eval()(images()))


def test_single_choices_override_a_preset():
    choices = Choices.of("code", {"num_thresholds": 9, "noise": "tensor"})
    assert (choices.num_thresholds, choices.noise, choices.maximum_at) == (9, "tensor", "input")


@pytest.mark.parametrize(
    "preset, overrides, message",
    [
        ("papers", None, "unknown preset 'papers': choose one of follow, paper, code"),
        ("paper", {"tau": 1}, "unknown choice 'tau': choose from num_thresholds"),
        ("paper", {"selection": "best"}, "choice selection must be marginal or joint, got 'best'"),
    ],
)
def test_unknown_choices_are_refused(preset, overrides, message):
    with pytest.raises(UserError) as caught:
        Choices.of(preset, overrides)
    assert message in str(caught.value)


def test_choices_reach_the_blocks():
    module = HMQ(preset="code")
    weight, activation = module.weight_blocks["conv2.weight"], module.activation_blocks["relu1.output"]
    assert weight.logits.shape == (8, 8) and activation.logits.shape == (8, 1)
    assert weight.noise == "channel" and weight.noise_channels == 16 and activation.noise == "batch"
    assert weight.exponent_margin == 1 and activation.exponent_margin == 0
    assert weight.rule.signed and weight.rule.ends_are_clipped
    assert not activation.rule.signed and activation.rule.upper_at_threshold
    paper = HMQ(preset="paper")
    assert {block.noise for block in paper.blocks.values()} == {"tensor"}
    assert {block.selection for block in paper.blocks.values()} == {"joint"}


def test_skipping_the_classifier_leaves_the_last_layer_alone():
    module = HMQ(choices={"skip_classifier": True})
    assert "linear.weight" not in module.quantizers and len(module.weight_blocks) == 5
    assert module.weight_sizes.sum() == 18896 - 320


def test_activations_below_the_least_width_of_the_public_code_stay_there():
    module = HMQ(preset="code", target_acr=16)
    module.set_targets(8.0, 16.0)
    assert min(int(block.bit_width) for block in module.activation_blocks.values()) == 4
    module = HMQ(target_acr=16)
    module.set_targets(8.0, 16.0)
    assert min(int(block.bit_width) for block in module.activation_blocks.values()) == 2


# -- blocks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "model, shape, weights, activations, num_weights",
    [
        ("digits_net", (1, 8, 8), 6, 5, 18_896),
        ("resnet20", (3, 32, 32), 20, 19, 268_336),
        ("mobilenet_v1", (3, 32, 32), 28, 27, 4_209_088),
        ("mobilenet_v2", (3, 32, 32), 53, 62, 3_469_760),
    ],
)
def test_blocks_of_known_networks(model, shape, weights, activations, num_weights):
    module = HMQ(model=model, input_shape=shape)
    assert len(module.weight_blocks) == weights
    assert len(module.activation_blocks) == activations
    assert sum(module.num_elements("weight").values()) == int(module.weight_sizes.sum()) == num_weights
    assert all(block.rule.signed for block in module.weight_blocks.values())
    # ReLU outputs are unsigned; MobileNetV2 has 17 projections and 10 residual sums with a sign.
    signed = sum(block.rule.signed for block in module.activation_blocks.values())
    assert signed == (27 if model == "mobilenet_v2" else 0)


def test_a_depthwise_kernel_draws_its_noise_once():
    module = HMQ(model="mobilenet_v1", input_shape=(3, 32, 32))
    channels = [block.noise_channels for block in module.weight_blocks.values()]
    assert channels[:4] == [3, 1, 32, 1]


@pytest.mark.parametrize(
    "target, widths", [(4, (8, 8, 8)), (8, (4, 8, 8)), (16, (2, 4, 8)), (20, (1, 3, 6)), (16 / 3, (6, 8, 8))]
)
def test_activation_widths_of_resnet20(target, widths):
    module = HMQ(model="resnet20", target_acr=target)
    module.set_targets(4.0, target)
    found = [int(block.bit_width) for block in module.activation_blocks.values()]
    assert found == [widths[0]] * 7 + [widths[1]] * 6 + [widths[2]] * 6
    assert module.acr() == pytest.approx({20: 21.333333}.get(target, target), abs=1e-6)


def test_a_changed_width_keeps_the_logits():
    module = HMQ()
    block = module.activation_blocks["relu1.output"]
    with torch.no_grad():
        block.logits.normal_()
    before = block.logits.detach().clone()
    module.set_targets(4.0, 16.0)
    assert int(block.bit_width) == 2 and torch.equal(block.logits, before)
    assert block.step_sizes[0, 0] == block.thresholds[0] / 4


# -- targets that cannot be met ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"target_wcr": 33}, "target_wcr 33 is above what 1 bits everywhere give (32.00)"),
        ({"target_wcr": 17, "weight_bit_widths": [8, 2]}, "target_wcr 17 is above what 2 bits everywhere give (16.00)"),
        ({"target_wcr": float("nan")}, "target_wcr must be a positive rate"),
        ({"target_acr": 32.5}, "activation compression 32.5 leaves relu1.output 0.98 bits per value"),
        ({"search_fraction": -0.1}, "search_fraction must lie in 0..1"),
    ],
)
def test_impossible_targets_are_one_line(settings, message):
    with pytest.raises(UserError) as caught:
        HMQ(**settings)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_the_largest_possible_targets_are_taken():
    module = HMQ(target_wcr=16, weight_bit_widths=[2, 8], target_acr=32)
    assert module.target_wcr == 16


# -- calibration ------------------------------------------------------------------------------------------------------


def stem_maxima(module, batches, before_relu=False):
    """Largest absolute value behind the stem's ReLU (or batch norm) of the float network, batch by batch."""
    network = module.network
    found = []
    for batch in batches:
        x = torch.nn.functional.conv2d(batch, network.conv1.weight, padding=1)
        bn = network.bn1
        x = torch.nn.functional.batch_norm(x, bn.running_mean, bn.running_var, bn.weight, bn.bias, eps=bn.eps)
        found.append((x if before_relu else x.relu()).abs().max().item())
    return found


def exponent(value):
    return math.ceil(math.log2(value))


@pytest.mark.parametrize("scales", [(1.0, 9.0, 2.0), (30.0, 1.0, 1.0)])
def test_thresholds_of_activations_come_from_the_largest_value_of_all_batches(scales):
    module = HMQ().train()
    batches = [images(seed=i) * scale for i, scale in enumerate(scales)]
    module.calibrate(batches)
    block = module.activation_blocks["relu1.output"]
    assert int(block.max_exponent) == exponent(max(stem_maxima(module, batches)))
    assert module.network.training and block.training


def test_leaky_maximum_of_the_public_code():
    module = HMQ(choices={"activation_maximum": "leaky"})
    batches = [images(seed=i) * scale for i, scale in enumerate((40.0, 1.0))]
    module.calibrate(batches)
    first, second = stem_maxima(module, batches)
    base = 0.9 * first
    base += 0.9 * (second - base)
    found = int(module.activation_blocks["relu1.output"].max_exponent)
    assert found == exponent(base)
    assert exponent(second) < found < exponent(first)


def test_maximum_before_the_relu_of_the_public_code():
    module = HMQ(choices={"maximum_at": "input"})
    with torch.no_grad():
        module.network.bn1.bias.fill_(-50.0)  # nothing passes the ReLU, large negative values stand before it
    batches = [images()]
    module.calibrate(batches)
    assert stem_maxima(module, batches) == [0.0]
    expected = exponent(stem_maxima(module, batches, before_relu=True)[0])
    assert int(module.activation_blocks["relu1.output"].max_exponent) == expected == 6


def test_statistics_are_taken_without_or_with_quantizers():
    # At one bit (levels 0 and t/2) a quantized stem output changes all later maxima.
    maxima = []
    for calibrate_quantized in (False, True):
        module = HMQ(choices={"calibrate_quantized": calibrate_quantized}, target_acr=32)
        module.set_targets(4.0, 32.0)
        with torch.no_grad():
            module.network.bn1.bias.fill_(20.0)
        module.calibrate([images()])
        maxima.append(int(module.activation_blocks["relu2.output"].max_exponent))
    assert maxima[0] > maxima[1]


def test_thresholds_of_weights_cover_them():
    module = HMQ()
    with torch.no_grad():
        module.network.conv2.weight.mul_(0.9 / module.network.conv2.weight.abs().max())
        module.network.linear.weight.mul_(1.3 / module.network.linear.weight.abs().max())
    module.calibrate([images()])
    assert int(module.weight_blocks["conv2.weight"].max_exponent) == 0
    assert int(module.weight_blocks["linear.weight"].max_exponent) == 1


# -- training ---------------------------------------------------------------------------------------------------------


def test_learning_rates_of_logits():
    assert HMQ(learning_rate=1e-5).logit_learning_rates() == pytest.approx((1e-2, 1e-2))
    module = HMQ(learning_rate=2e-6, choices={"activation_logit_learning_rate": 1e-2})
    assert module.logit_learning_rates() == pytest.approx((2e-3, 1e-2))


def test_a_short_search_scales_the_learning_rate_of_its_logits():
    module = HMQ(learning_rate=1e-5, scale_logit_learning_rate=True, published_steps_per_epoch=196)
    module.total_steps = 980  # 588 steps of search instead of 30 x 196 = 5880
    assert module.logit_learning_rates() == pytest.approx((0.1, 0.1))
    module.total_steps = 98_000
    assert module.logit_learning_rates() == pytest.approx((1e-2, 1e-2))


def test_optimizer_groups_hold_every_parameter_once():
    module = HMQ()
    groups = {group["name"]: group for group in module.parameter_groups()}
    members = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(members) == sorted(id(p) for p in module.parameters())
    assert len(groups["weight_logits"]["params"]) == 6 and len(groups["activation_logits"]["params"]) == 5
    assert groups["network"]["weight_decay"] == 1e-4
    assert not any("weight_decay" in groups[name] for name in ("weight_logits", "activation_logits"))


def test_loss_falls_on_digits(fit, tmp_path):
    fit(FullPrecision(learning_rate=0.05), steps=20, batch_size=32, subset=256)
    watch = Watch(lambda module, outputs: float(outputs["loss"]))
    start = str(tmp_path / "weights.safetensors")
    module = HMQ(weights=start, learning_rate=0.1, logit_learning_rate_multiplier=0.3, target_wcr=4)
    fit(module, steps=40, batch_size=32, subset=256, callbacks=[watch])
    assert sum(watch.seen[-5:]) < 0.75 * sum(watch.seen[:5])


def test_targets_and_temperature_follow_the_schedule(fit):
    watch = Watch(lambda module, outputs: (float(module.current_target), module.schedule_state()["temperature"]))
    fit(HMQ(**QUICK, target_wcr=8, cycles=6), steps=30, callbacks=[watch])
    targets, temperatures = zip(*watch.seen, strict=True)
    assert targets == pytest.approx([t for t in (4, 16 / 3, 20 / 3, 8, 8, 8) for _ in range(3)] + [8] * 12)
    assert temperatures[:18] == pytest.approx([1.0, math.exp(-0.42), 0.5] * 6)


def test_with_fewer_cycles_than_the_ramp_the_targets_are_reached(fit):
    module = HMQ(**QUICK, target_wcr=8, target_acr=16, cycles=2)
    fit(module, steps=10)
    assert float(module.current_target) == 8.0 and module.acr() == 16.0


def test_expected_rate_reaches_the_target(fit):
    module = HMQ(**QUICK | {"logit_learning_rate_multiplier": 3000.0}, target_wcr=8)
    fit(module, steps=40)
    assert module.expected_wcr().item() > 7.6 and module.wcr() > 7.6


def test_phase_2_leaves_logits_thresholds_and_pairs_unchanged(fit):
    def look(module, outputs):
        return module.step, {
            name: (block.logits.detach().clone(), block.thresholds.clone(), int(block.frozen_pair))
            for name, block in module.blocks.items()
        }, module.network.conv2.weight.detach().clone()

    watch = Watch(look)
    fit(HMQ(**QUICK), steps=20, callbacks=[watch])
    assert all(pair == -1 for _, _, pair in watch.seen[11][1].values())
    before = watch.seen[11]  # step 12 of 20 is the last of the search
    for step, blocks, weight in watch.seen[12:]:
        assert step > 12
        for name, (logits, thresholds, pair) in blocks.items():
            assert torch.equal(logits, before[1][name][0]) and torch.equal(thresholds, before[1][name][1])
            assert pair >= 0 and pair == watch.seen[12][1][name][2]
        assert not torch.equal(weight, before[2])
    searched = watch.seen[0][1], watch.seen[11][1]
    assert all(not torch.equal(searched[0][name][0], searched[1][name][0]) for name in searched[0])


def test_a_run_without_fine_tuning_still_decides(fit):
    module = HMQ(**QUICK, search_fraction=1.0)
    fit(module, steps=6)
    assert all(int(block.frozen_pair) >= 0 for block in module.blocks.values())


@pytest.mark.parametrize("target", [6.0, 10.0, 15.0])
def test_repair_fills_the_budget(fit, target):
    module = HMQ(**QUICK, target_wcr=target, budget_repair=True)
    fit(module, steps=10)
    assert target <= module.wcr() <= target / 0.98
    assert module.repair_log and {change.site for change in module.repair_log} <= set(module.weight_blocks)


def test_without_repair_the_policy_is_the_searchs_own(fit):
    module = HMQ(**QUICK, target_wcr=10.0)
    fit(module, steps=10)
    assert module.wcr() == 4.0 and not module.repair_log  # ten steps do not leave 8 bits


# -- the packed file --------------------------------------------------------------------------------------------------


def check_packed(module, folder: Path):
    path = folder / "packed.safetensors"
    account = size_account(path)
    policy = module.policy()
    code_bytes = sum(packed_bytes(n, policy.sites[site]) for site, n in module.num_elements("weight").items())
    assert account["codes_bytes"] == code_bytes
    assert 4 * 18896 / account["codes_bytes"] == module.wcr()
    parts = [account[f"{part}_bytes"] for part in ("codes", "tables", "floats", "header")]
    assert sum(parts) == account["file_bytes"] == os.stat(path).st_size
    loaded, metadata = load_packed(path)
    assert metadata["policy"] == policy == BitPolicy.load(folder / "policy.json")
    x = images(64)
    with torch.no_grad():
        assert torch.equal(loaded(x), module.eval()(x))


def test_packed_file_has_the_reported_size_and_the_trained_logits(fit, tmp_path):
    module = HMQ(**QUICK, target_wcr=9.0, target_acr=16.0, budget_repair=True)
    fit(module, steps=20)
    assert len(set(module.policy().sites.values())) > 2
    check_packed(module, tmp_path)


@pytest.mark.slow
def test_packed_file_of_a_compiled_run(fit, tmp_path):
    module = HMQ(**QUICK, target_wcr=9.0, budget_repair=True, compile_network=True)
    fit(module, steps=10)
    eager = module.network.__class__.forward
    module.eval()
    loaded, _ = load_packed(tmp_path / "packed.safetensors")
    x = images(16)
    with torch.no_grad():
        assert torch.equal(loaded(x), eager(module.network, x))
        torch.testing.assert_close(loaded(x), module(x), atol=1e-4, rtol=1e-4)
