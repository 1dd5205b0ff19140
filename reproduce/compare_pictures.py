"""The pictures of a comparison: fronts over compression and BitOPs, widths per layer, training curves."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path

from common.bit_policy import FLOAT
from reproduce import ledger
from reproduce.compare_jobs import Record
from reproduce.compare_report import Group, Line, Report, network_of, policy_of
from reproduce.plots import Curve, Point, plot_layer_widths, plot_methods, plot_training, read_curve

WIDE = 8.0  # a span of costs from which on an axis is logarithmic


def draw(report: Report, out: Path) -> list[tuple[Path, str]]:
    """PNG files with captions, as many as there is something to draw for."""
    floats = {line.mean("float_top1") for line in report.lines if line.numbers}
    float_top1 = floats.pop() if len(floats) == 1 else None
    drawn: list[tuple[Path | None, str]] = []
    subject = report.title.partition(":")[0]
    names = sorted({line.label for line in report.lines})  # whatever their ranks, each has one colour
    for name, label, value, larger_is_smaller in (
        ("wcr", "weight compression rate", lambda line: line.mean("wcr"), True),
        ("bitops", "BitOPs of one image", lambda line: line.mean("bitops"), False),
    ):
        ranked = _points(report, value, True)
        unranked = _points(report, value, False)
        xs = [p.x for group in (ranked, unranked) for points in group.values() for p in points]
        path = plot_methods(
            ranked,
            out / f"pareto_{name}.png",
            unranked,
            subject,
            label,
            larger_is_smaller,
            logarithmic=bool(xs) and max(xs) > WIDE * min(xs) > 0,
            float_top1=float_top1,
            names=names,
        )
        drawn.append((path, f"Accuracy against {label}; the line is the front of the ranked rows."))
    drawn += _widths(report, out)
    for group in report.groups:
        title = f"{subject}, {group.size.label}"
        path = plot_training(_curves(group), out / f"training_{_file(group)}.png", title, names)
        drawn.append((path, f"{title}: training of the first seed, of runs whose folder is still here."))
    return [(path, caption) for path, caption in drawn if path is not None]


def _points(report: Report, value: Callable[[Line], float | None], ranked: bool) -> Mapping[str, list[Point]]:
    points: dict[str, list[Point]] = {}
    for line in report.lines:
        x = value(line) if line.numbers else None
        if x is not None and bool(line.rank) == ranked:
            top1 = statistics.fmean(n.top1 for n in line.numbers)
            points.setdefault(line.label, []).append(Point(x, top1, line.top1_std or 0.0))
    return points


def _widths(report: Report, out: Path) -> list[tuple[Path | None, str]]:
    """One picture a size: methods whose inner layers differ in width."""
    drawn = []
    for group in report.groups:
        widths: dict[str, list[float]] = {}
        net = None
        for line in group.lines:
            record = next((entry.record for entry in line.entries if entry.record is not None), None)
            if record is None:
                continue
            own = network_of(record)
            policy = policy_of(record, own)
            bits = [policy.bits(f"{layer.name}.weight") for layer in own.layers]
            named = [width for width in bits[1:-1] if width < FLOAT]
            if len(set(named)) > 1 and (net is None or own.model == net.model):
                net = own
                widths[line.label] = bits
        if net is not None:
            title = f"Weight bit-widths of {net.model}, {group.size.label}"
            path = plot_layer_widths(widths, net.layers, out / f"widths_{_file(group)}.png", title)
            drawn.append((path, f"{title}: methods that choose a width per layer; 32 is float."))
    return drawn


def _file(group: Group) -> str:
    return "".join(c if c.isalnum() else "_" for c in group.size.label)


def _curves(group: Group) -> dict[str, Curve]:
    curves = {}
    for line in group.lines:
        entry = next((entry for entry in line.entries if entry.record is not None), None)
        if entry is None or entry.record is None or (folder := run_folder(entry.record)) is None:
            continue
        epochs, steps = entry.record.get("epochs_done"), entry.record.get("steps")
        if epochs and steps:
            curves[line.label] = read_curve(folder, steps / epochs)
    return curves


def run_folder(record: Record) -> Path | None:
    """The folder of the run that wrote a record, if it is still there and still that run's."""
    folder = ledger.runs_folder() / record["paper"] / record["table"] / record["row"] / f"seed{record['seed']}"
    kept = ledger.read_record(folder / "record.json")
    same = kept is not None and kept.get("finished") == record.get("finished")
    return folder if same else None
