"""The quickstart at a tiny scale: what it prints is what its files hold."""

import json
import os

import pytest

from common.command_line import guarded
from reproduce import quickstart


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    out = tmp_path_factory.mktemp("quickstart")
    return quickstart.run(out, float_epochs=1, epochs=2, subset=128), out


def test_rows_are_the_float_net_and_four_packed_models(result):
    rows, _ = result
    assert [row.name for row in rows] == ["full precision", "hmq_wcr8", "uniform_4bit", "hmq_wcr16", "uniform_2bit"]
    assert (rows[0].wcr, rows[0].code_bytes) == (1.0, 4 * 18_896)
    assert rows[2].wcr == 8.0
    assert rows[4].wcr == 16.0
    assert all(row.acr == 4.0 for row in rows[1:])


def test_sizes_are_those_of_the_files_and_hmq_is_no_larger_than_uniform(result):
    rows, out = result
    for row in rows[1:]:
        assert row.file_bytes == os.path.getsize(out / row.name / "packed.safetensors")
        assert row.wcr == 4 * 18_896 / row.code_bytes
    assert rows[1].code_bytes <= rows[2].code_bytes == 9_448
    assert rows[3].code_bytes <= rows[4].code_bytes == 4_724


def test_all_runs_start_from_the_same_float_weights_and_take_the_same_steps(result):
    _, out = result
    last = [json.loads((out / name / "history.jsonl").read_text().splitlines()[-1]) for name in quickstart.RUNS]
    assert [line["step"] for line in last] == [3, 3, 3, 3]  # 2 epochs of 2 batches


def test_plots_and_tensorboard_logs_are_written(result):
    _, out = result
    assert (out / "plots" / "pareto.png").stat().st_size > 10_000
    assert (out / "plots" / "hmq_wcr8_weight_widths.png").exists()
    assert (out / "plots" / "hmq_wcr16_compression.png").exists()
    assert all(list((out / name).glob("events.out.tfevents.*")) for name in quickstart.RUNS)


def test_table_shows_the_drop_against_the_first_row():
    rows = [
        quickstart.Row("full precision", "32", 98.0, 1.0, 1.0, 400, 500),
        quickstart.Row("hmq_wcr8", "2-8, mean 3.98", 97.25, 8.05, 4.0, 50, 90),
    ]
    assert quickstart.table(rows).splitlines()[2].split() == [
        "hmq_wcr8", "2-8,", "mean", "3.98", "97.25", "0.75", "8.050", "4.00", "50", "90",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--epochs", "0"], "--epochs and --float-epochs must be at least 1"),
        (["--subset", "9999"], "subset 9999 is more than the 1437 training images"),
        (["--epoch", "x"], "unrecognized arguments: --epoch x"),
    ],
)
def test_bad_input_is_one_line_and_status_2(arguments, message, capsys, tmp_path):
    assert guarded(quickstart.main, [*arguments, "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
