"""HMQ in processes of its own: killed and started again, and on two ranks."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from methods.hmq import HMQ

SETTINGS = {"learning_rate": 1e-3, "logit_learning_rate_multiplier": 1000.0, "target_wcr": 8, "target_acr": 16}


@pytest.fixture
def start(tmp_path, repository):
    """start(options) -> the finished process; the same command every time."""

    def run(*options):
        script = repository / "tests" / "conformance" / "train_digits.py"
        return subprocess.run(
            [sys.executable, str(script), str(tmp_path), "hmq", json.dumps(SETTINGS), *options],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
            timeout=500,
        )

    return run


def images():
    return torch.randn(32, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("step", [5, 18])
def test_kill_9_and_the_same_command_again_is_an_uninterrupted_run(step, start, fit, tmp_path):
    # 14 of 24 steps are search; 8 steps an epoch and a checkpoint every 3, so both kills are in mid-epoch.
    assert start("--kill-at", str(step)).returncode == -9
    assert not (tmp_path / "packed.safetensors").exists()
    again = start("--kill-at", str(step))
    assert again.returncode == 0, again.stderr[-2000:]
    assert "Restor" in again.stderr  # from a checkpoint, not from the start
    final = torch.load(tmp_path / "final-0.pt", weights_only=True)

    module = HMQ(**SETTINGS)
    fit(module, max_epochs=3, folder=tmp_path / "uninterrupted")
    expected = module.state_dict()
    assert list(final["state"]) == list(expected)
    assert not [name for name in expected if not torch.equal(final["state"][name], expected[name])]
    assert final["policy"] == module.policy().to_dict()
    with torch.no_grad():
        assert torch.equal(final["logits"], module.eval()(images()))
    # Not byte by byte: safetensors writes the entries of its header in any order.
    packed, whole = (load_file(folder / "packed.safetensors") for folder in (tmp_path, tmp_path / "uninterrupted"))
    assert packed.keys() == whole.keys() and all(torch.equal(packed[name], whole[name]) for name in whole)
    steps = [json.loads(line)["step"] for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert steps == [0, 23]


def test_two_ranks_hold_the_same_thresholds_widths_and_weights(start, tmp_path):
    run = start("--devices", "2")
    assert run.returncode == 0, run.stderr[-2000:]
    first, second = (torch.load(tmp_path / f"final-{rank}.pt", weights_only=True) for rank in (0, 1))
    assert first["step"] == second["step"] == 12  # 4 steps an epoch, phase switch at 7
    assert first["policy"] == second["policy"]
    for part in ("thresholds", "frozen_pair", "logits", "step_sizes", "weight", "bias", "temperature"):
        names = [name for name in first["state"] if name.endswith(part)]
        assert names and all(torch.equal(first["state"][name], second["state"][name]) for name in names)
    assert all(int(value) >= 0 for name, value in first["state"].items() if name.endswith("frozen_pair"))
