"""`python -m methods.ptq calibrate`, and a calibrator's row as the runner makes it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common.models import build_model
from common.packing import load_packed, read_metadata
from data import DigitsData
from reproduce.measure import accuracy

REPOSITORY = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "digits_net.safetensors"
    save_file(build_model("digits_net").state_dict(), path)
    return path


def calibrate(*arguments):
    command = [sys.executable, "-m", "methods.ptq", "calibrate", "--config", "methods/ptq/configs/digits.yaml"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run([*command, *arguments], capture_output=True, text=True, cwd=REPOSITORY, env=environment)


def test_the_command_writes_a_packed_file_and_prints_its_accuracy(weights, tmp_path):
    run = calibrate("--model.weights", str(weights), "--trainer.default_root_dir", str(tmp_path))
    assert run.returncode == 0, run.stderr[-2000:]
    (file,) = tmp_path.rglob("packed.safetensors")
    assert json.loads(file.with_name("policy.json").read_text()) == read_metadata(file)["policy"].to_dict()
    data = DigitsData()
    data.setup()
    network, _ = load_packed(file)
    top1 = accuracy(network, data.test_dataloader())["top1"]
    assert f"{top1:.2f} % after" in run.stdout and "WCR 8.00, ACR 8.00" in run.stdout


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("--model.weights", "nowhere.safetensors"), "nowhere.safetensors does not exist"),
        (("--model.absorption", "true"), "absorption follows equalization"),
    ],
)
def test_bad_input_is_one_line(arguments, message, tmp_path):
    run = calibrate(*arguments, "--trainer.default_root_dir", str(tmp_path))
    assert run.returncode == 2
    (line,) = [line for line in run.stderr.splitlines() if line.startswith("error:")]
    assert message in line and "Traceback" not in run.stderr


def test_a_row_is_rehearsed_without_training(tmp_path, monkeypatch):
    from reproduce.runner import Options, run_row
    from reproduce.tables import load_table

    monkeypatch.setenv("LEDGER_DIR", str(tmp_path / "ledger"))
    monkeypatch.setenv("RUNS_DIR", str(tmp_path / "runs"))
    table = load_table("ptq/cifar10_resnet20_weights")
    options = Options(overrides={"model.calibration_images": 8}, rehearse=True, show_settings=False)
    record = run_row(table, table.row("w3_empirical"), 0, options).record
    assert (record["state"], record["steps"], record["method"]) == ("rehearsed", 0, "PTQ")
    assert record["packed"]["logits_equal"] and record["wall_time_s"] >= 0
    cells, paired = record["cells"], record["paired"]
    drop = cells["float_top1"] - cells["top1"]
    assert cells["paired_drop"] == pytest.approx(drop) == pytest.approx(paired["paired_drop"])
    assert cells["paired_drop_low"] <= drop <= cells["paired_drop_high"]
    assert not (tmp_path / "ledger").exists()
