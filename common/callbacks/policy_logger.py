"""Bit-widths and compression rates over training."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.utilities import rank_zero_only


class PolicyLogger(Callback):
    """Log `policy/wcr`, `policy/acr` and the width of every site every `every_n_steps` batches.

    They go to the trainer's logger (TensorBoard) and, as one JSON object a line, to `history.jsonl` in `folder`, from
    which the plots of bit-widths and compression over training are drawn. A module's `schedule_state()` adds its own
    numbers (targets, temperature, expected rate). Lines after a resumed step are written again, so that the file holds
    each step once. What a budget repair changed (the module's `repair_log`) is printed and written to `repair.json`, at
    once, because a run that is resumed later does not repeat it.
    """

    def __init__(self, every_n_steps: int = 50, folder: str | None = None) -> None:
        if every_n_steps < 1:
            raise ValueError(f"every_n_steps must be at least 1, got {every_n_steps}")
        self.every_n_steps, self.folder = every_n_steps, folder
        self._path = Path()
        self._repair_saved = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        # On every rank: `trainer.log_dir` is a collective operation.
        self._path = Path(self.folder or trainer.log_dir or trainer.default_root_dir) / "history.jsonl"
        if trainer.is_global_zero:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            lines = self._path.read_text().splitlines() if self._path.exists() else []
            kept = [line for line in lines if _step_of(line) < pl_module.step]
            self._path.write_text("".join(line + "\n" for line in kept))

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._save_repair(pl_module)
        step = pl_module.step - 1  # of the batch that has just ended
        if step % self.every_n_steps == 0 or pl_module.step == pl_module.total_steps:
            self._log(trainer, pl_module, step)

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        self._save_repair(pl_module)

    @rank_zero_only
    def _save_repair(self, pl_module: Any) -> None:
        changes = getattr(pl_module, "repair_log", None)
        if not changes or self._repair_saved:
            return
        self._repair_saved = True
        path = self._path.with_name("repair.json")
        path.write_text(json.dumps([asdict(change) for change in changes], indent=1) + "\n")
        moves = ", ".join(f"{change.site} {change.before} -> {change.after}" for change in changes[:4])
        more = f" and {len(changes) - 4} more ({path})" if len(changes) > 4 else ""
        print(f"budget repair before step {pl_module.step - 1}: {moves}{more}", flush=True)

    @rank_zero_only
    def _log(self, trainer: pl.Trainer, pl_module: Any, step: int) -> None:
        widths = dict(pl_module.policy().sites)
        numbers = {"policy/wcr": pl_module.wcr(), "policy/acr": pl_module.acr()}
        if hasattr(pl_module, "schedule_state"):
            numbers |= {f"policy/{name}": value for name, value in pl_module.schedule_state().items()}
        loss = trainer.callback_metrics.get("train/task_loss")
        if loss is not None:
            numbers["train/task_loss"] = float(loss)
        if trainer.logger is not None:
            per_site = {f"bit_width/{site}": float(b) for site, b in widths.items()}
            trainer.logger.log_metrics(numbers | per_site, step=step)
        with self._path.open("a") as file:
            file.write(json.dumps({"step": step, **numbers, "bit_widths": widths}) + "\n")


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (json.JSONDecodeError, KeyError):
        return float("inf")  # cut off in the middle of a write
