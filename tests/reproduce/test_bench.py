"""The step benchmark: what a step holds, how times become ratios, the JSON, and bad input."""

import json
import subprocess

import pytest
import torch

from common.errors import UserError
from reproduce import bench, cli


class FakeStep:
    """Takes the next of the given times for each block and notes who ran."""

    def __init__(self, name, seconds, order):
        self.name, self.times, self.order = name, [0.0, *seconds], order

    def seconds(self, steps):
        self.order.append((self.name, steps))
        return self.times.pop(0)


def test_methods_take_turns_and_change_places_every_other_block():
    order = []
    steps = {name: FakeStep(name, [4.0, 6.0], order) for name in ("full_precision", "a", "b")}
    assert bench.time_steps(steps, blocks=2)["a"] == [2.0, 3.0]
    assert [name for name, _ in order[3:]] == ["full_precision", "a", "b", "b", "a", "full_precision"]
    assert {count for _, count in order[:3]} == {3}
    assert {count for _, count in order[3:]} == {2}


def test_a_ratio_is_the_median_of_the_blocks_own_ratios():
    # The machine is twice as slow in the second block; ratios of medians would give 1.5 / 1.2.
    seconds = {"full_precision": [1.0, 2.0, 1.2], "hmq": [1.5, 3.2, 1.5]}
    summary = bench.summarise(seconds, {"full_precision": 100, "hmq": 150})
    assert summary["hmq"] == {"step_ms": 1500.0, "ratio": 1.5, "peak_memory_bytes": 150, "memory_ratio": 1.5}
    assert summary["full_precision"]["ratio"] == 1.0


def test_without_a_measured_peak_there_is_no_memory_ratio():
    summary = bench.summarise({"full_precision": [1.0]}, {})
    assert summary["full_precision"]["peak_memory_bytes"] is None
    assert summary["full_precision"]["memory_ratio"] is None


def step(name, **changes):
    settings = {"model": "digits_net", "batch": 4, "device": "cpu", "compiled": False, "noise": None} | changes
    return bench.Step(name, **settings)


def test_a_step_draws_new_noise_per_sample_and_trains_weights_and_logits():
    hmq = step("hmq")
    block = hmq.module.activation_blocks["relu1.output"]
    before = [p.clone() for p in hmq.module.parameters()]
    hmq()
    first = block.gumbel.clone()
    assert first.shape == (4, 9)
    hmq()
    assert not torch.equal(first, block.gumbel)
    assert all(not torch.equal(a, b) for a, b in zip(before, hmq.module.parameters(), strict=True))


def test_noise_can_be_one_draw_per_tensor():
    hmq = step("hmq", noise="tensor")
    hmq()
    assert hmq.module.activation_blocks["relu1.output"].gumbel.shape == (1, 9)


def test_the_second_phase_has_frozen_pairs_and_no_noise():
    hmq = step("hmq_phase2")
    hmq()
    block = hmq.module.activation_blocks["relu1.output"]
    assert not block.searching
    assert block.gumbel.shape == (0, 9)


def test_the_reference_has_no_quantizers():
    float_step = step("full_precision")
    float_step()
    assert float_step.module.quantizers == {}
    assert all(p.grad is not None for p in float_step.module.parameters())


def test_peak_memory_counts_weights_and_two_moments_at_least():
    float_step = step("full_precision")
    # 19,130 parameters: weights, gradients' moments (2), 4 bytes each
    assert bench.peak_memory(float_step, "cpu") >= 3 * 4 * 19_130


def test_json_has_the_fixed_shape(capsys):
    arguments = ["bench", "--methods", "uniform", "--model", "digits_net", "--batch", "4", "--modes", "eager"]
    arguments += ["--steps", "2", "--threads", "1", "--no-memory", "--json", "-"]
    assert cli.main(arguments) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["model"], report["batch"], report["device"]) == ("digits_net", 4, "cpu")
    assert list(report["modes"]) == ["eager"]
    assert list(report["modes"]["eager"]) == ["full_precision", "uniform"]
    row = report["modes"]["eager"]["uniform"]
    assert list(row) == ["step_ms", "ratio", "peak_memory_bytes", "memory_ratio"]
    assert row["step_ms"] > 0
    assert report["modes"]["eager"]["full_precision"]["ratio"] == 1.0


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--methods", "hmqq"], "unknown method 'hmqq'"),
        (["--methods", "uniform_phase2"], "uniform has no second phase"),
        (["--methods", "full_precision"], "--methods names nothing to compare"),
        (["--model", "resnet2"], "unknown model 'resnet2'"),
        (["--modes", "eager,fast"], "unknown mode 'fast'"),
        (["--device", "tpu"], "unknown device 'tpu'"),
        (["--batch", "0"], "expected a whole number above 0, got '0'"),
        (["--stepz", "3"], "--stepz"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, capsys):
    assert cli.main(["bench", *arguments]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert message in captured.err
    assert captured.err.count("\n") == 1


def test_workers_measure_one_method_s_memory_and_all_methods_times():
    options = ["--model", "digits_net", "--batch", "4", "--modes", "eager", "--steps", "4"]
    memory = bench._work(bench._parse([*options, "--worker", "memory", "--methods", "full_precision"]))
    times = bench._work(bench._parse([*options, "--worker", "time", "--methods", "uniform"]))
    assert memory > 0
    assert {name: len(blocks) for name, blocks in times.items()} == {"full_precision": 2, "uniform": 2}


def test_a_worker_that_fails_is_one_line_too(monkeypatch):
    failed = subprocess.CompletedProcess([], 2, stdout="", stderr="some notice\nerror: out of memory\n")
    monkeypatch.setattr(subprocess, "run", lambda *args, **kwargs: failed)
    with pytest.raises(UserError, match=r"measuring hmq \(eager, time\) failed: out of memory"):
        bench._run_worker("time", "eager", ["hmq"], bench._parse([]))
