"""What a comparison says: numbers of every run, rows over seeds, who may be ranked, as text, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from common.bit_policy import BitPolicy
from common.errors import UserError
from hardware import Constraint, CostModel, Network, cost_model, network, target_names
from reproduce.compare_jobs import Entry, Record
from reproduce.compare_terms import MAX_SIZE_DIFFERENCE, Size, size_difference
from reproduce.settings import relative

QUANTITIES = ("latency", "energy")
NOTHING = "-"


@dataclass(frozen=True)
class Costs:
    """The cost models of a report: the target's, and its energy or latency where it has both.

    Attributes:
        models: quantity -> model.
        constraint: a limit that rows are held to; None without.
    """

    target: str
    models: Mapping[str, CostModel]
    constraint: Constraint | None = None

    @classmethod
    def of(cls, target: str, constraint: Constraint | None = None) -> Costs:
        """
        Raises:
            UserError: unknown target.
        """
        models = [cost_model(target)]
        base = target.removesuffix("-energy")
        other = f"{target}-energy" if base == target else base
        if other in target_names():
            models.append(cost_model(other))
        return cls(target, {model.quantity: model for model in models}, constraint)


@dataclass(frozen=True)
class Numbers:
    """What one record gives; None where it does not say, or where a cost model does not take the widths.

    Attributes:
        packed_bytes: packed codes, float layers in float32.
        file_bytes: of the whole packed file.
        wcr: float32 weights over `packed_bytes`.
        bitops: sum of MACs x weight bits x activation bits of one image; float is 32.
        costs: quantity -> cost in its model's unit.
        limited: what the constraint bounds.
        drop_interval: of 95 %, of the drop on the same images, in points.
    """

    float_top1: float
    top1: float
    sampling_error: float
    wcr: float
    acr: float | None
    packed_bytes: int
    file_bytes: int | None
    bitops: float | None
    costs: Mapping[str, float | None]
    limited: float | None
    peak_memory_bytes: int | None
    epochs: float
    drop_interval: tuple[float, float] | None = None


def network_of(record: Record) -> Network:
    """The network of a run, for its layer table."""
    model = record["settings"]["model"]
    arguments = {key: value for key, value in (model.get("model_args") or {}).items() if key != "pretrained"}
    if model.get("num_classes"):
        arguments["num_classes"] = model["num_classes"]
    return network(model["model"], model.get("input_shape"), **arguments)


def policy_of(record: Record, net: Network) -> BitPolicy:
    content = {"version": 1, "model": net.model, "input_shape": list(net.input_shape), "sites": record["policy"]}
    return BitPolicy.from_dict(content)


def numbers_of(record: Record, costs: Costs) -> Numbers:
    """
    Raises:
        UserError: a record without accuracy or packed file, or of a network without a layer table.
    """
    cells = record["cells"]
    if missing := [name for name in ("float_top1", "top1") if name not in cells]:
        raise UserError(f"its record has no {missing[0]}")
    net = network_of(record)
    policy = policy_of(record, net)
    packed = record.get("packed") or {}
    size = weight_bytes(packed, policy, net)

    def cost(model: CostModel) -> float | None:
        try:
            return model.policy_cost(net.layers, policy).total
        except UserError:
            return None  # widths that the machine does not have, such as float activations

    constraint = costs.constraint
    return Numbers(
        float_top1=cells["float_top1"],
        top1=cells["top1"],
        sampling_error=record["sampling_error"]["top1"],
        wcr=4 * net.num_weights / size,
        acr=cells.get("acr"),
        packed_bytes=size,
        file_bytes=packed.get("file_bytes"),
        bitops=cost(cost_model("bitops")),
        costs={quantity: cost(model) for quantity, model in costs.models.items()},
        limited=None if constraint is None else cost(constraint.model),
        peak_memory_bytes=record.get("peak_memory_bytes"),
        epochs=record.get("epochs_done") or 0.0,
        drop_interval=(cells["paired_drop_low"], cells["paired_drop_high"]) if "paired_drop_low" in cells else None,
    )


def weight_bytes(packed: Mapping[str, Any], policy: BitPolicy, net: Network) -> int:
    """Bytes of the packed codes, and of the weights that are left in float32."""
    if "codes_bytes" not in packed:
        raise UserError("its record has no packed file")
    named = [layer for layer in net.layers if f"{layer.name}.weight" in policy.sites]
    return packed["codes_bytes"] + 4 * (net.num_weights - sum(layer.num_weights for layer in named))


# -- rows -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """A method at a size, over its seeds.

    Attributes:
        numbers: of every finished seed.
        reason: why there is nothing, or why it is left out of ranking and fronts; empty for a ranked row.
        notes: what holds for a row that counts all the same, such as a stale mark.
        rank: among the ranked rows of its group, by mean accuracy, equal ones alike; 0 where it is not ranked.
        behind: (difference to the first row in points, its standard error); None for the first and unranked rows.
        step_ratio, memory_ratio: against full precision, measured by `--bench` alone.
    """

    method: str
    label: str
    size: Size
    entries: tuple[Entry, ...]
    numbers: tuple[Numbers, ...]
    reason: str = ""
    notes: str = ""
    rank: int = 0
    behind: tuple[float, float] | None = None
    step_ratio: float | None = None
    memory_ratio: float | None = None

    @property
    def failed(self) -> bool:
        return any(entry.state == "failed" for entry in self.entries)

    def mean(self, name: str) -> float | None:
        """Mean over seeds of one of the Numbers; None where a seed lacks it."""
        values = [getattr(n, name) for n in self.numbers]
        return statistics.fmean(values) if values and None not in values else None

    def cost(self, quantity: str) -> float | None:
        values = [n.costs.get(quantity) for n in self.numbers]
        known = [value for value in values if value is not None]
        return statistics.fmean(known) if known and len(known) == len(values) else None

    @property
    def top1_std(self) -> float | None:
        """Over seeds; None for one seed."""
        return statistics.stdev(n.top1 for n in self.numbers) if len(self.numbers) > 1 else None

    @property
    def error(self) -> float:
        """Standard error of the mean accuracy: over seeds, or, with one seed, of the sample of test images."""
        std = self.top1_std
        return self.numbers[0].sampling_error if std is None else std / math.sqrt(len(self.numbers))


@dataclass(frozen=True)
class Group:
    """The rows of one size, ranked ones first."""

    size: Size
    lines: tuple[Line, ...]

    @property
    def ranked(self) -> tuple[Line, ...]:
        return tuple(line for line in self.lines if line.rank)


@dataclass(frozen=True)
class Report:
    """A comparison.

    Attributes:
        title: one line.
        terms: name -> text: what is equal for all.
        groups: one a size.
        costs: the cost models of the columns.
        notes: what holds for the whole of it.
    """

    title: str
    terms: Mapping[str, str]
    groups: tuple[Group, ...]
    costs: Costs
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def lines(self) -> list[Line]:
        return [line for group in self.groups for line in group.lines]


def make_groups(entries: Sequence[Entry], sizes: Sequence[Size], costs: Costs, equal: bool = True) -> tuple[Group, ...]:
    """Rows of every size, checked against the terms and ranked.

    Args:
        entries: of all methods, sizes and seeds.
        sizes: in the order of the report.
        equal: sizes have to be equal; under a constraint its limit is what rows share.
    """
    references = _references(entries)
    groups = []
    for size in sizes:
        own = [entry for entry in entries if entry.size == size.label]
        names = dict.fromkeys((entry.method, entry.label) for entry in own)
        lines = []
        for method, label in names:
            of_line = tuple(entry for entry in own if (entry.method, entry.label) == (method, label))
            lines.append(_line(method, label, size, of_line, costs, references, equal))
        groups.append(Group(size, _ranked(lines)))
    return tuple(groups)


def _line(
    method: str,
    label: str,
    size: Size,
    entries: tuple[Entry, ...],
    costs: Costs,
    references: Mapping[tuple[str, int], Any],
    equal: bool,
) -> Line:
    numbers, reasons = [], []
    for entry in entries:
        if entry.record is None:
            reasons.append(_with_seed(entry, entries, _reason(entry)))
            continue
        try:
            numbers.append(numbers_of(entry.record, costs))
        except UserError as error:
            reasons.append(_with_seed(entry, entries, str(error)))
            continue
        if different := _different_terms(entry, references):
            reasons.append(_with_seed(entry, entries, different))
    if numbers and equal and not reasons:
        reasons += filter(None, [_size_reason(numbers, size)])
    if numbers and costs.constraint is not None:
        reasons += filter(None, [_limit_reason(numbers, costs.constraint)])
    stale = dict.fromkeys(entry.reason for entry in entries if entry.record is not None and entry.reason)
    notes = f"stale ({'; '.join(stale)})" if stale else ""
    return Line(method, label, size, entries, tuple(numbers), "; ".join(dict.fromkeys(reasons)), notes)


def _with_seed(entry: Entry, entries: Sequence[Entry], reason: str) -> str:
    """With the seed where others of the row have another fate."""
    alike = all(e.record is None and e.reason == entry.reason for e in entries)
    return reason if len(entries) == 1 or alike else f"seed {entry.seed}: {reason}"


def _reason(entry: Entry) -> str:
    at = f" at {entry.size}"
    return {
        "not offered": f"not offered{at}: {entry.reason}",
        "refused": f"refused: {entry.reason}",
        "failed": f"failed: {entry.reason}",
        "not run": "not run" + (f": {entry.reason}" if entry.reason else ""),
    }[entry.state]


_EQUAL: dict[str, tuple[str, Callable[[Record], Any]]] = {
    "start weights": ("{}", lambda record: record.get("start_weights")),
    "data": ("{}", lambda record: (record.get("data") or {}).get("fingerprint")),
    "batch size": ("{}", lambda record: (record.get("batch_size") or 0) * (record.get("devices") or 1)),
    # a calibrator has none
    "epochs": ("{:g}", lambda record: record.get("epochs_done") or None),
}


def _references(entries: Iterable[Entry]) -> dict[tuple[str, int], Any]:
    """What most records of a seed have."""
    found: dict[tuple[str, int], Counter[Any]] = {}
    for entry in entries:
        for name, (_, of) in _EQUAL.items():
            if entry.record is not None and of(entry.record) is not None:
                found.setdefault((name, entry.seed), Counter())[of(entry.record)] += 1
    return {key: counts.most_common(1)[0][0] for key, counts in found.items()}


def _different_terms(entry: Entry, references: Mapping[tuple[str, int], Any]) -> str:
    record = entry.record or {}
    if record.get("state") == "rehearsed":
        return f"rehearsed: {record.get('reason')}"
    for name, (form, of) in _EQUAL.items():
        value, usual = of(record), references.get((name, entry.seed))
        if value is not None and value != usual:
            return f"refused: {name} {form.format(value)}, the others {form.format(usual)}"
    return ""


def _size_reason(numbers: Sequence[Numbers], size: Size) -> str:
    if not size.num_bytes > 0:
        return "refused: its settings state no size"
    worst = max((n.packed_bytes for n in numbers), key=lambda b: size_difference(b, size.num_bytes))
    if size_difference(worst, size.num_bytes) <= MAX_SIZE_DIFFERENCE:
        return ""
    difference = f"{100 * (worst / size.num_bytes - 1):+.1f} %"
    allowed = f"{100 * MAX_SIZE_DIFFERENCE:g} %"
    return (
        f"refused: {worst:,} bytes of weights, {size.label} has {size.num_bytes:,.0f}: {difference} ({allowed} allowed)"
    )


def _limit_reason(numbers: Sequence[Numbers], constraint: Constraint) -> str:
    unit = f" {constraint.model.unit}".rstrip()
    if any(n.limited is None for n in numbers):
        return f"refused: {constraint.model.name} does not take its widths"
    worst = max(n.limited for n in numbers if n.limited is not None)
    if worst <= constraint.limit * (1 + 1e-9):
        return ""
    return f"over the limit: {worst:.4g}{unit}, {constraint.text}"


def _ranked(lines: Sequence[Line]) -> tuple[Line, ...]:
    """Ranked rows by accuracy, then those with numbers, then those without."""
    able = sorted((line for line in lines if line.numbers and not line.reason), key=lambda line: -_top1(line))
    result = []
    for line in able:
        behind = None
        if line is not able[0]:
            behind = (_top1(line) - _top1(able[0]), math.hypot(line.error, able[0].error))
        rank = 1 + sum(_top1(other) > _top1(line) for other in able)
        result.append(replace(line, rank=rank, behind=behind))
    rest = [line for line in lines if line.reason or not line.numbers]
    return (*result, *sorted(rest, key=lambda line: not line.numbers))


def _top1(line: Line) -> float:
    return line.mean("top1") or 0.0


# -- tables -----------------------------------------------------------------------------------------------------------


def _number(value: float | None, form: str = ".2f") -> str:
    return NOTHING if value is None else format(value, form)


def accuracy_text(line: Line) -> str:
    """Mean ± standard deviation with the number of seeds; [± sampling error] with one seed."""
    if not line.numbers:
        return NOTHING
    mean, std = _top1(line), line.top1_std
    if std is None:
        return f"{mean:.2f} [± {line.error:.2f}]"
    return f"{mean:.2f} ± {std:.2f} (n={len(line.numbers)})"


def drop_text(line: Line) -> str:
    """Float minus quantized accuracy; with one seed and answers image by image, [its 95 % interval]."""
    if not line.numbers:
        return NOTHING
    text = f"{statistics.fmean(n.float_top1 - n.top1 for n in line.numbers):.2f}"
    interval = line.numbers[0].drop_interval if len(line.numbers) == 1 else None
    return text if interval is None else f"{text} [{interval[0]:.2f}, {interval[1]:.2f}]"


def bitops_text(value: float | None) -> str:
    if value is None:
        return NOTHING
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "K")):
        if value >= factor:
            return f"{value / factor:.3g} {unit}"
    return f"{value:.3g}"


def record_text(line: Line) -> str:
    """The records, as paths; several seeds of one folder as one."""
    paths = [relative(entry.path) for entry in line.entries if entry.path is not None]
    if len(paths) < 2:
        return "".join(paths)
    head, tail = paths[0], paths[-1]
    return f"{head} ... {tail.rsplit('/', 2)[-1] if tail.endswith('.json') else tail}"


def header(costs: Costs) -> list[str]:
    """Of the columns of `row`."""
    quantities = [f"{name} {costs.models[name].unit}" if name in costs.models else name for name in QUANTITIES]
    return [
        *("rank", "method", "float", "top-1 %", "to best", "drop", "WCR", "ACR", "bytes", "file", "BitOPs"),
        *quantities,
        *("step x", "peak MiB", "epochs", "record, reason"),
    ]


def row(line: Line) -> list[str]:
    """The texts of a row."""
    behind = "" if line.behind is None else f"{line.behind[0]:+.2f} ± {line.behind[1]:.2f}"
    peak = line.mean("peak_memory_bytes")
    memory = NOTHING if peak is None else f"{peak / 2**20:.0f}"
    if line.memory_ratio is not None:
        memory += f" (x{line.memory_ratio:.2f})"
    last = "; ".join(filter(None, (line.reason, line.notes))) or record_text(line)
    return [
        str(line.rank) if line.rank else NOTHING,
        line.label,
        _number(line.mean("float_top1")),
        accuracy_text(line),
        behind or NOTHING,
        drop_text(line),
        _number(line.mean("wcr")),
        _number(line.mean("acr")),
        _number(line.mean("packed_bytes"), ",.0f"),
        _number(line.mean("file_bytes"), ",.0f"),
        bitops_text(line.mean("bitops")),
        *(_number(line.cost(name), ".4g") for name in QUANTITIES),
        _number(line.step_ratio),
        memory,
        _number(line.mean("epochs"), ".3g"),
        last,
    ]


def legend(report: Report) -> list[str]:
    """What the columns mean, a sentence each."""
    lines = [
        "top-1: of the packed file, loaded again, on all test images. ± is the standard deviation over n seeds; [±], "
        "with one seed, the sampling error of the test images. A difference to the best row that is below twice its "
        "error shows nothing. [,] after a drop: its 95 % interval, from the answers to the same images.",
        "WCR: float32 weights over packed codes (float layers in float32), whose bytes stand under bytes; file: the "
        "whole packed file. BitOPs: MACs x weight bits x activation bits of one image.",
        "ACR: of the largest activation tensor. A method that takes a rate instead of a width for activations meets "
        "the rate of the group's width; its smaller tensors keep more bits, which BitOPs show.",
        f"{' and '.join(report.costs.models)} on {report.costs.target}: simulated, not measured on a device.",
        "step x: time of a training step over that of the float network, measured side by side with --bench only. "
        "peak MiB: of the whole process of a run, data included, where it had one of its own.",
    ]
    return [*lines, *report.notes]


def verdict(group: Group) -> str:
    """One sentence: who leads, and whether the lead is more than chance."""
    ranked = group.ranked
    if not ranked:
        return f"{group.size.label}: no row can be ranked."
    if len(ranked) == 1:
        return f"{group.size.label}: {ranked[0].label} is the only row that can be ranked."
    difference, error = ranked[1].behind or (0.0, 0.0)
    lead = (
        f"{group.size.label}: {ranked[0].label} before {ranked[1].label} by {abs(difference):.2f} points, ± {error:.2f}"
    )
    if abs(difference) > 2 * error:
        return f"{lead}."
    return f"{lead}: no difference is shown (below twice its standard error)."


def group_title(group: Group) -> str:
    size = group.size
    if not size.num_bytes > 0:
        return size.label
    return f"{size.label}: {size.num_bytes:,.0f} bytes of weights (WCR {size.wcr:.2f})"


def text(report: Report) -> str:
    """For a terminal."""
    lines = [report.title, *(f"  {name}: {value}" for name, value in report.terms.items())]
    head = header(report.costs)
    for group in report.groups:
        body = [head, *(row(line) for line in group.lines)]
        widths = [max(len(entry[i]) for entry in body) for i in range(len(head) - 1)]
        lines += ["", group_title(group)]
        for *start, last in body:
            lines.append("  " + "  ".join([*(t.ljust(w) for t, w in zip(start, widths, strict=True)), last]).rstrip())
        lines.append(verdict(group))
    return "\n".join([*lines, "", *legend(report)])


def markdown(report: Report) -> str:
    """A page with one table a size."""
    lines = [f"# {report.title}", "", *(f"- {name}: {value}" for name, value in report.terms.items())]
    head = header(report.costs)
    for group in report.groups:
        lines += ["", f"## {group_title(group)}", "", _md(head), _md(["---"] * len(head))]
        lines += [_md(row(line)) for line in group.lines]
        lines += ["", verdict(group)]
    return "\n".join([*lines, "", *(f"{sentence}\n" for sentence in legend(report))]).rstrip() + "\n"


def _md(entries: Sequence[str]) -> str:
    return "| " + " | ".join(" ".join(entry.split()).replace("|", "\\|") for entry in entries) + " |"


CSV_COLUMNS = (
    *("size", "rank", "method", "label", "seeds", "float_top1", "top1", "top1_std", "top1_sampling_error", "drop"),
    *("to_best", "to_best_error", "wcr", "acr", "packed_bytes", "file_bytes", "bitops", "latency", "energy"),
    *("step_ratio", "memory_ratio", "peak_memory_bytes", "epochs", "reason", "notes", "records"),
)


def csv_text(report: Report) -> str:
    """One line a row, numbers unrounded; empty where there is none."""
    out = io.StringIO()
    writer = csv.DictWriter(out, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for line in report.lines:
        means = {
            name: line.mean(name)
            for name in (
                *("float_top1", "top1", "wcr", "acr", "packed_bytes", "file_bytes", "bitops"),
                *("peak_memory_bytes", "epochs"),
            )
        }
        one = len(line.numbers) == 1
        drop = means["float_top1"] - means["top1"] if line.numbers else None  # type: ignore[operator]
        values = means | {
            "size": line.size.label,
            "rank": line.rank or None,
            "method": line.method,
            "label": line.label,
            "seeds": len(line.numbers),
            "top1_std": line.top1_std,
            "top1_sampling_error": line.error if one else None,
            "drop": drop,
            "to_best": line.behind[0] if line.behind else None,
            "to_best_error": line.behind[1] if line.behind else None,
            **{name: line.cost(name) for name in QUANTITIES},
            "step_ratio": line.step_ratio,
            "memory_ratio": line.memory_ratio,
            "reason": line.reason,
            "notes": line.notes,
            "records": " ".join(relative(entry.path) for entry in line.entries if entry.path is not None),
        }
        writer.writerow({name: "" if value is None else value for name, value in values.items()})
    return out.getvalue()


def json_list(report: Report) -> list[dict[str, Any]]:
    """One object a method, size and seed; what is not known is null."""
    found = []
    for line in report.lines:
        for entry in line.entries:
            numbers = None if entry.record is None else _numbers_or_none(entry.record, report.costs)
            record = entry.record or {}

            def of(name: str, numbers: Numbers | None = numbers) -> Any:
                return None if numbers is None else getattr(numbers, name)

            found.append(
                {
                    "method": entry.method,
                    "seed": entry.seed,
                    "float_top1": of("float_top1"),
                    "top1": of("top1"),
                    "wcr": of("wcr"),
                    "acr": of("acr"),
                    "packed_bytes": of("packed_bytes"),
                    "bitops": of("bitops"),
                    "step_ratio": line.step_ratio,
                    "peak_memory_bytes": of("peak_memory_bytes"),
                    "policy": record.get("policy"),
                    "record": None if entry.path is None else relative(entry.path),
                    "label": line.label,
                    "size": line.size.label,
                    "state": entry.state,
                    "how": entry.how,
                    "rank": line.rank or None,
                    "reason": line.reason,
                    "notes": line.notes,
                    "file_bytes": of("file_bytes"),
                    "sampling_error": of("sampling_error"),
                    **{name: None if numbers is None else numbers.costs.get(name) for name in QUANTITIES},
                    "target": report.costs.target,
                    "memory_ratio": line.memory_ratio,
                    "epochs": of("epochs"),
                    "model": record.get("model"),
                    "data": (record.get("data") or {}).get("name"),
                    "start_weights": record.get("start_weights"),
                }
            )
    return found


def _numbers_or_none(record: Record, costs: Costs) -> Numbers | None:
    try:
        return numbers_of(record, costs)
    except UserError:
        return None
