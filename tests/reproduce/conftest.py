"""Runs of the digits table in folders of the test's own."""

import json
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def start_weights(tmp_path_factory) -> Path:
    """An untrained digits_net: what a run starts from matters to no test here."""
    import torch
    from safetensors.torch import save_file

    from common.models import build_model

    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "digits_net.safetensors"
    save_file(build_model("digits_net").state_dict(), path)
    return path


@pytest.fixture
def folders(tmp_path, monkeypatch):
    """(ledger, runs): where commands read and write in this test."""
    ledger, runs = tmp_path / "ledger", tmp_path / "runs"
    monkeypatch.setenv("LEDGER_DIR", str(ledger))
    monkeypatch.setenv("RUNS_DIR", str(runs))
    return ledger, runs


@pytest.fixture
def command(folders, start_weights, capfd):
    """command("run", "hmq/digits", ...) -> (status, stdout, stderr); runs are of 2 epochs of 3 steps."""
    from reproduce.cli import main

    short = ["--epochs", "2", "--trainer.limit_train_batches", "3", "--data.subset", "192"]
    short += ["--model.weights", str(start_weights)]

    def call(*arguments, shorten=True):
        capfd.readouterr()
        run = arguments[0] == "run" and shorten
        status = main([arguments[0], *(short if run else []), *arguments[1:]])
        captured = capfd.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def record_of(folders):
    """record_of(row) -> the record in the test's ledger."""

    def read(row, seed=0):
        return json.loads((folders[0] / "hmq" / "digits" / row / f"seed{seed}.json").read_text())

    return read
