"""Runs of table rows: records, resume, skipping, --force, and one line for bad input."""

import json
import os
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

ROW = "hmq_wcr16_acr4"


@pytest.fixture
def finished(command):
    status, out, err = command("run", "hmq/digits", "--rows", ROW)
    assert (status, err) == (0, "")
    return out


def test_a_run_records_what_it_measured(finished, record_of, folders):
    record = record_of(ROW)
    assert record["state"] == "measured"
    accuracies = {"top1", "top5", "float_top1", "float_top5"}
    assert set(record["cells"]) == {*accuracies, "wcr", "acr", "paired_drop", "paired_drop_low", "paired_drop_high"}
    assert record["data"]["name"] == "digits"
    assert record["data"]["test_images"] == 360
    assert (record["steps"], record["epochs_published"]) == (6, 30)
    assert record["settings"]["trainer"]["limit_train_batches"] == 3
    assert "weights" not in record["settings"]["model"]  # their hash, not their place
    assert len(record["start_weights"]) == 16
    assert record["step_time_ms"] > 0
    assert record["peak_memory_bytes"] > 10_000_000
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    packed = record["packed"]
    assert packed["num_weights"] == 18_896
    assert record["cells"]["wcr"] == 4 * 18_896 / packed["codes_bytes"]
    assert packed["logits_equal"]
    file = folders[1] / "hmq" / "digits" / ROW / "seed0" / "packed.safetensors"
    parts = ("codes_bytes", "tables_bytes", "floats_bytes", "header_bytes")
    assert sum(packed[part] for part in parts) == packed["file_bytes"] == file.stat().st_size
    assert sum(name.endswith(".weight") for name in record["policy"]) == 6
    top1 = record["cells"]["top1"] / 100
    assert record["sampling_error"]["top1"] == pytest.approx(100 * (top1 * (1 - top1) / 360) ** 0.5)


def test_the_run_leaves_its_files(finished, folders):
    folder = folders[1] / "hmq" / "digits" / ROW / "seed0"
    for name in ("history.jsonl", "policy.json", "settings.json", "checkpoints/last.ckpt", "record.json"):
        assert (folder / name).is_file(), name
    assert list(folder.glob("events.out.tfevents*"))


def test_a_shortened_run_is_shown_as_such(finished):
    assert "2 of 30 epochs" in finished
    assert "drop" in finished


def test_a_finished_row_is_not_run_again(finished, command, record_of):
    before = record_of(ROW)
    status, out, _ = command("run", "hmq/digits", "--rows", ROW)
    assert status == 0
    assert "finished before" in out
    assert record_of(ROW) == before


def test_force_runs_it_again_with_the_same_result(finished, command, record_of):
    before = record_of(ROW)
    status, out, _ = command("run", "hmq/digits", "--rows", ROW, "--force")
    assert status == 0
    assert "recorded in" in out
    after = record_of(ROW)
    assert after["finished"] >= before["finished"]
    assert (after["cells"], after["policy"]) == (before["cells"], before["policy"])


def test_other_settings_do_not_replace_a_record_unasked(finished, command, record_of):
    before = record_of(ROW)
    status, _, err = command("run", "hmq/digits", "--rows", ROW, "--model.learning_rate", "1e-4")
    assert status == 2
    assert "model.learning_rate 0.001 -> 0.0001" in err
    assert "--force" in err
    assert record_of(ROW) == before


def test_tables_show_the_record_and_its_age(finished, command, folders):
    status, out, _ = command("tables", "hmq/digits", "--json")
    assert status == 0
    cells = {(cell["row"], cell["column"]): cell for cell in json.loads(out)}
    needed = {"paper", "table", "row", "column", "published", "kind", "state", "value", "verdict", "reason", "record"}
    assert all(needed <= set(cell) for cell in cells.values())
    assert {cell["kind"] for cell in cells.values()} == {"static", "trained"}
    assert {cell["state"] for cell in cells.values()} == {"static", "measured", "not run"}
    assert cells[ROW, "acr"]["value"] == 4.0
    assert cells[ROW, "top1"]["state"] == "measured"
    assert cells[ROW, "top1"]["record"].endswith("seed0.json")
    assert cells[ROW, "top1"]["stale"] == ""
    assert cells["uniform_w2_acr4", "top1"]["state"] == "not run"
    assert cells["uniform_w2_acr4", "top1"]["value"] is None

    path = folders[0] / "hmq" / "digits" / ROW / "seed0.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"code_hash": "of other code"}))
    _, out, _ = command("tables", "hmq/digits", "--json")
    assert "changed since: code" in out
    _, out, _ = command("tables", "hmq/digits")
    assert "(stale)" in out
    _, out, _ = command("run", "hmq/digits", "--rows", ROW)
    assert "finished before with other code" in out


def test_the_stand_in_data_are_for_networks_of_natural_images(command):
    status, _, err = command("run", "hmq/digits", "--rows", ROW, "--rehearse", shorten=False)
    assert status == 2
    assert "rehearsal digits need 3 value(s)" in err


def test_a_rehearsal_of_a_natural_image_network_is_no_measurement(command, folders):
    row = "uniform_w2_acr4"
    status, out, err = command("run", "hmq/cifar10_resnet20", "--rows", row, "--rehearse", shorten=False)
    assert (status, err) == (0, "")
    assert "rehearsed" in out
    assert not folders[0].exists()
    _, out, _ = command("tables", "hmq/cifar10_resnet20", "--json")
    cells = {cell["column"]: cell for cell in json.loads(out) if cell["row"] == row}
    assert cells["top1"]["state"] == "rehearsed"
    assert cells["top1"]["value"] is None
    assert cells["acr"]["state"] == "static"


def test_a_packed_model_is_measured_again(finished, command, record_of, folders):
    file = folders[1] / "hmq" / "digits" / ROW / "seed0" / "packed.safetensors"
    status, out, _ = command("evaluate", str(file), "--json")
    assert status == 0
    result, record = json.loads(out), record_of(ROW)
    assert {name: result[name] for name in ("top1", "wcr", "acr")} == {
        name: record["cells"][name] for name in ("top1", "wcr", "acr")
    }
    assert result["bytes"]["file_bytes"] == file.stat().st_size

    damaged = file.with_name("damaged.safetensors")
    damaged.write_bytes(file.read_bytes()[:-100])
    for arguments in (
        [str(damaged)],
        [str(file.with_name("nothing.safetensors"))],
        [str(file.parent)],
        [str(file), "--data", "digit"],
        [str(file), "--data", "cifar10", "--data.root", str(file.parent)],
        [str(file), "--data.rot", "x"],
        [str(file), "--model", "resnet20"],
    ):
        status, out, err = command("evaluate", *arguments)
        assert (status, out, err.count("\n")) == (2, "", 1), (arguments, err)


@pytest.mark.parametrize(
    "arguments",
    [
        ["run", "hmq/tabel1"],
        ["run", "hmq/digits", "--rows", "hmq_wcr99"],
        ["run", "hmq/table1", "--rows", "haq_resnet50_2bit"],
        ["run", "hmq/digits", "--rows", ROW, "--seeds", "a"],
        ["run", "hmq/digits", "--rows", ROW, "--model.model", "digit_net"],
        ["run", "hmq/digits", "--rows", ROW, "--model.target_wcr", "high"],
        ["run", "hmq/digits", "--rows", ROW, "--model.target_wcr", "40"],
        ["run", "hmq/digits", "--rows", ROW, "--model.target_acr", "64"],
        ["run", "hmq/digits", "--rows", ROW, "--model.targt_wcr", "8"],
        ["run", "hmq/digits", "--rows", ROW, "--trainer.max_epoch", "8"],
        ["run", "hmq/digits", "--rows", ROW, "--trainer.accelerator", "abacus"],
        ["run", "hmq/digits", "--rows", ROW, "--data.batch_size", "100000"],
        ["run", "hmq/digits", "--rows", ROW, "--option", "8"],
        ["run", "hmq/digits", "--rows", ROW, "--model.learning_rate"],
        ["run", "hmq/digits", "--rows", ROW, "--epochs", "no"],
        ["run", "hmq/digits", "--rows", ROW, "--checkpoint-every", "0"],
        ["run", "hmq/digits", "--rows", ROW, "--model.weights", "nowhere.safetensors"],
        ["run", "hmq/cifar10_resnet20", "--rows", ROW, "--data.root", "/nonexistent"],
        ["tables", "hmq/tabel1"],
        ["table"],
        [],
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, command, monkeypatch):
    for name in ("CIFAR10_DIR", "RESNET20_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    if not arguments:
        from reproduce.cli import main

        assert main([]) == 2
        return
    status, _, err = command(*arguments, shorten="hmq/digits" in arguments)
    assert status == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_start_weights_have_to_be_given(command, monkeypatch):
    monkeypatch.delenv("RESNET20_WEIGHTS", raising=False)
    status, _, err = command("run", "hmq/cifar10_resnet20", "--rows", ROW, shorten=False)
    assert status == 2
    assert "--model.weights FILE or set RESNET20_WEIGHTS" in err


def test_list_names_the_rows_and_runs_none(command, folders):
    status, out, _ = command("run", "hmq/table1", "--list", shorten=False)
    assert status == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines["mobilenet_v1_wcr16"].endswith("seeds 0")
    assert lines["haq_resnet50_2bit"].endswith("published only: of HAQ, which the paper compares with")
    assert not folders[1].exists()


def test_list_shows_the_rows_that_were_named(command):
    _, out, _ = command("run", "hmq/table1", "hmq/digits", "--rows", "float", "--list", shorten=False)
    assert [line.split()[0] for line in out.splitlines()] == ["hmq/digits:", "float"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["inv/one", "--rows", "inv_4bit"], "inv/one row 'inv_4bit' has no run: the paper's code is not written yet"),
        (["inv/one", "--rows", "other_8bit"], "row 'other_8bit' has no run: of Other, which the paper compares with"),
        (["inv/one"], "inv/one: no row has a run: the paper's code is not written yet"),
        (["inv"], "inv/one: no row has a run: the paper's code is not written yet"),
    ],
)
def test_what_cannot_be_run_says_why(arguments, message, write_table, command):
    status, out, err = command("run", *arguments, shorten=False)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_rows_of_papers_without_code_are_listed(write_table, command):
    status, out, _ = command("run", "inv", "--list", shorten=False)
    assert status == 0
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert lines["inv_4bit"].endswith("published only: the paper's code is not written yet")


def test_static_cells_that_differ_need_a_reason(command):
    assert command("tables", "hmq/digits", "--check-static")[0] == 0


KILLED = """
import os, sys
from reproduce import callbacks
from reproduce.cli import main

class Killed(callbacks.AtomicCheckpoint):
    def save(self, trainer):
        if trainer.lightning_module.step == int(sys.argv[1]):
            (self.folder / "last.ckpt.partial").write_bytes(b"cut off")
            os.kill(os.getpid(), 9)
        super().save(trainer)

from reproduce import runner
runner.AtomicCheckpoint = Killed
main(sys.argv[2:])
"""


@pytest.mark.parametrize("step", [5, 10])  # of 12; the search ends after 7
def test_killed_and_run_again_equals_a_run_that_was_not(step, command, folders, start_weights, repository, record_of):
    run = ["run", "hmq/digits", "--rows", ROW, "--checkpoint-every", "1", "--epochs", "2"]
    run += ["--trainer.limit_train_batches", "6", "--model.weights", str(start_weights)]
    folder = folders[1] / "hmq" / "digits" / ROW / "seed0"
    killed = subprocess.run(
        [sys.executable, "-c", KILLED, str(step), *run], cwd=repository, env=os.environ, capture_output=True
    )
    assert killed.returncode == -9, killed.stderr
    assert not (folders[0]).exists()
    status, out, err = command(*run, shorten=False)
    assert (status, err) == (0, "")
    assert f"resuming after step {step - 1}" in out
    resumed, tensors = record_of(ROW), load_file(folder / "packed.safetensors")
    assert resumed["resumed_at"] == [step - 1]
    steps = [json.loads(line)["step"] for line in (folder / "history.jsonl").read_text().splitlines()]
    assert steps == sorted(set(steps))

    status, out, _ = command(*run, "--force", shorten=False)
    assert status == 0
    whole, expected = record_of(ROW), load_file(folder / "packed.safetensors")
    assert whole["resumed_at"] == []
    assert resumed["policy"] == whole["policy"]
    assert resumed["cells"] == whole["cells"]
    assert resumed["repair"] == whole["repair"]
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def test_an_unfinished_run_goes_on_with_its_own_settings_only(command, folders, start_weights):
    folder = folders[1] / "hmq" / "digits" / ROW / "seed0"
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "checkpoints" / "last.ckpt").write_bytes(b"not a checkpoint")
    (folder / "settings.json").write_text(json.dumps({"hash": "other", "settings": {"method": "other"}}))
    status, _, err = command("run", "hmq/digits", "--rows", ROW)
    assert status == 2
    assert "holds an unfinished run with other settings" in err
    (folder / "settings.json").unlink()
    status, _, err = command("run", "hmq/digits", "--rows", ROW)
    assert status == 2
    assert "is damaged" in err
    assert "--force starts anew" in err
