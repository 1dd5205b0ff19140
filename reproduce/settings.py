"""Settings of a run: the configuration file, then the row, then the command line; checked against the signatures."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from jsonargparse import ArgumentParser

from common.errors import UserError
from common.models import model_info
from data import DATA_SETS
from reproduce.tables import METHODS, SECTIONS, Row, Table, parse_yaml, read_config, run_arguments, why_no_run

# Where things are and what they run on: not part of what a run is.
_PLACES = {
    "model": ("weights",),
    "data": ("root", "device", "num_workers", "eval_batch_size"),
    "trainer": ("accelerator",),
}
# Arguments that methods got later: a run that leaves them at this value is what it was without them.
_LATER: dict[str, dict[str, Any]] = {"model": {"constraint": None, "gradient_bit_width": 32}}
_TRAINER_OWN = ("callbacks", "logger", "default_root_dir", "enable_checkpointing")  # the runner's


@dataclass(frozen=True)
class Settings:
    """What a run is made with.

    Attributes:
        folder: methods/<folder> that runs it.
        data_name: key of data.DATA_SETS.
        model, data: complete keyword arguments of the method and of the data module.
        trainer: keyword arguments of the Trainer that were given.
        seed: of method, data and everything else.
        published_epochs: of the configuration file.
    """

    folder: str
    data_name: str
    model: Mapping[str, Any]
    data: Mapping[str, Any]
    trainer: Mapping[str, Any]
    seed: int
    published_epochs: int | None

    def identity(self) -> dict[str, Any]:
        """The settings without places (files, devices, workers): what the hash covers and a record shows."""

        def counts(section: str, key: str, value: Any) -> bool:
            later = _LATER.get(section, {})
            return key not in _PLACES[section] and not (key in later and value == later[key])

        sections = {
            name: {key: value for key, value in getattr(self, name).items() if counts(name, key, value)}
            for name in SECTIONS
        }
        return {"method": self.folder, "data_set": self.data_name, "seed": self.seed, **sections}

    def hash(self) -> str:
        """First 16 hex digits of the sha256 of `identity`."""
        text = json.dumps(self.identity(), sort_keys=True, default=list)
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def resolve(
    table: Table,
    row: Row,
    seed: int = 0,
    overrides: Mapping[str, Any] | None = None,
    data_class: type[pl.LightningDataModule] | None = None,
) -> Settings:
    """The settings of a row's run.

    Args:
        overrides: dotted names (`trainer.max_epochs`, `model.learning_rate`, `data.root`) -> values.
        data_class: instead of the configuration's data set (rehearsals).

    Raises:
        UserError: no such configuration, an unknown or unsuitable setting.
    """
    run = dict(row.run or {})
    if not run:
        raise UserError(f"{table.path} row {row.name!r} has no run: {why_no_run(table, row)}")
    folder = run.get("method", table.paper)
    config = read_config(folder, run["config"])
    published = config["trainer"].get("max_epochs")
    data = config["data"]
    if data_class is None:
        data_name, data_class = _data_set(data.get("class_path"), run["config"])
        arguments = dict(data.get("init_args") or {})
    else:
        data_name, arguments = data_class.name, {}
    if data_name in DATA_SETS:
        arguments |= run.get("data") or {}
    sections = {
        "model": config["model"] | run_arguments(run),
        "data": arguments,
        "trainer": config["trainer"] | (run.get("trainer") or {}),
    }
    if "epochs" in run:
        sections["trainer"]["max_epochs"] = run["epochs"]
    for name, value in (overrides or {}).items():
        section, _, key = name.partition(".")
        if section not in SECTIONS or not key:
            raise UserError(f"unknown option --{name}: expected --model.NAME, --data.NAME or --trainer.NAME")
        sections[section][key] = value
    sections["model"].setdefault("seed", seed)
    sections["data"].setdefault("seed", seed)
    if own := [key for key in _TRAINER_OWN if key in sections["trainer"]]:
        raise UserError(f"trainer.{own[0]} is set by the runner")
    weights = sections["model"].get("weights") or os.environ.get(run.get("weights_env") or "", "")
    if weights:
        sections["model"]["weights"] = str(weights)
        if model_args := sections["model"].get("model_args"):
            sections["model"]["model_args"] = {k: v for k, v in model_args.items() if k != "pretrained"} or None
    sections["data"] = preprocessing_of(sections["model"].get("model"), data_class) | sections["data"]
    return Settings(
        folder=folder,
        data_name=data_name,
        model=checked_arguments(method_class(folder), "model", sections["model"]),
        data=checked_arguments(data_class, "data", sections["data"]),
        trainer=_given(pl.Trainer, "trainer", sections["trainer"]),
        seed=seed,
        published_epochs=published,
    )


def method_class(folder: str) -> type[pl.LightningModule]:
    """METHOD of methods/<folder>.

    Raises:
        UserError: no such folder, or it exports none.
    """
    if not (METHODS / folder / "__init__.py").is_file():
        known = sorted(path.parent.name for path in METHODS.glob("*/__init__.py"))
        raise UserError(f"unknown method {folder!r}: choose one of {', '.join(known)}")
    method = getattr(importlib.import_module(f"methods.{folder}"), "METHOD", None)
    if method is None:
        raise UserError(f"methods/{folder} exports no METHOD")
    return method


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """`--trainer.max_epochs 2 --data.root=DIR` as {"trainer.max_epochs": 2, "data.root": "DIR"}; values are YAML.

    Raises:
        UserError: an option without a value.
    """
    overrides: dict[str, Any] = {}
    pending = list(arguments)
    while pending:
        name, equals, value = pending.pop(0).removeprefix("--").partition("=")
        if not equals:
            if not pending or pending[0].startswith("--"):
                raise UserError(f"option --{name} needs a value")
            value = pending.pop(0)
        overrides[name] = parse_yaml(value, f"--{name}")
    return overrides


def _data_set(class_path: str | None, config: str) -> tuple[str, type[pl.LightningDataModule]]:
    for name, data_class in DATA_SETS.items():
        if class_path is not None and class_path.rpartition(".")[2] == data_class.__name__:
            return name, data_class
    raise UserError(f"{config}: data.class_path {class_path!r} is none of our data sets")


def preprocessing_of(model: str | None, data_class: type) -> dict[str, Any]:
    """The network's own normalization and image size, as far as the data module takes them and the model says."""
    if not model:
        return {}
    info, accepted = model_info(model), inspect.signature(data_class.__init__).parameters
    named = {name: getattr(info, name) for name in ("mean", "std", "interpolation", "resize", "crop")}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in named.items()
        if value is not None and name in accepted
    }


def _parser(target: type, section: str) -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(target, section)
    return parser


def checked_arguments(target: type, section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a class, defaults included, with the given ones checked and converted."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parsed = _parser(target, section).parse_object({section: dict(values)})
    except Exception as error:  # jsonargparse raises several kinds
        raise UserError(f"{section} settings: {' '.join(str(error).split())}") from None
    return dict(parsed[section].as_dict())


def _given(target: type, section: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Only the given arguments, checked and converted."""
    checked = checked_arguments(target, section, values)
    return {name: checked[name] for name in values}


def relative(path: Path) -> str:
    """A path as commands print it."""
    try:
        return str(path.resolve().relative_to(Path.cwd()))
    except ValueError:
        return str(path)
