"""Pictures of runs and of the ledger, as PNG files.

Compression over training (HMQ, figure 2), fronts of size and accuracy (figures 3 and 4), bit-widths per layer (figure
5), and bit-widths over training. Every number comes from a run's files or a record; what is not there is not drawn.
"""

from __future__ import annotations

import json
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, LogLocator, MaxNLocator, NullFormatter

from common.bit_policy import BitPolicy
from common.command_line import Parser
from common.compression import FLOAT_BITS
from common.errors import UserError
from common.graph import Layer, find_sites, layer_table, trace
from common.models import build_model, model_info
from reproduce.ledger import ledger_folder, runs_folder
from reproduce.tables import Row, load_table

STYLE = {
    "font.size": 11,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.3,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
}
# Okabe and Ito's colours, which colour-blind readers can tell apart
BLUE, ORANGE, GREEN, RED, PURPLE, SKY, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#222222",
)  # fmt: skip
SERIES_COLORS = (BLUE, RED, GREEN, ORANGE, PURPLE, SKY, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
# figure 5a: first and last layer red, depthwise green, pointwise blue
KIND_COLORS = {
    "first / last": RED, "depthwise": GREEN, "pointwise": BLUE, "conv": SKY, "linear": PURPLE,
}  # fmt: skip
MAX_LAYER_LABELS = 60
MIN_TOP1_SPAN = 2.0  # points
FAR = 15.0  # points below the median that would squeeze the other methods into a line


@dataclass(frozen=True)
class Point:
    """One quantized network in a front: x is a compression rate or a size, top1 and its spread are in percent."""

    x: float
    top1: float
    top1_std: float = 0.0


# -- training ---------------------------------------------------------------------------------------------------------


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """The lines of a `history.jsonl` (see PolicyLogger), in the order of steps; a line that was cut off is left out.

    Raises:
        UserError: no such file.
    """
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        raise UserError(f"no history {path}") from None
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and "step" in entry:
            entries.append(entry)
    return sorted(entries, key=lambda entry: entry["step"])


def plot_compression(history: Sequence[Mapping[str, Any]], path: str | Path) -> Path | None:
    """Figure 2: expected and actual weight compression rate with its target, and the temperature, over training steps.

    Under a constraint, the expected cost and its limit instead of the expected rate and its target. None, and no file,
    where the history has no expected rate.
    """
    entries = [entry for entry in history if "policy/expected_wcr" in entry]
    if len(entries) < 2:
        return None
    steps = [entry["step"] for entry in entries]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(8, 5.2), layout="constrained")
        rates, temperature = figure.subplots(2, 1, sharex=True, height_ratios=[3, 1])
        shown = "cost" if "policy/target_cost" in entries[-1] else "wcr"
        target = _column(entries, f"policy/target_{shown}")
        rates.step(steps, target, where="post", color=BLACK, ls="--", label="target")
        rates.plot(steps, _column(entries, f"policy/expected_{shown}"), color=BLUE, lw=2, label="expected")
        if shown == "wcr":
            rates.plot(steps, _column(entries, "policy/wcr"), color=RED, lw=2, label="actual (chosen widths)")
        rates.set_ylabel("weight compression rate" if shown == "wcr" else "cost under the constraint")
        rates.set_title("Weight compression over training" if shown == "wcr" else "Cost over training")
        rates.legend(loc="best")
        temperature.plot(steps, _column(entries, "policy/temperature"), color=GREEN, lw=1.5)
        temperature.set_ylabel("temperature")
        temperature.set_ylim(0, 1.05)
        temperature.set_xlabel("training step")
        return _save(figure, path)


def plot_width_evolution(history: Sequence[Mapping[str, Any]], path: str | Path) -> Path | None:
    """The width of every weight site over training steps, one row a site; None where the history has no widths."""
    entries = [entry for entry in history if entry.get("bit_widths")]
    if len(entries) < 2:
        return None
    sites = [site for site in entries[-1]["bit_widths"] if site.endswith(".weight")]
    if not sites:
        return None
    widths = [[entry["bit_widths"].get(site, FLOAT_BITS) for entry in entries] for site in sites]
    top = max(8, *(width for row in widths for width in row))
    steps = [entry["step"] for entry in entries]
    edges = [*steps, steps[-1] + (steps[-1] - steps[-2])]  # an entry holds until the next one
    with matplotlib.rc_context(STYLE | {"axes.grid": False}):
        figure = Figure(figsize=(8, max(3.0, 1.6 + 0.2 * len(sites))), layout="constrained")
        axes = figure.subplots()
        colors = ListedColormap(matplotlib.colormaps["viridis"].resampled(top).colors)
        bounds = [bits + 0.5 for bits in range(top + 1)]
        mesh = axes.pcolormesh(
            edges, [i - 0.5 for i in range(len(sites) + 1)], widths, cmap=colors, norm=BoundaryNorm(bounds, top)
        )
        bar = figure.colorbar(mesh, ax=axes, ticks=range(1, top + 1), pad=0.02)
        bar.set_label("bits per weight")
        _name_rows(axes, [site.removesuffix(".weight") for site in sites])
        axes.invert_yaxis()
        axes.set_xlabel("training step")
        axes.set_title("Weight bit-widths over training")
        return _save(figure, path)


def _column(entries: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [entry.get(key, float("nan")) for entry in entries]


# -- fronts -----------------------------------------------------------------------------------------------------------


def pareto_front(points: Iterable[Point], larger_is_smaller: bool = True) -> list[Point]:
    """The points that no other one beats in both top-1 and size, ordered by x.

    Args:
        larger_is_smaller: x is a compression rate; otherwise x is a size.
    """
    front: list[Point] = []
    sign = -1 if larger_is_smaller else 1
    for point in sorted(points, key=lambda p: (sign * p.x, -p.top1)):
        if not front or point.top1 > front[-1].top1:
            front.append(point)
    return sorted(front, key=lambda p: p.x)


def plot_pareto(
    series: Mapping[str, Sequence[Point]],
    path: str | Path,
    title: str = "",
    x_label: str = "weight compression rate",
    larger_is_smaller: bool = True,
    float_top1: float | None = None,
) -> Path | None:
    """Figures 3 and 4: top-1 against compression or size, a colour and a marker per series, its front as a line.

    None, and no file, where there is no point.
    """
    series = {name: points for name, points in series.items() if points}
    if not series:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(7.5, 5), layout="constrained")
        axes = figure.subplots()
        for index, (name, points) in enumerate(series.items()):
            color, marker = SERIES_COLORS[index % len(SERIES_COLORS)], MARKERS[index % len(MARKERS)]
            axes.errorbar(
                [p.x for p in points],
                [p.top1 for p in points],
                yerr=[p.top1_std for p in points] if any(p.top1_std for p in points) else None,
                fmt=marker,
                color=color,
                markerfacecolor="none",  # points that lie on each other stay visible
                markeredgewidth=2,
                ms=9,
                capsize=3,
                label=name,
            )
            front = pareto_front(points, larger_is_smaller)
            axes.plot([p.x for p in front], [p.top1 for p in front], color=color, lw=1.5, alpha=0.6)
        if float_top1 is not None:
            axes.axhline(float_top1, color=BLACK, ls="--", lw=1, label=f"full precision ({float_top1:.1f})")
        axes.set_xlabel(x_label)
        axes.set_ylabel("top-1 (%)")
        axes.set_title(title)
        axes.margins(0.08)
        # Smaller spans would make sampling error, or a byte of padding, look like a result.
        axes.set_ylim(_at_least(axes.get_ylim(), MIN_TOP1_SPAN))
        axes.set_xlim(_at_least(axes.get_xlim(), 0.2 * sum(axes.get_xlim()) / 2))
        axes.legend(loc="best")
        return _save(figure, path)


def _at_least(limits: tuple[float, float], span: float) -> tuple[float, float]:
    low, high = limits
    missing = max(0.0, span - (high - low)) / 2
    return low - missing, high + missing


# -- bit-widths per layer ---------------------------------------------------------------------------------------------


def layer_kind(layers: Sequence[Layer], index: int) -> str:
    """The word that colours a layer's bar."""
    return "first / last" if index in (0, len(layers) - 1) else layers[index].kind


def plot_weight_widths(policy: BitPolicy, layers: Sequence[Layer], path: str | Path) -> Path | None:
    """Figure 5a: the weight bit-width of every layer that the policy names, coloured by kind; None if it names none."""
    shown = [(i, layer) for i, layer in enumerate(layers) if f"{layer.name}.weight" in policy.sites]
    if not shown:
        return None
    widths = [policy.bits(f"{layer.name}.weight") for _, layer in shown]
    kinds = [layer_kind(layers, i) for i, _ in shown]
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=_bars_size(len(shown)), layout="constrained")
        axes = figure.subplots()
        _bars(axes, widths, [layer.name for _, layer in shown], [KIND_COLORS[kind] for kind in kinds])
        axes.set_ylabel("bits per weight")
        axes.set_ylim(0, max(8, *widths) + 1)
        axes.yaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_title(f"Weight bit-widths of {policy.model}")
        used = [kind for kind in KIND_COLORS if kind in kinds]
        handles = [Patch(color=KIND_COLORS[kind], label=kind) for kind in used]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(used))
        return _save(figure, path)


def plot_activation_widths(
    policy: BitPolicy,
    num_elements: Mapping[str, int],
    path: str | Path,
    compression_rates: Sequence[float] = (4, 8, 16),
) -> Path | None:
    """Figure 5b: bit-width of every activation tensor, and its size in float32 against the bounds of eq. 10.

    Args:
        num_elements: elements of one sample per tensor site, in execution order.
        compression_rates: whose bounds are drawn: the float32 size of the tensors that fit in 8 bits each.
    """
    sites = [site for site in num_elements if site in policy.sites]
    if not sites:
        return None
    names = [site.removesuffix(".output") for site in sites]
    widths = [policy.bits(site) for site in sites]
    kib = [4 * num_elements[site] / 1024 for site in sites]
    width, height = _bars_size(len(sites))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, 1.75 * height), layout="constrained")
        top, bottom = figure.subplots(2, 1, sharex=True)
        _bars(top, widths, [""] * len(names), [BLUE] * len(names))
        top.set_ylabel("bits per activation")
        top.set_ylim(0, max(8, *widths) + 1)
        top.yaxis.set_major_locator(MaxNLocator(integer=True))
        top.set_title(f"Activation bit-widths and tensor sizes of {policy.model}")
        _bars(bottom, kib, names, [SKY] * len(names))
        bottom.set_ylabel("float32 size (KiB)")
        bottom.set_ylim(0, 1.12 * max(kib))
        for rate in compression_rates:
            bound = max(kib) * 4 / rate  # a tensor up to this size keeps 8 bits: 8 |X| <= 32 max |X| / R_a
            bottom.axhline(bound, color=BLACK, ls="--", lw=1)
            bottom.annotate(
                f"ACR {rate:g}", (1.0, bound), xycoords=("axes fraction", "data"), xytext=(4, 0),
                textcoords="offset points", va="center", fontsize=9, annotation_clip=False,
            )  # fmt: skip
        bottom.set_title("dashed: largest tensor that keeps 8 bits", fontsize=10)
        return _save(figure, path)


def _bars_size(count: int) -> tuple[float, float]:
    return min(16.0, max(6.5, 2.0 + 0.24 * count)), 4.2


def _bars(axes: Axes, values: Sequence[float], names: Sequence[str], colors: Sequence[str]) -> None:
    positions = range(len(values))
    axes.bar(positions, values, color=colors, width=0.8)
    axes.grid(axis="x", visible=False)
    axes.set_xlim(-0.7, len(values) - 0.3)
    if len(names) <= MAX_LAYER_LABELS:
        axes.set_xticks(positions, names, rotation=90, fontsize=9)
    else:
        axes.set_xlabel("index in execution order")


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    if len(names) <= MAX_LAYER_LABELS:
        axes.set_yticks(range(len(names)), names, fontsize=9)
    else:
        axes.set_ylabel("index in execution order")


def _save(figure: Figure, path: str | Path) -> Path:
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)  # Figure without pyplot: the Agg canvas, no display
    return path


# -- methods side by side ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curve:
    """A run over training, in epochs: (epoch, value) of loss and of accuracy in percent; either may be empty."""

    loss: Sequence[tuple[float, float]]
    top1: Sequence[tuple[float, float]]


def method_style(index: int) -> dict[str, Any]:
    """Colour and marker of the index-th method, another pair for each of the first 49."""
    turn = index // len(SERIES_COLORS)
    return {
        "color": SERIES_COLORS[index % len(SERIES_COLORS)],
        "marker": MARKERS[(index + turn) % len(MARKERS)],
    }


def plot_methods(
    ranked: Mapping[str, Sequence[Point]],
    path: str | Path,
    unranked: Mapping[str, Sequence[Point]] | None = None,
    title: str = "",
    x_label: str = "weight compression rate",
    larger_is_smaller: bool = True,
    logarithmic: bool = False,
    float_top1: float | None = None,
    names: Sequence[str] | None = None,
) -> Path | None:
    """Accuracy of methods against size or cost, and the front of all ranked ones as a line.

    Points far below the others are left out of the picture and named in it.

    Args:
        ranked: method -> its points, full; the error bars are the points' `top1_std`.
        unranked: hollow, and outside the front.
        larger_is_smaller: x is a compression rate; otherwise a size or a cost.
        names: all methods, in an order that several pictures share: it gives each its colour.

    None, and no file, where there is no point.
    """
    unranked = unranked or {}
    names = list(names or dict.fromkeys([*ranked, *unranked]))
    every = [p for group in (ranked, unranked) for points in group.values() for p in points]
    if not every:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(9, max(5.0, 1.2 + 0.26 * len(names))), layout="constrained")
        axes = figure.subplots()
        front = pareto_front([p for points in ranked.values() for p in points], larger_is_smaller)
        if len(front) > 1:
            axes.plot([p.x for p in front], [p.top1 for p in front], color=BLACK, lw=1, alpha=0.5, label="front")
        for index, name in enumerate(names):
            style = method_style(index)
            for group, filled in ((ranked, True), (unranked, False)):
                points = group.get(name, ())
                if not points:
                    continue
                axes.errorbar(
                    [p.x for p in points],
                    [p.top1 for p in points],
                    yerr=[p.top1_std for p in points] if any(p.top1_std for p in points) else None,
                    fmt=style["marker"],
                    color=style["color"],
                    markerfacecolor=style["color"] if filled else "none",
                    alpha=0.85 if filled else 0.6,
                    markeredgewidth=1.5,
                    ms=8,
                    capsize=3,
                    elinewidth=1,
                    label=name if filled else f"{name} (not ranked)",
                )
        if float_top1 is not None:
            axes.axhline(float_top1, color=BLACK, ls="--", lw=1, label=f"full precision ({float_top1:.1f})")
        if logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
            axes.xaxis.set_minor_formatter(NullFormatter())
        axes.set_xlabel(x_label)
        axes.set_ylabel("top-1 (%)")
        axes.set_title(title)
        axes.margins(0.08)
        low = _floor([p.top1 for p in every])
        if low > min(p.top1 for p in every):
            axes.set_ylim(bottom=low - 1)
            groups = [(name, p) for name in names for g in (ranked, unranked) for p in g.get(name, ())]
            hidden = ", ".join(f"{name} {p.top1:.1f}" for name, p in groups if p.top1 < low)
            axes.annotate(f"below: {hidden}", (0.01, 0.01), xycoords="axes fraction", fontsize=9)
        axes.set_ylim(_at_least(axes.get_ylim(), MIN_TOP1_SPAN))
        if not larger_is_smaller:
            axes.xaxis.set_major_formatter(EngFormatter())
        if not logarithmic:
            axes.set_xlim(_at_least(axes.get_xlim(), 0.2 * sum(axes.get_xlim()) / 2))
        figure.legend(loc="outside right center", fontsize=9)
        return _save(figure, path)


def _floor(top1: Sequence[float]) -> float:
    """The lowest accuracy that is no further than FAR below the median."""
    return min(value for value in top1 if value >= statistics.median(top1) - FAR)


def plot_layer_widths(
    widths: Mapping[str, Sequence[float]], layers: Sequence[Layer], path: str | Path, title: str = ""
) -> Path | None:
    """Bits per weight of every layer, one panel a method (figure 5a for several); None where there is no method."""
    if not widths:
        return None
    kinds = [layer_kind(layers, i) for i in range(len(layers))]
    colors = [KIND_COLORS[kind] for kind in kinds]
    width, _ = _bars_size(len(layers))
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, 1.9 + 1.7 * len(widths)), layout="constrained")
        panels = figure.subplots(len(widths), 1, sharex=True, squeeze=False)[:, 0]
        for number, (axes, (name, bits)) in enumerate(zip(panels, widths.items(), strict=True)):
            labels = [layer.name for layer in layers] if number == len(widths) - 1 else [""] * len(layers)
            _bars(axes, bits, labels, colors)
            axes.set_ylim(0, max(8, *bits) + 1)
            axes.yaxis.set_major_locator(MaxNLocator(integer=True, nbins=5))
            axes.set_title(name, fontsize=10)
        figure.supylabel("bits per weight", fontsize=11)
        figure.suptitle(title)
        used = [kind for kind in KIND_COLORS if kind in kinds]
        handles = [Patch(color=KIND_COLORS[kind], label=kind) for kind in used]
        figure.legend(handles=handles, loc="outside lower center", ncols=len(used))
        return _save(figure, path)


def plot_training(
    curves: Mapping[str, Curve], path: str | Path, title: str = "", names: Sequence[str] | None = None
) -> Path | None:
    """Loss and validation accuracy over epochs, a colour a method; None where no run has left either.

    Args:
        names: see plot_methods.
    """
    names = list(names or curves)
    curves = {name: curve for name, curve in curves.items() if curve.loss or curve.top1}
    if not curves:
        return None
    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(11, max(4.5, 1.2 + 0.26 * len(curves))), layout="constrained")
        losses, accuracies = figure.subplots(1, 2)
        for name, curve in curves.items():
            index = names.index(name)
            style = method_style(index)
            line = "-" if index < len(SERIES_COLORS) else "--"
            losses.plot(*_columns(_binned(curve.loss)), color=style["color"], ls=line, lw=1.5, label=name)
            accuracies.plot(
                *_columns(curve.top1), color=style["color"], ls=line, marker=style["marker"], ms=4, lw=1.5, label=name
            )
        losses.set_ylabel("training loss")
        accuracies.set_ylabel("top-1 after the epoch (%)")
        for axes in (losses, accuracies):
            axes.set_xlabel("epoch")
        figure.suptitle(title)
        handles, labels = accuracies.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", fontsize=9)
        return _save(figure, path)


def _binned(points: Sequence[tuple[float, float]], bins: int = 40) -> list[tuple[float, float]]:
    """Means over equal stretches of x, at least two points each: single batches' losses are noise."""
    bins = min(bins, len(points) // 2)
    if bins < 4 or points[0][0] == points[-1][0]:
        return list(points)
    first, last = points[0][0], points[-1][0]
    stretches: dict[int, list[tuple[float, float]]] = defaultdict(list)
    for x, y in points:
        stretches[min(bins - 1, int(bins * (x - first) / (last - first)))].append((x, y))
    return [(statistics.fmean(x for x, _ in s), statistics.fmean(y for _, y in s)) for s in stretches.values()]


def _columns(points: Sequence[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def read_curve(folder: str | Path, steps_per_epoch: float) -> Curve:
    """Loss and validation accuracy from a run's TensorBoard files; empty where there are none.

    The loss is `train/task_loss`, of PolicyLogger's history where TensorBoard has none.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = Path(folder)
    if not folder.is_dir() or not steps_per_epoch > 0:
        return Curve((), ())
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    found = {tag: events.Scalars(tag) for tag in ("train/task_loss", "val/top1") if tag in events.Tags()["scalars"]}
    series = {
        tag: sorted({event.step: event.value for event in values}.items())  # of a resumed step the last one written
        for tag, values in found.items()
    }
    loss = series.get("train/task_loss", [])
    if len(loss) < 2 and (folder / "history.jsonl").is_file():
        history = read_history(folder / "history.jsonl")
        loss = [(entry["step"], entry["train/task_loss"]) for entry in history if "train/task_loss" in entry]
    return Curve(
        [((step + 1) / steps_per_epoch, value) for step, value in loss],
        [((step + 1) / steps_per_epoch, value) for step, value in series.get("val/top1", [])],
    )


# -- a run's folder ---------------------------------------------------------------------------------------------------


def network_tables(policy: BitPolicy, **model_args: Any) -> tuple[tuple[Layer, ...], dict[str, int]]:
    """Layer table of a policy's network, and elements of one sample per tensor site, in execution order."""
    network = trace(build_model(policy.model, **model_args), example := torch.zeros(2, *policy.input_shape))
    sites = {site.name: site.num_elements for site in find_sites(network, example) if site.kind == "tensor"}
    return layer_table(network, example), sites


def plot_run(folder: str | Path, out: str | Path, prefix: str = "", **model_args: Any) -> list[Path]:
    """Everything that can be drawn of one run from its `history.jsonl` and `policy.json`; none of it, no pictures."""
    folder, out = Path(folder), Path(out)
    drawn: list[Path | None] = []
    if (folder / "history.jsonl").is_file():
        history = read_history(folder / "history.jsonl")
        drawn.append(plot_compression(history, out / f"{prefix}compression.png"))
        drawn.append(plot_width_evolution(history, out / f"{prefix}widths_over_training.png"))
    if (folder / "policy.json").is_file():
        policy = BitPolicy.load(folder / "policy.json")
        layers, num_elements = network_tables(policy, **model_args)
        drawn.append(plot_weight_widths(policy, layers, out / f"{prefix}weight_widths.png"))
        drawn.append(plot_activation_widths(policy, num_elements, out / f"{prefix}activation_widths.png"))
    return [path for path in drawn if path is not None]


# -- the ledger -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Front:
    """What one picture of the ledger shows: series name -> points, x is WCR; `float_top1` if it is one for all."""

    name: str
    title: str
    series: Mapping[str, Sequence[Point]]
    float_top1: float | None


def read_records(ledger: str | Path) -> list[dict[str, Any]]:
    """Records of measured runs under a folder; rehearsals and what is no record are left out."""
    records = []
    for path in sorted(Path(ledger).rglob("*.json")):
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(record, dict) and isinstance(record.get("cells"), dict) and record.get("state") == "measured":
            records.append(record)
    return records


def fronts(records: Iterable[Mapping[str, Any]]) -> list[Front]:
    """One front a table and network, because schedules are alike within a table; a series is a method at one ACR.

    The seeds of a row are one point. What the table's paper printed for the same network stands beside it, named so.
    """
    rows: dict[tuple[str, str, str], dict[str, list[Mapping[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for record in records:
        if all(isinstance(record["cells"].get(name), (int, float)) for name in ("top1", "wcr")):
            key = tuple(str(record.get(name)) for name in ("paper", "table", "model"))
            rows[key][str(record.get("row"))].append(record)  # type: ignore[index]
    found = []
    for (paper, table, network), by_row in sorted(rows.items()):
        printed = _table_rows(f"{paper}/{table}")
        series: dict[str, list[Point]] = defaultdict(list)
        for row, seeds in by_row.items():
            cells = [record["cells"] for record in seeds]
            method = printed[row].method if row in printed else str(seeds[0].get("method"))
            top1 = [values["top1"] for values in cells]
            spread = statistics.stdev(top1) if len(top1) > 1 else 0.0
            wcr = statistics.fmean(values["wcr"] for values in cells)
            series[_with_acr(method, cells[0].get("acr"))].append(Point(wcr, statistics.fmean(top1), spread))
        models = {printed[row].model for row in by_row if row in printed}
        for row in printed.values():
            top1, wcr = row.published.get("top1"), row.published.get("wcr")
            if row.model in models and isinstance(top1, (int, float)) and isinstance(wcr, (int, float)):
                series[f"{_with_acr(row.method, row.published.get('acr'))} (published)"].append(Point(wcr, top1))
        floats = {record["cells"].get("float_top1") for seeds in by_row.values() for record in seeds}
        float_top1 = floats.pop() if len(floats) == 1 else None
        found.append(Front(f"{paper}_{table}_{network}", f"{network} ({paper}/{table})", dict(series), float_top1))
    return found


def _table_rows(name: str) -> dict[str, Row]:
    try:
        return {row.name: row for row in load_table(name).rows}
    except UserError:
        return {}  # a record outlives its table file


def _with_acr(method: str, acr: Any) -> str:
    return f"{method}, ACR {acr:.3g}" if isinstance(acr, (int, float)) else method


def plot_record(record: Mapping[str, Any], out: str | Path) -> list[Path]:
    """Figure 5 of a record whose weights have several widths; nothing of a uniform one."""
    model, sites = record.get("model"), record.get("policy")
    if not isinstance(model, str) or not isinstance(sites, Mapping):
        return []
    if len({str(width) for site, width in sites.items() if site.endswith(".weight")}) < 2:
        return []
    shape = model_info(model).input_shape
    if shape is None:
        return []
    policy = BitPolicy.from_dict({"version": 1, "model": model, "input_shape": list(shape), "sites": dict(sites)})
    layers, num_elements = network_tables(policy)
    prefix = f"{record.get('paper')}_{record.get('table')}_{record.get('row')}_seed{record.get('seed')}"
    pictures = [
        plot_weight_widths(policy, layers, Path(out) / f"{prefix}_weight_widths.png"),
        plot_activation_widths(policy, num_elements, Path(out) / f"{prefix}_activation_widths.png"),
    ]
    return [path for path in pictures if path is not None]


def main(arguments: Sequence[str]) -> int:
    """`python -m reproduce plots`: draws what the ledger and the given run folders hold; the exit status.

    Raises:
        UserError: bad arguments, no such folder.
    """
    parser = Parser(prog="python -m reproduce plots", description=__doc__, allow_abbrev=False)
    parser.add_argument("runs", nargs="*", help="folders of runs; all below them with a history.jsonl are drawn")
    parser.add_argument("--out", help="folder for the pictures (default runs/plots)")
    parser.add_argument("--ledger", help="folder of records (default reproduce/ledger)")
    options = parser.parse_args(arguments)
    out = Path(options.out or runs_folder() / "plots")
    ledger = Path(options.ledger or ledger_folder())
    pictures: list[Path] = []
    records = read_records(ledger)
    for front in fronts(records):
        path = out / f"pareto_{front.name}.png"
        pictures += filter(None, [plot_pareto(front.series, path, front.title, float_top1=front.float_top1)])
    for record in records:
        pictures += plot_record(record, out)
    for folder in map(Path, options.runs):
        if not folder.is_dir():
            raise UserError(f"no run folder {folder}")
        for history in sorted(folder.rglob("history.jsonl")):
            name = "_".join((folder.resolve().name, *history.parent.relative_to(folder).parts))
            pictures += plot_run(history.parent, out, prefix=f"{name}_")
    for picture in pictures:
        print(picture)
    if not pictures:
        print(f"nothing to draw: no measured records in {ledger}, no history in the run folders given")
    return 0
