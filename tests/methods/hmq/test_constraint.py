"""HMQ under a cost model's limit instead of a weight compression target."""

import json
from dataclasses import asdict

import pytest
import torch

from common.bit_policy import BitPolicy
from common.errors import UserError
from hardware import cost_model, cost_table, expected_cost, network
from methods.hmq import HMQ

QUICK = {"learning_rate": 1e-3, "logit_learning_rate_multiplier": 100.0, "calibration_batches": 2}
EDGE = "latency@bismo-edge<=0.05ms"  # 8 bits take 0.061 ms, 1-bit weights 0.039 ms


def cost_of_file(path, target):
    """What the cost model says of a written policy, computed from the file alone."""
    digits = network("digits_net")
    return cost_model(target).policy_cost(digits.layers, BitPolicy.load(path)).total


@pytest.mark.parametrize(
    "constraint, target, limit",
    [
        (EDGE, "bismo-edge", 0.05),
        ("latency@bitfusion<=8us", "bitfusion", 0.008),
        ("energy@bitfusion<=20uJ", "bitfusion-energy", 0.020),
        ("size<=4KB", "size", 4000),
        ("bitops<=20M", "bitops", 20e6),
    ],
)
def test_the_written_policy_keeps_the_limit_and_nearly_reaches_it(fit, tmp_path, capsys, constraint, target, limit):
    module = HMQ(**QUICK, constraint=constraint)
    fit(module, steps=12)
    cost = cost_of_file(tmp_path / "policy.json", target)
    assert 0.9 * limit < cost <= limit
    assert list(module.constraint_cost().values()) == [pytest.approx(cost)]
    assert module.repair_log  # twelve steps do not leave 8 bits: the repair did it, and says so
    assert {change.site for change in module.repair_log} <= set(module.weight_blocks)
    (file,) = tmp_path.rglob("repair.json")
    assert json.loads(file.read_text()) == [asdict(change) for change in module.repair_log]
    first = module.repair_log[0]
    assert f"budget repair before step 7: {first.site} {first.before} -> {first.after}" in capsys.readouterr().out


def test_the_rate_is_reference_over_expected_cost():
    module = HMQ(constraint=EDGE, target_acr=8)
    with torch.no_grad():
        for block in module.weight_blocks.values():
            block.logits.normal_()
    table = cost_table(cost_model("bismo-edge"), module.layers)
    policy = module.policy()
    weights, activations = torch.zeros(6, 8), torch.zeros(6, 8)
    for row, layer in enumerate(module.layers):
        weights[row] = module.weight_blocks[f"{layer.name}.weight"].probabilities().sum(0).detach()
        activations[row, policy.layer_bits(layer).activation - 1] = 1
    assert set(activations.argmax(1).tolist()) == {3, 7}  # the image keeps 8 bits
    expected = expected_cost(table.tensor(), weights, activations)
    assert module.expected_rate().item() == pytest.approx(table.cost([8] * 6, [8] * 6) / expected.item(), rel=1e-5)


def test_the_penalty_pulls_the_widths_of_dear_layers_down():
    module = HMQ(constraint=EDGE, rate_weight=1.0)
    (1 - module.expected_rate() / module.target_rate).clamp(min=0).backward()
    free, dear = module.weight_blocks["conv1.weight"], module.weight_blocks["conv3.weight"]
    assert torch.equal(free.logits.grad, torch.zeros_like(free.logits))  # the first layer is not counted
    by_width = dear.logits.grad.sum(0)
    assert by_width[-1] > 0 > by_width[0]


def test_targets_rise_from_no_constraint(fit):
    module = HMQ(**QUICK, constraint=EDGE)
    (schedule,) = (c for c in module.configure_callbacks() if type(c).__name__ == "TargetCompressionSchedule")
    targets = [schedule.targets(cycle)[0] for cycle in range(6)]
    assert targets[0] == 1.0 < targets[1] < targets[2] < targets[3] == targets[5] == pytest.approx(module.target_rate)


def test_the_history_shows_cost_beside_limit(fit, tmp_path):
    module = HMQ(**QUICK, constraint=EDGE, log_every_n_steps=1, ramp_cycles=1)
    fit(module, steps=6)
    (path,) = tmp_path.rglob("history.jsonl")
    last = [json.loads(line) for line in path.read_text().splitlines()][-1]
    assert last["policy/target_cost"] == pytest.approx(0.05)
    assert last["policy/expected_cost"] > 0


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"constraint": EDGE, "target_wcr": 8.0}, "target_wcr and constraint exclude each other"),
        ({"constraint": "latency@bismo-edge<=0.03ms"}, r"1-bit weights at activation compression 4 take 0\.03948 ms"),
        ({"constraint": "latency@bismo-egde<=5ms"}, "unknown target 'bismo-egde'; did you mean bismo-edge"),
        ({"constraint": "latency<=5ms"}, "names no target"),
        (
            {"constraint": "latency@bitfusion<=1ms", "choices": {"skip_classifier": True}},
            "layer 'linear' has weights at 32 bits .float: the policy does not name 'linear.weight'.",
        ),
    ],
)
def test_what_cannot_be_kept_is_refused_in_one_line(settings, message):
    with pytest.raises(UserError, match=message) as caught:
        HMQ(**settings)
    assert "\n" not in str(caught.value)


def test_a_layer_outside_the_count_may_stay_in_float():
    module = HMQ(constraint=EDGE, choices={"skip_classifier": True})
    assert module.costs.shape == (5, 8)


def test_a_measured_table_serves_as_well(fit, tmp_path):
    digits = network("digits_net")
    lines = [
        f"{layer.name},{w},8,{w * layer.num_macs * 1e-6}" for layer in digits.layers for w in range(1, 9)
    ]
    file = tmp_path / "table.csv"
    file.write_text("# unit: us\nlayer,weight_bits,activation_bits,cost\n" + "\n".join(lines) + "\n")
    limit = 4.2e-6 * digits.num_macs
    module = HMQ(**QUICK, constraint=f"latency@table:{file}<={limit}us")
    fit(module, steps=6)
    assert 0.9 * limit < module.constraint_cost()["latency_us"] <= limit
    file.write_text(file.read_text().replace("\nconv2,3,8,", "\nconv2,3,7,"))
    with pytest.raises(UserError, match=r"lacks costs of conv2\.weight at some of its widths"):
        HMQ(constraint=f"latency@table:{file}<={limit}us")
