"""Pictures: fronts, what the ledger gives, and that nothing is drawn of nothing."""

import json

import pytest
from PIL import Image

from common.bit_policy import BitPolicy
from common.errors import UserError
from reproduce import cli, plots
from reproduce.plots import Point


def entry(step, **changes):
    numbers = {"policy/expected_wcr": 4.0 + step, "policy/wcr": 4.0, "policy/target_wcr": 8.0}
    widths = {"conv1.weight": 8, "relu1.output": 8, "linear.weight": 8 - step}
    return {"step": step, **numbers, "policy/temperature": 0.5, "bit_widths": widths} | changes


def policy(**widths):
    sites = {"conv1.weight": 8, "conv2.weight": 2, "linear.weight": 4, "relu1.output": 8, "relu2.output": 4}
    return BitPolicy("digits_net", (1, 8, 8), sites | widths)


def record(row, top1, wcr, seed=0, **changes):
    cells = {"top1": top1, "wcr": wcr, "acr": 4.0, "float_top1": 91.0}
    known = {"paper": "none", "table": "none", "row": row, "method": "HMQ", "model": "digits_net", "seed": seed}
    return known | {"state": "measured", "cells": cells, "policy": dict(policy().sites)} | changes


def write_ledger(folder, *records):
    for index, content in enumerate(records):
        (folder / f"{index}.json").write_text(json.dumps(content))
    return folder


def is_picture(path):
    with Image.open(path) as image:
        width, height = image.size
        colors = image.convert("RGB").getcolors(maxcolors=2**24)
    return width >= 600 and height >= 400 and len(colors) > 10


def test_front_keeps_what_no_other_point_beats():
    points = [Point(4, 92), Point(8, 91), Point(8, 90), Point(10, 91.5), Point(16, 85)]
    assert pareto(points) == [(4, 92), (10, 91.5), (16, 85)]


def test_front_of_sizes_prefers_small_ones():
    points = [Point(100, 92), Point(50, 91), Point(60, 90), Point(20, 80)]
    assert pareto(points, larger_is_smaller=False) == [(20, 80), (50, 91), (100, 92)]


def pareto(points, **options):
    return [(p.x, p.top1) for p in plots.pareto_front(points, **options)]


def test_history_is_ordered_and_leaves_out_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "history.jsonl"
    path.write_text(json.dumps(entry(3)) + "\n" + json.dumps(entry(1)) + '\n{"step": 5, "pol')
    assert [line["step"] for line in plots.read_history(path)] == [1, 3]


def test_a_missing_history_is_named(tmp_path):
    with pytest.raises(UserError, match=r"no history .*history.jsonl"):
        plots.read_history(tmp_path / "history.jsonl")


def test_compression_over_training(tmp_path):
    assert is_picture(plots.plot_compression([entry(0), entry(2), entry(4)], tmp_path / "a" / "compression.png"))


def test_widths_over_training(tmp_path):
    assert is_picture(plots.plot_width_evolution([entry(0), entry(2), entry(4)], tmp_path / "widths.png"))


def test_front_picture(tmp_path):
    series = {"HMQ": [Point(8, 91, 0.2), Point(16, 90, 0.1)], "uniform": [Point(8, 90.5)], "empty": []}
    assert is_picture(plots.plot_pareto(series, tmp_path / "pareto.png", title="t", float_top1=92.0))


def test_bit_widths_per_layer_and_activation_sizes(tmp_path):
    layers, num_elements = plots.network_tables(policy())
    assert [plots.layer_kind(layers, i) for i in range(len(layers))] == [
        "first / last", "conv", "conv", "conv", "conv", "first / last",
    ]  # fmt: skip
    assert num_elements["relu1.output"] == 16 * 8 * 8
    assert is_picture(plots.plot_weight_widths(policy(), layers, tmp_path / "weights.png"))
    assert is_picture(plots.plot_activation_widths(policy(), num_elements, tmp_path / "activations.png"))


def test_of_nothing_nothing_is_drawn(tmp_path):
    path = tmp_path / "picture.png"
    nothing = BitPolicy("digits_net", (1, 8, 8), {})
    layers, num_elements = plots.network_tables(nothing)
    assert plots.plot_compression([], path) is None
    assert plots.plot_compression([{"step": 0, "policy/wcr": 4.0}] * 2, path) is None
    assert plots.plot_width_evolution([entry(0, bit_widths={})] * 3, path) is None
    assert plots.plot_pareto({"HMQ": []}, path) is None
    assert plots.plot_weight_widths(nothing, layers, path) is None
    assert plots.plot_activation_widths(nothing, num_elements, path) is None
    assert not path.exists()


def test_seeds_of_a_row_are_one_point_with_their_spread(tmp_path):
    records = [record("a", 90.0, 8.0), record("a", 91.0, 8.2, seed=1), record("b", 85.0, 16.0)]
    (front,) = plots.fronts(records)
    assert front.series == {"HMQ, ACR 4": [Point(8.1, 90.5, pytest.approx(0.70710678)), Point(16.0, 85.0)]}
    assert front.float_top1 == 91.0


def test_rehearsals_and_other_files_are_no_points(tmp_path):
    write_ledger(tmp_path, record("a", 90.0, 8.0, state="rehearsed"), {"cells": 3}, [1])
    (tmp_path / "damaged.json").write_text("{")
    assert plots.read_records(tmp_path) == []


def test_tables_and_networks_have_fronts_of_their_own():
    records = [record("a", 90.0, 8.0), record("a", 70.0, 8.0, model="resnet20"), record("a", 60.0, 8.0, table="other")]
    assert [front.name for front in plots.fronts(records)] == [
        "none_none_digits_net", "none_none_resnet20", "none_other_digits_net",
    ]  # fmt: skip


def test_published_points_stand_beside_measured_ones_of_the_same_network():
    measured = record("mobilenet_v1_wcr16", 68.0, 14.1, paper="hmq", table="table1", model="mobilenet_v1")
    (front,) = plots.fronts([measured])
    assert front.series["HMQ, ACR 4"] == [Point(14.1, 68.0)]
    assert Point(14.15, 68.36) in front.series["HMQ (published)"]
    assert Point(14.8, 57.14) in front.series["HAQ (published)"]
    assert Point(14.4, 65.7) not in front.series["HMQ (published)"]  # MobileNetV2's


def test_command_draws_the_ledger_and_run_folders(tmp_path, capsys):
    ledger = tmp_path / "ledger"
    ledger.mkdir()
    write_ledger(ledger, record("a", 90.0, 8.0))
    run = tmp_path / "runs" / "seed0"
    run.mkdir(parents=True)
    (run / "history.jsonl").write_text("".join(json.dumps(entry(step)) + "\n" for step in (0, 2)))
    policy().save(run / "policy.json")
    out = tmp_path / "out"
    assert cli.main(["plots", "--ledger", str(ledger), "--out", str(out), str(run.parent)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "none_none_a_seed0_activation_widths.png",
        "none_none_a_seed0_weight_widths.png",
        "pareto_none_none_digits_net.png",
        "runs_seed0_activation_widths.png",
        "runs_seed0_compression.png",
        "runs_seed0_weight_widths.png",
        "runs_seed0_widths_over_training.png",
    ]
    assert len(capsys.readouterr().out.splitlines()) == 7


def test_command_without_data_says_so(tmp_path, capsys):
    assert cli.main(["plots", "--ledger", str(tmp_path), "--out", str(tmp_path / "out")]) == 0
    assert "nothing to draw" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_an_unknown_run_folder_is_one_line_and_status_2(tmp_path, capsys):
    assert cli.main(["plots", "--ledger", str(tmp_path), str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"error: no run folder {tmp_path / 'none'}\n"
