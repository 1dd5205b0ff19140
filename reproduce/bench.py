"""Step time and peak memory of a method against the full-precision step of the same network.

A step is what training does with one batch: the method's own preparation (noise drawing), forward, loss, backward,
RAdam. The optimizer is the same for all, so that a ratio is the price of the quantizers; callbacks and logging are left
out. Images, labels and weights are random, the memory format is channels_last.

Times of one mode come from one process in which the methods take turns, and ratios are taken block by block, so that
whatever else the machine does meets all of them alike. Memory is measured apart from time, one process per method.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.command_line import Parser
from common.errors import UserError
from common.models import build_model
from common.training import QuantizedModule
from reproduce.ledger import write_json
from reproduce.settings import method_class
from reproduce.tables import ROOT

REFERENCE = "full_precision"
PHASE_2 = "_phase2"
MODES = ("eager", "compiled")
WARM_UP_STEPS = 3
BLOCK_STEPS = 2
MEMORY_STEPS = 3
SCHEDULE_STEPS = 10**6  # long enough that no step of the measurement leaves its phase
MEMORY_MEASURES = {
    "cuda": "torch.cuda.max_memory_allocated over the steps",
    "cpu": "weights, buffers and optimizer state plus the rise of the resident set (VmHWM) over the idle process",
}


def main(arguments: Sequence[str]) -> int:
    """`python -m reproduce bench`: prints a table or JSON; the exit status.

    Raises:
        UserError: bad arguments, unknown method, model or mode.
    """
    options = _parse(arguments)
    for name in options.methods:
        method_of(name)
    if options.worker:
        print(json.dumps(_work(options)))
        return 0
    build_model(options.model)  # an unknown model is found here, not by the first process
    report = _measure(options)
    if options.json == "-":
        print(json.dumps(report, indent=1))
        return 0
    print(table(report))
    if options.json:
        write_json(Path(options.json), report)
    return 0


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(prog="python -m reproduce bench", description=__doc__, allow_abbrev=False)
    parser.add_argument("--methods", default="hmq,hmq_phase2,uniform", help=f"names; NAME{PHASE_2} is its second phase")
    parser.add_argument("--model", default="resnet20")
    parser.add_argument("--batch", type=_positive, default=128, help="images per step")
    parser.add_argument("--modes", default="eager,compiled")
    parser.add_argument("--steps", type=_positive, default=20, help=f"timed steps a method, in blocks of {BLOCK_STEPS}")
    parser.add_argument("--threads", type=_positive, help="torch threads; default torch's")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--noise", help="HMQ's choice of noise, sample or tensor; default the method's")
    parser.add_argument("--no-memory", action="store_true", help="measure time alone")
    parser.add_argument("--json", nargs="?", const="-", help="write JSON to a file, or to standard output (-)")
    parser.add_argument("--worker", choices=("time", "memory"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.methods = list(dict.fromkeys(name for name in options.methods.split(",") if name and name != REFERENCE))
    if not options.methods and not options.worker:
        raise UserError("--methods names nothing to compare with full_precision")
    options.modes = list(dict.fromkeys(options.modes.split(",")))
    if unknown := [mode for mode in options.modes if mode not in MODES]:
        raise UserError(f"unknown mode {unknown[0]!r}: choose from {', '.join(MODES)}")
    if options.device not in MEMORY_MEASURES:
        raise UserError(f"unknown device {options.device!r}: choose cpu or cuda")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("there is no CUDA device here: leave --device out")
    return options


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text!r}")
    return int(text)


# -- one method's step ------------------------------------------------------------------------------------------------


def method_of(name: str) -> type[QuantizedModule]:
    """The trainer class of a paper folder; NAME_phase2 is NAME's.

    Raises:
        UserError: no such folder, or one whose method has no such step.
    """
    folder = name.removesuffix(PHASE_2)
    method = method_class(folder)
    if not issubclass(method, QuantizedModule):
        raise UserError(f"{folder} does not train: there is no step to measure")
    if name != folder and not hasattr(method, "schedule"):
        raise UserError(f"{folder} has no second phase")
    return method


def build(name: str, model: str, noise: str | None = None) -> QuantizedModule:
    """The method's module with random weights."""
    settings: dict[str, Any] = {"model": model}
    if noise is not None and name.removesuffix(PHASE_2) == "hmq":
        settings["choices"] = {"noise": noise}
    return method_of(name)(**settings)


class Step:
    """A method's training step on one batch of random images; calling it runs one step.

    Args:
        name: of the method, or NAME_phase2.
        model: of the network.
        batch: images per step.
        device: "cpu" or "cuda".
        compiled: `torch.compile` the network, as training does.
        noise: see `build`.
    """

    def __init__(self, name: str, model: str, batch: int, device: str, compiled: bool, noise: str | None) -> None:
        torch.manual_seed(0)
        self.module = module = build(name, model, noise).to(device)
        module.channels_last = True
        module.network.to(memory_format=torch.channels_last)
        images = torch.randn(batch, *module.input_shape, device=device)
        self.images = images.contiguous(memory_format=torch.channels_last)
        self.labels = torch.randint(module.num_classes, (batch,), device=device)
        module.calibrate([self.images])
        module.total_steps = SCHEDULE_STEPS
        module.log = module.log_dict = lambda *args, **kwargs: None  # there is no trainer to log to
        module.train()
        module.on_train_start()
        if name.endswith(PHASE_2):
            module.step = module.schedule.search_steps
            module.on_phase(2)
        if compiled:
            module.network.compile()
        self.optimizer = torch.optim.RAdam(
            module.parameter_groups(), lr=1e-5, weight_decay=1e-4, decoupled_weight_decay=True
        )
        self.synchronize: Callable[[], None] = torch.cuda.synchronize if device == "cuda" else lambda: None

    def __call__(self) -> None:
        self.optimizer.zero_grad()
        self.module.before_step(self.images)
        self.module.training_loss(self.images, self.labels).backward()
        self.optimizer.step()
        self.module.after_optimizer_step()
        self.module.step += 1

    def seconds(self, steps: int) -> float:
        """Wall time of `steps` steps."""
        self.synchronize()
        start = time.perf_counter()
        for _ in range(steps):
            self()
        self.synchronize()
        return time.perf_counter() - start

    def held_bytes(self) -> int:
        """Bytes of weights, buffers and optimizer state."""
        held: list[Tensor] = [*self.module.parameters(), *self.module.buffers()]
        held += [v for state in self.optimizer.state.values() for v in state.values() if isinstance(v, Tensor)]
        return sum(tensor.numel() * tensor.element_size() for tensor in held)


# -- workers: one process each ----------------------------------------------------------------------------------------


def _work(options: argparse.Namespace) -> Any:
    if options.threads:
        torch.set_num_threads(options.threads)
    compiled = options.modes == ["compiled"]
    make = [options.model, options.batch, options.device, compiled, options.noise]
    if options.worker == "time":
        steps = {name: Step(name, *make) for name in (REFERENCE, *options.methods)}
        return time_steps(steps, max(1, options.steps // BLOCK_STEPS))
    (name,) = options.methods or (REFERENCE,)
    return peak_memory(Step(name, *make), options.device)


def time_steps(steps: dict[str, Step], blocks: int) -> dict[str, list[float]]:
    """Seconds per step of each block; in every other block the methods take turns in reverse order."""
    for step in steps.values():
        step.seconds(WARM_UP_STEPS)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for block in range(blocks):
        for name in list(steps)[:: 1 if block % 2 == 0 else -1]:
            seconds[name].append(steps[name].seconds(BLOCK_STEPS) / BLOCK_STEPS)
    return seconds


def peak_memory(step: Step, device: str) -> int | None:
    """Peak bytes of a step (see MEMORY_MEASURES); None where the system does not tell the resident set's peak."""
    step.seconds(WARM_UP_STEPS)
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        step.seconds(MEMORY_STEPS)
        return torch.cuda.max_memory_allocated()
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not reset.exists():
        return None
    step.optimizer.zero_grad()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # freed but still resident memory would hide the rise
    idle = _resident(status, "VmRSS")
    try:
        reset.write_text("5")  # VmHWM starts again from here
    except OSError:
        return None
    step.seconds(MEMORY_STEPS)
    return step.held_bytes() + max(0, _resident(status, "VmHWM") - idle)


def _resident(status: Path, field: str) -> int:
    match = re.search(rf"{field}:\s+(\d+) kB", status.read_text())
    assert match is not None, f"no {field} in {status}"
    return 1024 * int(match[1])


# -- the report -------------------------------------------------------------------------------------------------------


def _measure(options: argparse.Namespace) -> dict[str, Any]:
    report: dict[str, Any] = {
        "model": options.model,
        "batch": options.batch,
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "threads": options.threads or torch.get_num_threads(),
        "torch": torch.__version__,
        "memory": MEMORY_MEASURES[options.device],
        "modes": {},
    }
    for mode in options.modes:
        seconds = _run_worker("time", mode, options.methods, options)
        peaks = {}
        if not options.no_memory:
            peaks = {name: _run_worker("memory", mode, [name], options) for name in (REFERENCE, *options.methods)}
        report["modes"][mode] = summarise(seconds, peaks)
    return report


def summarise(seconds: dict[str, list[float]], peaks: dict[str, int | None]) -> dict[str, dict[str, float | None]]:
    """Medians per method: of the blocks' step times, and of their ratios to the full-precision time in that block."""
    summary: dict[str, dict[str, float | None]] = {}
    for name, blocks in seconds.items():
        ratios = [mine / float_s for mine, float_s in zip(blocks, seconds[REFERENCE], strict=True)]
        peak, float_peak = peaks.get(name), peaks.get(REFERENCE)
        summary[name] = {
            "step_ms": round(1e3 * statistics.median(blocks), 3),
            "ratio": round(statistics.median(ratios), 4),
            "peak_memory_bytes": peak,
            "memory_ratio": round(peak / float_peak, 4) if peak and float_peak else None,
        }
    return summary


def _run_worker(kind: str, mode: str, methods: Sequence[str], options: argparse.Namespace) -> Any:
    arguments = ["--worker", kind, "--modes", mode, "--methods", ",".join(methods), "--model", options.model]
    for option in ("batch", "steps", "threads", "device", "noise"):
        if (value := getattr(options, option)) is not None:
            arguments += [f"--{option}", str(value)]
    command = [sys.executable, "-W", "ignore", "-m", "reproduce", "bench", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1].removeprefix("error: ")
        raise UserError(f"measuring {' and '.join(methods)} ({mode}, {kind}) failed: {reason}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(report: dict[str, Any]) -> str:
    lines = [
        f"{report['model']}, batch {report['batch']}, {report['device']}, {report['threads']} thread(s), "
        f"torch {report['torch']}; memory: {report['memory']}",
        f"{'mode':10}{'method':20}{'step ms':>10}{'ratio':>8}{'peak MiB':>10}{'ratio':>8}",
    ]
    for mode, methods in report["modes"].items():
        for name, row in methods.items():
            peak, memory_ratio = row["peak_memory_bytes"], row["memory_ratio"]
            lines.append(
                f"{mode:10}{name:20}{row['step_ms']:10.1f}{row['ratio']:8.2f}"
                + (f"{peak / 2**20:10.0f}{memory_ratio:8.2f}" if peak and memory_ratio else f"{'-':>10}{'-':>8}")
            )
    return "\n".join(lines)
