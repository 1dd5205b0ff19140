"""`python -m reproduce compare`: methods side by side on equal terms, trained now or taken from records."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common.command_line import Parser, one_line
from common.errors import UserError
from reproduce.cli import split_settings
from reproduce.tables import METHODS, Table, load_table

if TYPE_CHECKING:  # these import torch, and --help needs none of it
    from reproduce.compare_jobs import Entry, How, Job
    from reproduce.compare_report import Line, Report
    from reproduce.compare_terms import Size, Terms

ALL = "all"
DEFAULT_BITS = "4/4"
DEFAULT_TARGET = "bitfusion"


def main(arguments: Sequence[str]) -> int:
    if list(arguments[:1]) == ["--worker"]:
        from reproduce.compare_jobs import work

        return work(arguments[1])
    own, rest = split_settings(arguments)
    options = _parser().parse_args(own)
    from reproduce.settings import parse_overrides

    settings = parse_overrides(rest)
    if options.table is not None:
        report, out, shared = _compare_table(options, settings)
    elif options.list:
        _list(options)
        return 0
    else:
        report, out, shared = _compare_methods(options, settings)
    if report is None:
        return 0
    if options.bench:
        report = _benched(report)
    from reproduce import compare_report

    print()
    print(compare_report.text(report))
    print()
    for path in _write(report, out, shared):
        print(f"wrote {_shown(path)}")
    if options.json:
        text = json.dumps(compare_report.json_list(report), indent=1) + "\n"
        if options.json == "-":
            print(text)
        else:
            Path(options.json).parent.mkdir(parents=True, exist_ok=True)
            Path(options.json).write_text(text)
            print(f"wrote {options.json}")
    failed = [line for line in report.lines if line.failed]
    for line in failed:
        print(f"error: {line.label} {line.size.label}: {line.reason}", file=sys.stderr)
    return 1 if failed else 0


def _parser() -> Parser:
    names = [path.parent.name for path in METHODS.glob("*/__init__.py")]
    methods = ", ".join(sorted(name for name in names if not name.startswith("_") and name != "full_precision"))
    parser = Parser(
        prog="python -m reproduce compare",
        description="Methods side by side on equal terms: same start weights, data order, optimizer, epochs and size. "
        "Or the rows of a table, from their records.",
        epilog="Settings: --model.NAME VALUE for every method that has an argument of the name, --data.NAME VALUE, "
        f"--trainer.NAME VALUE for all. Methods: {methods}.",
    )
    add = parser.add_argument
    add("table", nargs="?", metavar="TABLE", help="for instance lecture/cifar10_equal_terms: its rows instead of runs")
    add("--methods", metavar="A,B", help=f"folders of methods, or {ALL}")
    add("--model", help="network (default digits_net)")
    add("--data", help="data set (default digits)")
    add("--bits", metavar="W/A", help=f"sizes, such as 2/2,4/4 or 1/32 (weights alone); default {DEFAULT_BITS}")
    add("--target-wcr", type=float, metavar="X", help="a compression rate of the weights instead of --bits")
    add("--activation-bits", type=int, metavar="A", help="with --target-wcr: of activations (default 4)")
    add("--epochs", type=int, metavar="N", help="of every method; default the data set's")
    add("--seeds", default="1", metavar="K", help="number of seeds, or the seeds themselves as 0,3")
    add("--first-last", choices=("8bit", "same", "float"), help="first and last layer (default 8bit)")
    add("--constraint", metavar="TEXT", help='limit instead of equal size, such as "latency@bismo-edge<=50ms"')
    add("--target", default=DEFAULT_TARGET, help=f"machine of latency and energy (default {DEFAULT_TARGET})")
    add("--bench", action="store_true", help="measure step time and memory against the float network, side by side")
    add("--json", metavar="FILE", help="one object a method, size and seed; - is standard output")
    add("--out", metavar="DIR", help="folder of the report (default in runs/compare)")
    add("--record", metavar="NAME", help="keep the records in reproduce/ledger/compare/NAME")
    add("--rows", metavar="A,B", help="with TABLE: these rows only")
    add("--run", action="store_true", help="with TABLE: run the rows that have no record")
    add("--force", action="store_true", help="run anew, even what is finished")
    add("--here", action="store_true", help="all runs in this process: quicker for small ones, without peak memory")
    add("--checkpoint-every", type=int, default=200, metavar="N", help="batches between checkpoints")
    add("--list", action="store_true", help="what can be compared, and end")
    return parser


def _check(options: Any) -> list[int]:
    """The seeds; refuses what no run could be made with."""
    if options.checkpoint_every < 1:
        raise UserError(f"--checkpoint-every must be at least 1, got {options.checkpoint_every}")
    if options.epochs is not None and options.epochs < 1:
        raise UserError(f"--epochs must be at least 1, got {options.epochs}")
    if options.bits and options.target_wcr is not None:
        raise UserError("--bits and --target-wcr both say the size: give one of them")
    if options.activation_bits is not None and options.target_wcr is None:
        raise UserError("--activation-bits goes with --target-wcr; --bits W/A says both widths")
    if options.activation_bits is not None and options.activation_bits not in (*range(1, 9), 32):
        raise UserError(f"--activation-bits must be 1 to 8 or 32 (float), got {options.activation_bits}")
    if options.record and not all(c.isalnum() or c in "_.-" for c in options.record):
        raise UserError(f"--record: a name has letters, digits and _ . - only, got {options.record!r}")
    try:
        seeds = [int(text) for text in options.seeds.split(",") if text]
    except ValueError:
        raise UserError(f"--seeds takes a number of seeds or a list such as 0,3, got {options.seeds!r}") from None
    if "," not in options.seeds:
        seeds = list(range(seeds[0])) if seeds else []
    if not seeds or min(seeds) < 0 or len(set(seeds)) < len(seeds):
        raise UserError(f"--seeds takes a number of seeds or a list such as 0,3, got {options.seeds!r}")
    return seeds


# -- methods ----------------------------------------------------------------------------------------------------------


def _compare_methods(options: Any, settings: Mapping[str, Any]) -> tuple[Report, Path, set[str]]:
    """Run what is not finished and put it side by side."""
    import torch

    from hardware import parse_constraint
    from reproduce import ledger
    from reproduce.compare_jobs import How, Job, given_weights, run_jobs
    from reproduce.compare_report import Costs, Report, make_groups
    from reproduce.compare_terms import FLOAT_METHOD, make_terms, shared_names

    seeds = _check(options)
    if options.rows or options.run:
        raise UserError(f"--{'rows' if options.rows else 'run'} goes with a table")
    methods = _methods(options.methods)
    data_name = options.data or "digits"
    model = options.model or "digits_net"
    constraint = None if options.constraint is None else parse_constraint(options.constraint)
    costs = Costs.of(options.target, constraint)
    terms = make_terms(model, data_name, options.first_last or "8bit", options.epochs, options.constraint, settings)
    how = How(options.force, options.checkpoint_every, options.here, to_ledger=options.record is not None)
    if data_name == "digits":
        torch.set_num_threads(1)
    weights = given_weights(model, settings)
    float_net = _float_network(terms, weights, seeds[0])
    sizes = _sizes(options, float_net.layers, terms.first_last)
    _check_chosen(methods, terms, sizes)
    _check_data(terms, float_net, seeds[0])
    if weights is None and data_name == "digits":
        files = {seed: str(_trained_float(terms, seed, how)) for seed in seeds}
    elif weights is None and not (terms.network.get("model_args") or {}).get("pretrained"):
        from reproduce.compare_jobs import environment_name

        raise UserError(
            f"{model} starts from a trained network: give --model.weights FILE or set {environment_name(model)}"
        )
    else:
        files = dict.fromkeys(seeds, weights)
    hashes = {seed: _float_network(terms, file, seed).start_weights for seed, file in files.items()}
    table_name = options.record or f"{model}_{data_name}".replace(":", "_").replace("/", "_")
    planned = [
        found
        for size in sizes
        for method in methods
        for found in _plan(method, terms, size, seeds, files, hashes, table_name, options.record is None)
    ]
    pending = [found for found in planned if isinstance(found, Job)]
    counted = ((methods, "method"), (sizes, "size"), (seeds, "seed"))
    shown = ", ".join(_count(len(things), name) for things, name in counted)
    print(f"{shown}: {_count(len(pending), 'run')}", flush=True)
    ran = iter(run_jobs(pending, how))
    entries = [next(ran) if isinstance(found, Job) else found for found in planned]
    groups = make_groups(entries, sizes, costs, equal=constraint is None)
    report = Report(
        title=f"{model} on {data_name}: {_count(len(methods), 'method')} on equal terms",
        terms=_said(terms, hashes, seeds),
        groups=groups,
        costs=costs,
    )
    out = Path(options.out) if options.out else ledger.runs_folder() / "compare" / table_name / "report"
    assert FLOAT_METHOD not in methods
    return report, out, shared_names(terms)


def _count(number: int, name: str) -> str:
    return f"{number} {name}{'' if number == 1 else 's'}"


def _methods(text: str | None) -> list[str]:
    from reproduce.compare_terms import FLOAT_METHOD, candidates
    from reproduce.settings import method_class

    if not text:
        raise UserError(f"name methods with --methods A,B (or {ALL}); --list shows them")
    if text == ALL:
        return candidates()
    methods = list(dict.fromkeys(name for name in text.split(",") if name))
    for name in methods:
        if not (METHODS / name / "__init__.py").is_file():
            method_class(name)  # raises, with the known ones
    methods = [name for name in methods if name != FLOAT_METHOD]  # the start of every row
    if not methods:
        raise UserError(f"--methods names nothing to compare with {FLOAT_METHOD}, which is the start of every row")
    return methods


def _check_chosen(methods: Sequence[str], terms: Terms, sizes: Sequence[Size]) -> None:
    """
    Raises:
        UserError: an argument from the command line that no method has, or that a method refuses which takes the rest.
    """
    from reproduce.compare_jobs import own_table
    from reproduce.compare_terms import NotOffered, arguments_of, run_of
    from reproduce.settings import resolve

    methods = [method for method in methods if _import_error(method) is None]
    for name in terms.chosen:
        if not any(name in arguments_of(method) for method in methods):
            raise UserError(f"no method here has an argument {name!r} (--model.{name})")

    def resolves(method: str, chosen: bool) -> UserError | None:
        try:
            run = run_of(method, terms, sizes[0], None, chosen)
            row = {"name": "row", "method": method, "model": terms.model, "run": run}
            table = own_table("check", terms.data_name, [row])[0]
            resolve(table, table.row("row"))
        except NotOffered:
            pass
        except UserError as error:
            return error
        return None

    for method in methods if terms.chosen else ():
        if (error := resolves(method, True)) is not None and resolves(method, False) is None:
            raise error


def _import_error(method: str) -> str | None:
    """Why a folder gives no method; None if it does."""
    from reproduce.settings import method_class

    try:
        method_class(method)
    except Exception as error:  # a folder in the making does not lose the others
        return one_line(error) or type(error).__name__
    return None


def _float_network(terms: Terms, weights: str | None, seed: int) -> Any:
    from reproduce.settings import checked_arguments, method_class

    method = method_class("full_precision")
    arguments = {"model": terms.model, **terms.network, "weights": weights, "seed": seed}
    return method(**checked_arguments(method, "model", arguments))


def _sizes(options: Any, layers: Sequence[Any], first_last: str) -> list[Size]:
    from reproduce.compare_terms import size_of_bits, size_of_wcr

    if options.target_wcr is not None:
        return [size_of_wcr(layers, options.target_wcr, options.activation_bits or 4, first_last)]
    texts = dict.fromkeys(text for text in (options.bits or DEFAULT_BITS).split(",") if text)
    return [size_of_bits(layers, text, first_last) for text in texts]


def _check_data(terms: Terms, float_net: Any, seed: int) -> None:
    """Reads the data once, before anything trains."""
    from data import DATA_SETS
    from reproduce.runner import make_data_of
    from reproduce.settings import resolve

    def check_shape(shape: Sequence[int] | None) -> None:
        if shape is not None and tuple(shape) != tuple(float_net.input_shape):
            raise UserError(
                f"{terms.data_name} has images of {'x'.join(map(str, shape))}, {terms.model} takes "
                f"{'x'.join(map(str, float_net.input_shape))}: name the other with --model or --data"
            )

    check_shape(getattr(DATA_SETS[terms.data_name], "input_shape", None))  # ImageNet's is a setting
    table = _float_table(terms, None)[0]
    data = make_data_of(resolve(table, table.row("float"), seed))
    check_shape(data.input_shape)
    if data.num_classes > float_net.num_classes:
        raise UserError(f"{terms.model} has {float_net.num_classes} outputs, {terms.data_name} {data.num_classes}")


def _float_table(terms: Terms, name: str | None) -> tuple[Table, dict[str, Any]]:
    """A table with one row, `float`: the float network by its own configuration, on the terms' data."""
    from reproduce.compare_jobs import own_table
    from reproduce.compare_terms import FLOAT_METHOD
    from reproduce.tables import read_config

    file = "digits.yaml" if terms.data_name == "digits" else "cifar10.yaml"
    config = read_config(FLOAT_METHOD, file)
    trainer = {key: value for key, value in terms.trainer.items() if key not in ("max_epochs", "max_steps")}
    content = {
        "model": config["model"] | {"model": terms.model, **terms.network},
        "data": {"class_path": _class_path(terms), "init_args": dict(terms.data)},
        "trainer": config["trainer"] | trainer,
    }
    row = {"name": name or "float", "method": "float", "model": terms.model}
    run = {"method": FLOAT_METHOD, "config": content}
    return own_table(f"{terms.model}_{terms.data_name}_float", terms.data_name, [{**row, "run": run}])


def _class_path(terms: Terms) -> str:
    from data import DATA_SETS

    return f"data.{DATA_SETS[terms.data_name].__name__}"


def _trained_float(terms: Terms, seed: int, how: How) -> Path:
    """Weights of the float network of a seed, trained by methods/full_precision's configuration."""
    from reproduce.compare_jobs import How, Job, float_weights

    table, content = _float_table(terms, None)
    job = Job("full_precision", "float", "", seed, table, content, "float")
    name = f"float.{_hash(job, '')}"
    table, content = _float_table(terms, name)
    job = replace(job, table=table, content=content, row=name)
    return float_weights(job, How(checkpoint_every=how.checkpoint_every, here=how.here))


def _hash(job: Job, start_weights: str) -> str:
    """What a run is: settings, code, start weights."""
    from reproduce import ledger

    settings = job.settings()
    text = f"{settings.hash()} {ledger.run_code_hash(settings)} {start_weights}"
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _plan(
    method: str,
    terms: Terms,
    size: Size,
    seeds: Sequence[int],
    files: Mapping[int, str | None],
    hashes: Mapping[int, str],
    table_name: str,
    apart: bool,
) -> list[Job | Entry]:
    """Jobs of a method at a size, or entries that say why there are none.

    Args:
        apart: rows of one name may differ between comparisons, so that their hash is part of it.
    """
    from reproduce.compare_jobs import Entry, Job, own_table
    from reproduce.compare_terms import NotOffered, run_of

    def none(state: str, reason: str) -> list[Job | Entry]:
        return [Entry(method, method, size.label, seed, state, reason) for seed in seeds]

    planned: list[Job | Entry] = []
    if (reason := _import_error(method)) is not None:
        return none("failed", reason)
    for seed in seeds:
        row = {"name": f"{method}_{size.name}", "method": method, "model": terms.model}
        try:
            run = run_of(method, terms, size, files[seed])
            job = Job(
                method, method, size.label, seed, *own_table(table_name, terms.data_name, [{**row, "run": run}]),
                row["name"], hashes[seed],
            )  # fmt: skip
            reason = _unoffered(job)
        except NotOffered as missing:
            return none("not offered", str(missing))
        except Exception as error:
            return none("failed", one_line(error) or type(error).__name__)
        if reason is not None:
            return none(*reason)
        if apart:
            row["name"] += f".{_hash(job, hashes[seed])}"
            table, content = own_table(table_name, terms.data_name, [{**row, "run": run}])
            job = replace(job, table=table, content=content, row=row["name"])
        planned.append(job)
    return planned


def _unoffered(job: Job) -> tuple[str, str] | None:
    """(state, reason) of a method that cannot be compared; built once to find out."""
    from reproduce.settings import method_class

    try:
        settings = job.settings()
    except UserError as error:
        return "failed", one_line(error)
    try:
        module = method_class(job.method)(**settings.model)
    except UserError as error:
        return "not offered", one_line(error)
    start = getattr(module, "start_weights", job.start_weights)
    if start != job.start_weights:
        return "refused", f"start weights {start}, the others {job.start_weights}"
    return None


def _said(terms: Terms, hashes: Mapping[int, str], seeds: Sequence[int]) -> dict[str, str]:
    """The terms as the report shows them."""
    a, t = terms.arguments, terms.trainer
    weights = ", ".join(dict.fromkeys(hashes.values()))
    text = {
        "start weights": f"{weights} (checked by hash)",
        "data": ", ".join(f"{key} {value}" for key, value in terms.data.items()) + f"; order by seed {list(seeds)}",
        "training": ", ".join(f"{key} {value}" for key, value in t.items()),
        "by argument": ", ".join(f"{key} {value}" for key, value in a.items()),
        "first and last layer": terms.first_last,
    }
    if terms.constraint is not None:
        text["constraint"] = f"{terms.constraint}: the limit is what rows share, not their size"
    return text


# -- a table ----------------------------------------------------------------------------------------------------------


def _compare_table(options: Any, settings: Mapping[str, Any]) -> tuple[Report | None, Path, set[str]]:
    """The rows of a table file and their records."""
    from reproduce import ledger
    from reproduce.compare_jobs import How, Job, run_jobs
    from reproduce.compare_report import Costs, Report, make_groups
    from reproduce.compare_terms import first_last_of, make_terms, shared_names, size_of_settings

    given = [
        *("methods", "model", "data", "bits", "target_wcr", "activation_bits", "epochs", "constraint", "record"),
    ]
    if said := [name for name in given if getattr(options, name) is not None]:
        raise UserError(f"--{said[0].replace('_', '-')}: the rows of {options.table} have settings of their own")
    _check(options)
    table = load_table(options.table)
    names = [name for name in (options.rows or "").split(",") if name] or [row.name for row in table.rows]
    rows = [table.row(name) for name in names]
    rows = [row for row in rows if row.run and not row.run.get("evaluate")]
    rows = [row for row in rows if row.run.get("method", table.paper) != "full_precision"]
    if not rows:
        raise UserError(f"{table.path} has no row with a run that could be compared")
    jobs = [
        Job(row.run.get("method", table.paper), row.method, "", seed, table, None, row.name, overrides=settings)
        for row in rows
        for seed in row.run.get("seeds", [0])
    ]
    resolved = [job.settings() for job in jobs]
    if options.list:
        for job in jobs:
            found = ledger.read_record(ledger.record_path(table, table.row(job.row), job.seed))
            print(f"  {job.row:<28}{job.label:<24}seed {job.seed}  {'recorded' if found else 'not run'}")
        return None, Path(), set()
    rules = Counter(filter(None, (first_last_of(found.model) for found in resolved)))
    rule = options.first_last or (rules.most_common(1)[0][0] if rules else "8bit")
    layers = {found.model["model"]: None for found in resolved}
    if len(layers) > 1:
        raise UserError(f"{table.path} has rows of several networks ({', '.join(layers)}): name those of one by --rows")
    from hardware import network

    first = resolved[0].model
    extra = {"num_classes": first["num_classes"]} if first.get("num_classes") else {}
    net = network(first["model"], first.get("input_shape"), **extra)
    sizes: dict[str, Size] = {}
    for number, found in enumerate(resolved):
        size = size_of_settings(net.layers, found.model, rule)
        sizes.setdefault(size.label, size)
        jobs[number] = replace(jobs[number], size=size.label)
    twice = Counter((job.size, job.label, job.seed) for job in jobs)
    jobs = [replace(job, label=job.row) if twice[job.size, job.label, job.seed] > 1 else job for job in jobs]
    entries = _table_entries(jobs, How(options.force, options.checkpoint_every, options.here, True), options, run_jobs)
    report = Report(
        title=f"{table.path}: {table.caption.rstrip('.')}",
        terms={"data": table.dataset, "first and last layer": rule, "rows": f"of methods/{table.paper}/tables"},
        groups=make_groups(entries, list(sizes.values()), Costs.of(options.target)),
        costs=Costs.of(options.target),
    )
    out = Path(options.out) if options.out else ledger.runs_folder() / "compare" / table.path.replace("/", "_")
    return report, out, shared_names(make_terms(first["model"], resolved[0].data_name))


def _table_entries(jobs: Sequence[Job], how: How, options: Any, run_jobs: Any) -> list[Entry]:
    """Entries of a table's rows from their records; with --run those without one are run."""
    from reproduce import ledger
    from reproduce.compare_jobs import Entry

    found: dict[int, Entry] = {}
    for number, job in enumerate(jobs):
        row = job.table.row(job.row)
        path = ledger.record_path(job.table, row, job.seed)
        record = ledger.read_record(path)
        if record is not None and not (options.force and options.run):
            stale = ledger.stale_reason(job.table, row, record)
            how_found = "stale" if stale else "finished before"
            found[number] = Entry.of(job, "finished", stale, record=record, path=path, how=how_found)
        elif not options.run:
            command = f"python -m reproduce run {job.table.path} --rows {job.row}"
            found[number] = Entry.of(job, "not run", command)
    pending = [number for number in range(len(jobs)) if number not in found]
    for number, entry in zip(pending, run_jobs([jobs[number] for number in pending], how), strict=True):
        found[number] = entry
    return [found[number] for number in range(len(jobs))]


# -- step times -------------------------------------------------------------------------------------------------------


def _benched(report: Report) -> Report:
    """With step time and memory against full precision, measured now by `reproduce bench`, methods side by side."""
    entries = [entry for line in report.lines for entry in line.entries if entry.record is not None]
    if not entries:
        return report
    first = entries[0].record
    assert first is not None
    model = first["settings"]["model"]
    methods = list(dict.fromkeys(entry.method for entry in entries))
    methods = [name for name in methods if getattr(importlib.import_module(f"methods.{name}"), "KIND", "") == "trainer"]
    if not methods:
        return replace(report, notes=(*report.notes, "step x: none of the methods trains."))
    mode = "compiled" if model.get("compile_network") else "eager"
    print(f"bench: {mode} steps of {', '.join(methods)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.json"
        command = [sys.executable, "-m", "reproduce", "bench", "--methods", ",".join(methods)]
        command += [
            "--model",
            model["model"],
            "--batch",
            str(first["batch_size"]),
            "--modes",
            mode,
            "--json",
            str(file),
        ]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
            return replace(report, notes=(*report.notes, f"step x: not measured: {reason.removeprefix('error: ')}."))
        measured = json.loads(file.read_text())["modes"][mode]

    def with_ratios(line: Line) -> Line:
        found = measured.get(line.method, {})
        return replace(line, step_ratio=found.get("ratio"), memory_ratio=found.get("memory_ratio"))

    groups = tuple(replace(group, lines=tuple(map(with_ratios, group.lines))) for group in report.groups)
    note = f"step x and the memory ratio: {mode}, batch {first['batch_size']}, each method at its default widths."
    return replace(report, groups=groups, notes=(*report.notes, note))


# -- files ------------------------------------------------------------------------------------------------------------


def _write(report: Report, out: Path, shared: set[str]) -> list[Path]:
    """Markdown, CSV, pictures and the page."""
    from reproduce import compare_html, compare_report
    from reproduce.compare_pictures import draw

    out.mkdir(parents=True, exist_ok=True)
    pictures = draw(report, out)
    files = {
        "compare.md": compare_report.markdown(report),
        "compare.csv": compare_report.csv_text(report),
        "compare.html": compare_html.page(report, pictures, shared),
    }
    for name, content in files.items():
        (out / name).write_text(content)
    return [*(out / name for name in files), *(path for path, _ in pictures)]


def _shown(path: Path) -> str:
    from reproduce.settings import relative

    return relative(path)


def _list(options: Any) -> None:
    """The methods that can be compared, with their kind and what says their size."""
    from reproduce.compare_terms import WEIGHT_WIDTHS, arguments_of, candidates

    names = candidates() if options.methods in (None, ALL) else _methods(options.methods)
    for name in names:
        if (reason := _import_error(name)) is not None:
            print(f"  {name:<18}not importable: {reason}")
            continue
        module = importlib.import_module(f"methods.{name}")
        known = arguments_of(name)
        sizes = [
            argument
            for argument in (*WEIGHT_WIDTHS, "target_wcr", "activation_bit_width", "target_acr", "constraint")
            if argument in known
        ]
        about = (inspect.getdoc(module) or "").partition("\n")[0]
        print(f"  {name:<18}{getattr(module, 'KIND', '-'):<12}{about}  [{', '.join(sizes) or 'no width'}]")
