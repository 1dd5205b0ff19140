"""The scripts' answer to a data folder that is not there, before anything is installed."""

import os
import subprocess

import pytest


@pytest.mark.parametrize(
    "script, variable",
    [("hmq_imagenet", "IMAGENET_DIR"), ("hmq_cifar10", "CIFAR10_DIR"), ("baselines_cifar10", "CIFAR10_DIR")],
)
def test_a_missing_data_folder_is_one_line_and_status_2(script, variable, repository, tmp_path):
    done = subprocess.run(
        ["bash", str(repository / "reproduce" / f"{script}.sh")],
        env={**os.environ, variable: "/nonexistent", "VENV": str(tmp_path / "venv")},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert f"{variable}=/nonexistent" in done.stderr
    assert not (tmp_path / "venv").exists()
