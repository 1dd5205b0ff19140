"""One run of a table row: start weights, training with resume, packed file, evaluation, record."""

from __future__ import annotations

import datetime
import importlib
import json
import logging
import resource
import shutil
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import yaml
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import TensorBoardLogger

from common.errors import UserError
from common.packing import load_packed, size_account
from common.training import QuantizedModule
from common.training.calibration import calibrate
from data import DATA_SETS
from reproduce import ledger
from reproduce.callbacks import LAST, AtomicCheckpoint, RunStatistics
from reproduce.measure import accuracy, paired_drop, sampling_error
from reproduce.rehearsal import RehearsalData
from reproduce.settings import Settings, method_class, relative, resolve
from reproduce.tables import Row, Table

REHEARSAL = {
    "model.input_shape": [3, 32, 32],
    "model.weights": None,
    "model.model_args": None,
    "model.compile_network": False,
    "trainer.max_epochs": 2,
    "trainer.limit_train_batches": 3,
    "trainer.limit_val_batches": 0,
}
_LIMITS = ("limit_val_batches", "limit_test_batches", "fast_dev_run", "overfit_batches")


@dataclass(frozen=True)
class Options:
    """How a run is done; none of it changes its result.

    Attributes:
        overrides: dotted settings from the command line.
        rehearse: run on stand-in data, a few steps.
        force: start anew whatever is there.
        checkpoint_every: batches between checkpoints.
        to_ledger: a measured record goes to the ledger; otherwise it stays in the run's folder.
        show_settings: print them before the run.
        alone: the process runs nothing else, so that its peak memory is the run's.
    """

    overrides: Mapping[str, Any] = field(default_factory=dict)
    rehearse: bool = False
    force: bool = False
    checkpoint_every: int = 200
    to_ledger: bool = True
    show_settings: bool = True
    alone: bool = True


@dataclass(frozen=True)
class Outcome:
    """A record and where it came from: "ran", "finished before" or "stale" (finished before, with other code)."""

    record: dict[str, Any]
    path: Path
    how: str


def settings_of(table: Table, row: Row, seed: int, options: Options) -> Settings:
    """The settings of a run."""
    if not options.rehearse:
        return resolve(table, row, seed, options.overrides)
    overrides = rehearsal_overrides(table, row)
    return resolve(table, row, seed, overrides | options.overrides, RehearsalData)


def rehearsal_overrides(table: Table, row: Row) -> dict[str, Any]:
    """REHEARSAL, as far as the row's method has these settings; without batches to calibrate on but a few."""
    import inspect

    run = row.run or {}
    known = inspect.signature(method_class(run.get("method", table.paper)).__init__).parameters
    overrides = REHEARSAL | {"model.calibration_batches": 1}
    return {name: v for name, v in overrides.items() if not name.startswith("model.") or name[6:] in known}


def existing_record(table: Table, row: Row, seed: int, rehearse: bool) -> tuple[Path, dict[str, Any]] | None:
    """The record of an earlier run: the committed one, else the run folder's."""
    run_path = ledger.run_folder(table, row, seed, rehearse) / "record.json"
    for path in [run_path] if rehearse else [ledger.record_path(table, row, seed), run_path]:
        if record := ledger.read_record(path):
            return path, record
    return None


def run_row(table: Table, row: Row, seed: int, options: Options, chain: tuple[str, ...] = ()) -> Outcome:
    """Run a row, go on with an interrupted run, or return the record of a finished one.

    Raises:
        UserError, DataError: settings, weights or data that do not fit; a finished or unfinished run with other
            settings that `force` would replace.
    """
    settings = settings_of(table, row, seed, options)
    folder = ledger.run_folder(table, row, seed, options.rehearse)
    earlier = existing_record(table, row, seed, options.rehearse)
    if earlier and not options.force:
        path, record = earlier
        if record["settings_hash"] == settings.hash():
            changed = record["code_hash"] != ledger.run_code_hash(settings)
            if not (options.rehearse and changed):  # a stale rehearsal is cheap to repeat
                return Outcome(record, path, "stale" if changed else "finished before")
        elif not options.rehearse:
            raise UserError(
                f"{relative(path)} is of a run with other settings ({_difference(record['settings'], settings)}); "
                "--force replaces it"
            )
    weights = _start_weights(table, row, seed, settings, options, chain)
    data = make_data_of(settings)
    state, reason = _state(table, settings, data, options)
    code = ledger.run_code_hash(settings)  # now: the files may change during the run
    former_code = _prepare(folder, settings, code, fresh=options.force or options.rehearse)
    print(f"{table.path} {row.name}, seed {seed}, in {relative(folder)}")
    if options.show_settings:
        print(_indented(settings))
    logging.getLogger("pytorch_lightning").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec.*")
    pl.seed_everything(seed, workers=True, verbose=False)
    module = method_class(settings.folder)(**{**settings.model, "weights": weights})
    if data.num_classes > module.num_classes:
        raise UserError(f"{settings.model['model']} has {module.num_classes} outputs, {data.name} {data.num_classes}")
    trainer, statistics = _trainer(folder, settings, options)
    device = trainer.strategy.root_device
    before, float_correct = _float_accuracy(module, settings, weights, data, device)
    evaluate_only = bool((row.run or {}).get("evaluate"))
    if not evaluate_only:
        if is_calibrator(settings.folder):
            _calibrate(trainer, module, data, folder, statistics)
        else:
            _fit(trainer, module, data, folder)
    cells, packed = _results(folder, module, data, device, settings, before, evaluate_only, float_correct)
    record = {
        "format": ledger.FORMAT,
        "paper": table.paper,
        "table": table.name,
        "row": row.name,
        "method": type(module).__name__,
        "model": settings.model["model"],
        "seed": seed,
        "state": state,
        "reason": reason,
        "cause": (row.run or {}).get("cause"),
        "cells": cells,
        "sampling_error": {
            name: sampling_error(cells[name], packed["images"]) for name in ("top1", "float_top1") if name in cells
        },
        "paired": packed.pop("paired", None),
        **_progress(module, settings, data, trainer.world_size),
        "devices": trainer.world_size,
        "wall_time_s": round(statistics.wall_time_s, 1),
        "resumed_at": statistics.resumed_at,
        "step_time_ms": statistics.step_time_ms,
        "peak_memory_bytes": _peak_memory(device) if options.alone else None,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else str(device.type),
        "threads": torch.get_num_threads(),
        "start_weights": module.start_weights,
        "data": {
            "name": data.name,
            "fingerprint": data.fingerprint,
            "train_images": data.train_size,
            "test_images": packed["images"],
        },
        "batch_size": data.batch_size,
        "first_last": _first_last(module),
        "batch_norm": {True: "batch statistics", False: "running statistics", None: "none"}[
            statistics.batch_norm_training
        ],
        "policy": module.policy().to_dict()["sites"],
        "repair": json.loads(repair.read_text()) if (repair := folder / "repair.json").is_file() else [],
        "packed": {name: value for name, value in packed.items() if name != "images"},
        "settings": settings.identity(),
        "overrides": _recorded_overrides(table, row, options),
        "settings_hash": settings.hash(),
        "code_hash": code,
        "former_code_hashes": former_code,  # of the code that ran before a resume
        **dict(zip(("commit", "dirty"), ledger.commit(), strict=True)),
        "versions": ledger.versions(),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }
    path = folder / "record.json"
    ledger.write_json(path, record)
    if state == "measured" and options.to_ledger:
        path = ledger.record_path(table, row, seed)
        ledger.write_json(path, record)
    return Outcome(record, path, "ran")


# -- before -----------------------------------------------------------------------------------------------------------


def _start_weights(
    table: Table, row: Row, seed: int, settings: Settings, options: Options, chain: tuple[str, ...]
) -> str | None:
    run = row.run or {}
    weights = settings.model.get("weights")
    if weights is not None or options.rehearse:
        return weights
    source = run.get("weights_from")
    if source is not None:
        if source in chain:
            raise UserError(f"{table.path}: weights_from goes in a circle: {' -> '.join((*chain, source))}")
        file = ledger.run_folder(table, table.row(source), seed) / "weights.safetensors"
        finished = existing_record(table, table.row(source), seed, rehearse=False)
        if not (file.is_file() and finished):
            places = ("data.root", "data.device", "data.num_workers", "trainer.accelerator")
            kept = {name: value for name, value in options.overrides.items() if name in places}
            again = Options(overrides=kept, force=finished is not None, checkpoint_every=options.checkpoint_every)
            run_row(table, table.row(source), seed, again, (*chain, row.name))
        return str(file)
    pretrained = (settings.model.get("model_args") or {}).get("pretrained")
    if (settings.folder != "full_precision" and not pretrained) or (run.get("evaluate") and not pretrained):
        place = f" or set {run['weights_env']}" if run.get("weights_env") else ""
        raise UserError(f"{table.path} {row.name} starts from a trained network: give --model.weights FILE{place}")
    return None


def make_data_of(settings: Settings) -> Any:
    """The run's data module, read.

    Raises:
        DataError: missing or damaged data.
    """
    data_class = RehearsalData if settings.data_name == RehearsalData.name else DATA_SETS[settings.data_name]
    data = data_class(**settings.data)
    data.setup()
    return data


def _state(table: Table, settings: Settings, data: Any, options: Options) -> tuple[str, str]:
    if options.rehearse:
        return "rehearsed", "ran on the embedded digits"
    if table.test_images is not None and data.test_size != table.test_images:
        return "rehearsed", f"ran on {data.test_size} test images, {table.dataset} has {table.test_images}"
    if limits := [name for name in _LIMITS if settings.trainer.get(name)]:
        return "rehearsed", f"trainer.{limits[0]} was set"
    return "measured", ""


def _prepare(folder: Path, settings: Settings, code: str, fresh: bool) -> list[str]:
    """Clear or check the run's folder; the hashes of other code that an unfinished run in it began with."""
    if fresh and folder.exists():
        shutil.rmtree(folder)
    (folder / "checkpoints").mkdir(parents=True, exist_ok=True)
    path = folder / "settings.json"
    former_code: list[str] = []
    if path.is_file() and (folder / "checkpoints" / LAST).is_file():
        former = json.loads(path.read_text())
        if former["hash"] != settings.hash():
            raise UserError(
                f"{relative(folder)} holds an unfinished run with other settings "
                f"({_difference(former['settings'], settings)}); --force starts anew"
            )
        former_code = [hash for hash in former.get("code", []) if hash != code]
    ledger.write_json(path, {"hash": settings.hash(), "code": [*former_code, code], "settings": settings.identity()})
    return former_code


def _difference(former: Mapping[str, Any], settings: Settings) -> str:
    def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        items: dict[str, Any] = {}
        for key, value in values.items():
            items |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
        return items

    was, now = flat(former), flat(json.loads(json.dumps(settings.identity(), default=list)))
    changed = [name for name in sorted({*was, *now}) if was.get(name) != now.get(name)]
    shown = ", ".join(f"{name} {was.get(name)} -> {now.get(name)}" for name in changed[:3])
    return shown + (f" and {len(changed) - 3} more" if len(changed) > 3 else "")


def _indented(settings: Settings) -> str:
    text = yaml.safe_dump(json.loads(json.dumps(settings.identity(), default=list)), sort_keys=False, width=116)
    return "".join(f"  {line}\n" for line in text.splitlines())


def _recorded_overrides(table: Table, row: Row, options: Options) -> dict[str, Any]:
    places = ("model.weights", "data.root", "data.device", "data.num_workers", "data.eval_batch_size")
    own = {name: value for name, value in options.overrides.items() if name not in (*places, "trainer.accelerator")}
    return (rehearsal_overrides(table, row) if options.rehearse else {}) | own


# -- training ---------------------------------------------------------------------------------------------------------


def _trainer(folder: Path, settings: Settings, options: Options) -> tuple[pl.Trainer, RunStatistics]:
    statistics = RunStatistics()
    callbacks: list[Callback] = [statistics, AtomicCheckpoint(folder / "checkpoints", options.checkpoint_every)]
    given = {
        "num_sanity_val_steps": 0,
        "enable_progress_bar": sys.stderr.isatty(),
        "enable_model_summary": False,
        **settings.trainer,
    }
    try:
        trainer = pl.Trainer(
            **given,
            callbacks=callbacks,
            logger=TensorBoardLogger(str(folder), name="", version=""),
            default_root_dir=str(folder),
            enable_checkpointing=True,
        )
    except (ValueError, TypeError, RuntimeError) as error:  # MisconfigurationException is a RuntimeError
        raise UserError(f"trainer settings: {str(error).splitlines()[0]}") from None
    return trainer, statistics


def _fit(trainer: pl.Trainer, module: QuantizedModule, data: Any, folder: Path) -> None:
    last = folder / "checkpoints" / LAST
    if last.is_file():
        try:
            checkpoint = torch.load(last, map_location="cpu", weights_only=True)
            former = checkpoint["quantization"]
        except Exception as error:  # a damaged file fails in many ways
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise UserError(f"checkpoint {relative(last)} is damaged ({reason}); --force starts anew") from None
        if former["start_weights"] != module.start_weights:
            raise UserError(f"{relative(last)} started from other weights than those given; --force starts anew")
        print(f"  resuming after step {former['step']}")
    trainer.fit(module, datamodule=data, ckpt_path=str(last) if last.is_file() else None)
    if trainer.world_size > 1:
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
        if trainer.global_rank:
            raise SystemExit(0)  # the first process measures and records


def is_calibrator(folder: str) -> bool:
    """Whether methods/<folder> quantizes after training, without a training loop."""
    return getattr(importlib.import_module(f"methods.{folder}"), "KIND", None) == "calibrator"


def _calibrate(trainer: pl.Trainer, module: Any, data: Any, folder: Path, statistics: RunStatistics) -> None:
    if trainer.world_size > 1:
        raise UserError(f"{type(module).__name__} has no training to spread over devices: leave --devices 1")
    begun = time.monotonic()
    calibrate(module, data, folder, trainer.strategy.root_device, lambda line: print(f"  {line}", flush=True))
    statistics.wall_time_s = time.monotonic() - begun


# -- after ------------------------------------------------------------------------------------------------------------


def _float_accuracy(
    module: QuantizedModule, settings: Settings, weights: str | None, data: Any, device: torch.device
) -> tuple[dict[str, float], list[bool]]:
    """Accuracy of the start weights without quantizers, and whether each test image is classified right.

    Both are remembered by weights, data and preprocessing.
    """
    preprocessing = {name: settings.data.get(name) for name in ("mean", "std", "interpolation", "resize", "crop")}
    key = [module.start_weights, settings.model["model"], data.fingerprint, data.test_size, preprocessing]
    path = ledger.runs_folder() / "float" / f"{module.start_weights[:16]}-{data.fingerprint}.json"
    stored = json.loads(path.read_text()) if path.is_file() else {}
    if stored.get("key") == json.loads(json.dumps(key, default=list)) and "correct" in stored:
        return stored["result"], [answer == "1" for answer in stored["correct"]]
    own = ("model", "num_classes", "input_shape", "model_args", "seed")
    start = method_class("full_precision")(weights=weights, **{name: settings.model.get(name) for name in own})
    correct: list[bool] = []
    result = accuracy(start.network.to(device), data.test_dataloader(), device, correct=correct)
    if device.type == "cpu":
        answers = "".join("01"[right] for right in correct)
        ledger.write_json(path, {"key": key, "result": result, "correct": answers})
    return result, correct


def _results(
    folder: Path,
    module: QuantizedModule,
    data: Any,
    device: torch.device,
    settings: Settings,
    before: Mapping[str, float],
    evaluate_only: bool,
    float_correct: list[bool],
) -> tuple[dict[str, float], dict[str, Any]]:
    """Cells, and the account of the packed file together with the number of test images."""
    file = folder / "packed.safetensors"
    if evaluate_only:
        cells = {name: before[name] for name in ("top1", "top5") if name in before}
        return cells, {"images": before["images"]}
    cells = {f"float_{name}": before[name] for name in ("top1", "top5") if name in before}
    if not module.quantizers:
        measured = accuracy(module.network.to(device), data.test_dataloader(), device)
        return {name: measured[name] for name in ("top1", "top5") if name in measured}, {"images": measured["images"]}
    if not file.is_file():
        raise RuntimeError(f"{type(module).__name__} left no packed file in {folder}")
    network, _ = load_packed(file, settings.model["model"])
    correct: list[bool] = []
    measured = accuracy(network.to(device), data.test_dataloader(), device, correct=correct)
    paired = paired_drop(float_correct, correct)
    account = size_account(file)
    float_weights = module.num_float_weights() if hasattr(module, "num_float_weights") else 0
    num_weights = sum(module.num_elements("weight").values()) + float_weights
    wcr = 4 * num_weights / (account["codes_bytes"] + 4 * float_weights)
    if wcr != module.wcr():
        raise RuntimeError(f"the packed codes give WCR {wcr}, the policy {module.wcr()}")
    cells |= {name: measured[name] for name in ("top1", "top5") if name in measured}
    cells |= {"wcr": wcr, "acr": module.acr()} | getattr(module, "constraint_cost", dict)()
    cells |= {name: value for name, value in paired.items() if name.startswith("paired_drop")}
    equal = _same_logits(module, network, data, device)
    about = {"images": measured["images"], "num_weights": num_weights, "logits_equal": equal, "paired": paired}
    return cells, about | account


@torch.no_grad()
def _same_logits(module: QuantizedModule, network: torch.nn.Module, data: Any, device: torch.device) -> bool:
    """Whether the loaded file gives, on one batch, the logits of the trained network bit by bit."""
    images = next(iter(data.test_dataloader()))[0].to(device)
    trained = module.network.to(device).to(memory_format=torch.contiguous_format).eval()
    return torch.equal(trained.forward(images), network.forward(images))  # forward: eager, even when compiled


def _progress(module: QuantizedModule, settings: Settings, data: Any, devices: int) -> dict[str, Any]:
    steps_per_epoch = max(1, data.train_size // (data.batch_size * devices))
    return {
        "epochs_done": round(module.step / steps_per_epoch, 3),
        "epochs_published": settings.published_epochs,
        "steps": module.step,
    }


def _first_last(module: QuantizedModule) -> dict[str, Any]:
    sites = module.policy().sites
    first, last = (f"{module.layers[index].name}.weight" for index in (0, -1))
    return {"first": sites.get(first, 32), "last": sites.get(last, 32)}


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts KiB
