"""The command line of a paper folder: bad input is one line on standard error and status 2, never a traceback."""

import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from common.training import QuantizedModule
from common.training.cli import expand_constraint, run_cli
from data import DataError
from methods.full_precision import FullPrecision
from methods.hmq import HMQ
from methods.uniform import Uniform

pytestmark = pytest.mark.filterwarnings("ignore")  # jsonargparse on how Lightning calls it


class Picky(QuantizedModule):
    """Refuses an argument in the way of a primitive, with a plain ValueError."""

    def __init__(self, depth: int = 1) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1,\n got {depth}")


@pytest.fixture(autouse=True)
def live_log_streams(monkeypatch):
    """Lightning's log handlers hold the standard error of the time of their making, which pytest has closed since."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        for handler in logging.getLogger(name).handlers:
            if type(handler) is logging.StreamHandler:
                monkeypatch.setattr(handler, "stream", sys.stderr)


@pytest.fixture
def trainer_options(tmp_path):
    return [
        "--trainer.max_steps=2",
        "--trainer.accelerator=cpu",
        f"--trainer.default_root_dir={tmp_path}",
        "--trainer.enable_progress_bar=false",
        "--trainer.enable_model_summary=false",
        "--trainer.limit_val_batches=0",
        "--trainer.logger=false",
        "--trainer.enable_checkpointing=false",
    ]


@pytest.fixture
def refusal(trainer_options, capfd):
    """refusal(arguments, method) -> the one line that the command line answers with."""

    def run(*arguments, method=HMQ, data=("--data=DigitsData", "--data.subset=64")):
        with pytest.raises(SystemExit) as caught:
            run_cli(method, errors=(DataError,), arguments=["fit", *data, *trainer_options, *map(str, arguments)])
        assert caught.value.code == 2
        lines = [line for line in capfd.readouterr().err.splitlines() if line.strip()]
        assert len(lines) == 1, lines
        assert lines[0].startswith("error: ")
        return lines[0]

    return run


def truncated_npz(path):
    np.savez(path, **{"conv1.weight": np.zeros((16, 1, 3, 3), np.float32), "linear.bias": np.zeros(10, np.float32)})
    path.write_bytes(path.read_bytes()[:-200])
    return path


def wrong_shape(path):
    network = FullPrecision().network
    state = network.state_dict() | {"conv2.weight": torch.zeros(32, 16, 1, 1)}
    torch.save(state, path)
    return path


def test_unknown_model(refusal):
    assert "unknown model 'digit_net'" in refusal("--model.model=digit_net")


def test_weights_of_another_shape(refusal, tmp_path):
    line = refusal(f"--model.weights={wrong_shape(tmp_path / 'wrong.pth')}")
    assert "conv2.weight" in line and "wrong.pth" in line


def test_truncated_weights(refusal, tmp_path):
    assert "cut.npz" in refusal(f"--model.weights={truncated_npz(tmp_path / 'cut.npz')}")


def test_missing_weights(refusal):
    assert "nowhere.npz does not exist" in refusal("--model.weights=nowhere.npz")


def test_truncated_data(refusal, tmp_path):
    np.savez(tmp_path / "cifar10.npz", train_images=np.zeros((10, 3, 32, 32), np.uint8))
    (tmp_path / "cifar10.npz").write_bytes((tmp_path / "cifar10.npz").read_bytes()[:500])
    line = refusal("--model.model=resnet20", data=("--data=CIFAR10Data", f"--data.root={tmp_path}"))
    assert "cifar10.npz" in line


def test_missing_data(refusal):
    line = refusal("--model.model=resnet20", data=("--data=CIFAR10Data", "--data.root=/nonexistent"))
    assert "CIFAR-10 not found: /nonexistent does not exist" in line


def test_weight_target_above_what_the_widths_allow(refusal):
    line = refusal("--model.target_wcr=17", "--model.weight_bit_widths=[2,4]")
    assert "target_wcr 17 is above what 2 bits everywhere give (16.00)" in line


def test_activation_memory_below_one_bit(refusal):
    assert "activation compression 33 leaves relu1.output 0.97 bits" in refusal("--model.target_acr=33")


@pytest.mark.parametrize(
    "setting, message",
    [
        ("--model.target_wcr=0", "target_wcr must be a positive rate"),
        ("--model.target_acr=0", "activation compression must be a positive rate"),
        ("--model.cycles=0", "cycles must be at least 1"),
        ("--model.ramp_cycles=0", "ramp_cycles must be at least 1"),
        ("--model.search_fraction=1.5", "search_fraction must lie in 0..1"),
        ("--model.updates_per_cycle=0", "updates_per_cycle must be at least 1"),
        ("--model.min_temperature=0", "minimum in (0, 1]"),
        ("--model.log_every_n_steps=0", "every_n_steps must be at least 1"),
        ("--model.weight_bit_widths=[0,4]", "bit_widths must be"),
        ("--model.weight_bit_widths=[]", "bit_widths must be"),
        ("--model.preset=papr", "unknown preset 'papr'"),
        ("--model.choices={noises: tensor}", "unknown choice 'noises'"),
        ("--model.choices={noise: image}", "choice noise must be sample or tensor, got 'image'"),
        ("--model.scale_logit_learning_rate=true", "needs published_steps_per_epoch"),
    ],
)
def test_settings_of_hmq(refusal, setting, message):
    assert message in refusal(setting)


def test_a_constructors_value_error_is_one_line(refusal):
    assert refusal("--model.depth=0", method=Picky) == "error: depth must be at least 1, got 0"


def test_unknown_option(refusal):
    assert "--model.nope" in refusal("--model.nope=3")


def test_option_of_the_wrong_type(refusal):
    assert "model.seed" in refusal("--model.seed=x")


def test_unknown_data_module(refusal):
    assert "Digit" in refusal(data=("--data=Digit",))


def test_batch_larger_than_the_data(refusal):
    assert "batch_size 100 on 1 rank(s) needs 100 training images" in refusal("--data.batch_size=100")


def test_device_that_is_not_there(refusal):
    if torch.backends.mps.is_available():
        pytest.skip("has the device")
    assert "error: " in refusal("--trainer.accelerator=mps")


def test_run_without_an_end(refusal):
    assert "the schedule needs an end" in refusal("--trainer.max_steps=-1", "--trainer.max_epochs=-1")


def test_missing_checkpoint(refusal):
    assert refusal("--ckpt_path=nowhere.ckpt") == "error: no checkpoint nowhere.ckpt"


def test_truncated_checkpoint(refusal, fit, tmp_path):
    path = tmp_path / "cut.ckpt"
    fit(FullPrecision(), steps=1).save_checkpoint(path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert "cut.ckpt is damaged or no checkpoint" in refusal(f"--ckpt_path={path}", method=FullPrecision)


def test_missing_config(refusal):
    assert "nowhere.yaml" in refusal("--config=nowhere.yaml")


def test_missing_data_option(refusal):
    assert "data" in refusal(data=())


def test_programming_errors_keep_their_traceback(trainer_options, monkeypatch):
    def fails(*args):
        raise ValueError("ours")

    monkeypatch.setattr(FullPrecision, "training_loss", fails)
    with pytest.raises(ValueError, match="ours"):
        run_cli(FullPrecision, arguments=["fit", "--data=DigitsData", *trainer_options])


CONFIG = "model:\n  learning_rate: 0.001\ndata:\n  class_path: DigitsData\n  init_args:\n    subset: 64\n"
PACKED = {"packed.safetensors", "policy.json"}


@pytest.mark.parametrize("method, files", [(FullPrecision, {"weights.safetensors"}), (Uniform, PACKED)])
def test_a_run_with_a_configuration_file(method, files, trainer_options, tmp_path):
    (tmp_path / "config.yaml").write_text(CONFIG)
    run_cli(method, arguments=["fit", "--config", str(tmp_path / "config.yaml"), *trainer_options])
    assert files <= {path.name for path in tmp_path.iterdir()}


def shell(arguments, folder, repository):
    return subprocess.run(
        [sys.executable, "-m", "methods.hmq", "fit", *arguments],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(repository)},
        timeout=500,
    )


def test_a_run_from_the_shell(trainer_options, tmp_path, repository):
    (tmp_path / "config.yaml").write_text(CONFIG)
    run = shell(["--config=config.yaml", *trainer_options], tmp_path, repository)
    assert run.returncode == 0, run.stderr
    assert {path.name for path in tmp_path.iterdir()} >= PACKED


def test_a_refusal_from_the_shell(trainer_options, tmp_path, repository):
    run = shell(["--data=DigitsData", "--model.target_wcr=99", *trainer_options], tmp_path, repository)
    assert run.returncode == 2
    assert run.stderr == "error: target_wcr 99 is above what 1 bits everywhere give (32.00)\n"


@pytest.mark.parametrize("given", [["--constraint=size<=4KB"], ["--constraint", "size<=4KB"]])
def test_a_constraint_takes_the_place_of_the_size_target(given):
    from methods.full_precision import FullPrecision
    from methods.hmq import HMQ

    assert expand_constraint(["fit", *given, "--x"], HMQ) == [
        "fit", "--model.constraint=size<=4KB", "--model.target_wcr=null", "--x",
    ]  # fmt: skip
    assert expand_constraint(given, FullPrecision) == given  # which jsonargparse then refuses


def test_a_constraint_from_the_shell(trainer_options, tmp_path, repository):
    (tmp_path / "config.yaml").write_text(CONFIG)
    run = shell(["--config=config.yaml", "--constraint", "size<=3KB", *trainer_options], tmp_path, repository)
    assert run.returncode == 0, run.stderr
    assert {path.name for path in tmp_path.iterdir()} >= PACKED
    run = shell(["--config=config.yaml", "--constraint", "size<3KB", *trainer_options], tmp_path, repository)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1)
    assert "'size<3KB' is not of the form latency@bismo-edge<=50ms" in run.stderr
