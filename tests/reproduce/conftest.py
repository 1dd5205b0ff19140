"""Runs of the digits table in folders of the test's own, and a paper that has tables only."""

import json
import sys
import types
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


INVENTED = """
paper: {arxiv: null, table: 1, venue: Invented 2031}
caption: Sizes.
dataset: imagenet
inputs: {weights: 1000}
columns:
  bits: given
  top1: {kind: trained, unit: "%"}
  size: {kind: static, unit: KB, inputs: {bits: 32}}
  latency: {kind: static, unit: ms, residual: 0.02, fitted: true}
  energy: {kind: static, unit: mJ, formula: latency, residual: 0.02, rounding: cut}
notes: {energy: off by 1}
rows:
  - name: float
    method: float
    model: net
    published: {bits: 32, top1: 70.10, size: 4.00, latency: null}
    columns: {latency: given}
  - name: inv_4bit
    method: Inv
    model: net
    published: {bits: 4 MP, top1: 69.00, size: 0.50, latency: 12.1, energy: 11.9}
    inputs: {bits: 4, ms: 12.08}
  - name: other_8bit
    method: Other
    model: net
    published: {bits: 8, size: 0.9, latency: 20, energy: 24}
    columns: {latency: given}
    inputs: {bits: 8, ms: 20}
    notes: {size: misprint, energy: of another unit}
"""


@pytest.fixture
def write_table(tmp_path, monkeypatch):
    """A checkout with one paper, `inv`, that has no code; its table `one` is INVENTED.

    write_table("old", "new", text=INVENTED, name="one") writes methods/inv/tables/<name>.yaml with a text replaced.
    """
    from reproduce import static_check, tables

    static = types.ModuleType("methods.inv.static")
    static.size = lambda inputs: inputs["weights"] * inputs["bits"] / 8000
    static.latency = lambda inputs: inputs["ms"]
    monkeypatch.setitem(sys.modules, "methods.inv.static", static)
    monkeypatch.setattr(tables, "ROOT", tmp_path)
    monkeypatch.setattr(tables, "METHODS", tmp_path / "methods")
    monkeypatch.setattr(static_check, "VERDICTS", tmp_path / "static_verdicts.json")
    folder = tmp_path / "methods" / "inv"
    (folder / "tables").mkdir(parents=True)
    (folder / "static.py").touch()

    def write(old="", new="", text=INVENTED, name="one"):
        assert old in text
        (folder / "tables" / f"{name}.yaml").write_text(text.replace(old, new) if old else text)

    write()
    return write
