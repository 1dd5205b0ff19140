"""Weights files into networks, and the hash by which records name the weights that a run started from."""

from __future__ import annotations

import hashlib
import pickle
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.errors import UserError

_SUFFIXES = ".safetensors, .npz, .pth, .pt, .th, .ckpt or .tar"
_WRAPPERS = ("state_dict", "model_state_dict", "model", "net")  # entries of a checkpoint that hold the state dict
_PREFIXES = ("module.", "network.", "_orig_mod.")  # of DataParallel, of our LightningModules, of torch.compile


def load_weights(model: nn.Module, path: str | Path, strict: bool = True) -> str:
    """Copy the weights in a file into `model`: all of them, or, on any error, none.

    Formats, by suffix: safetensors; `.npz` of arrays; `.pth`, `.pt`, `.th`, `.ckpt`, `.tar` written by torch.save. No
    file can run code: pickled objects other than tensors and plain containers are refused. Checkpoints that hold the
    state dict under `state_dict`, `model_state_dict`, `model` or `net` are unwrapped (Lightning's too), the prefixes
    `module.`, `network.` and `_orig_mod.` are stripped where the network has no such names itself. Floating values of
    another precision are cast to the dtype of the parameter. A network with a method `adapt_state_dict(state) ->
    state` may rename entries.

    Args:
        model: receives the weights, on whatever device it is.
        path: the file.
        strict: False keeps the network's own values where the file has no entry of that name and shape, with a warning.
    Returns:
        state_hash(model) after loading.
    Raises:
        UserError: no such file, unreadable or damaged file, or (strict) names or shapes that do not fit; one line that
            names the first offending entry. `num_batches_tracked` of batch norms may be missing.
    """
    path = Path(path)
    expected = _tensors(model)
    found = _strip_prefixes(_read(path), expected, path)
    adapt = getattr(model, "adapt_state_dict", None)
    if adapt is not None:
        found = adapt(found)

    problems: list[str] = []
    fitting: dict[str, Tensor] = {}
    for name, target in expected.items():
        if name not in found:
            if not name.endswith("num_batches_tracked"):
                problems.append(f"{name} {_shape(target)} is missing")
        elif found[name].shape != target.shape:
            problems.append(f"{name} has shape {_shape(found[name])}, the network expects {_shape(target)}")
        elif target.is_floating_point() and not found[name].is_floating_point():
            problems.append(f"{name} holds {found[name].dtype}, the network expects floating-point values")
        else:
            fitting[name] = found[name]
    problems += [f"{name} {_shape(found[name])} is not in the network" for name in found if name not in expected]
    if problems:
        more = f" (and {len(problems) - 1} further mismatches)" if len(problems) > 1 else ""
        message = f"weights {path} do not fit {type(model).__name__}: {problems[0]}{more}"
        if strict:
            raise UserError(f"{message}; give the file of this network, or the model and class count of this file")
        warnings.warn(f"{message}; the network keeps its own values there")
    for name, value in fitting.items():
        if not torch.isfinite(value).all():
            raise UserError(f"weights {path} are damaged: {name} holds NaN or infinite values")

    with torch.no_grad():
        for name, value in fitting.items():
            expected[name].copy_(value)
    return state_hash(model)


def state_hash(model: nn.Module) -> str:
    """First 16 hex digits of the sha256 over names, shapes and bytes of the state dict, in the order of the names.

    Equal weights have equal hashes whatever file they came from and whatever device they are on. Batch norms'
    `num_batches_tracked`, which some files lack and no evaluation uses, are left out.
    """
    digest = hashlib.sha256()
    for name, value in sorted(_tensors(model).items()):
        if name.endswith("num_batches_tracked"):
            continue
        digest.update(f"{name} {_shape(value)}\n".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    """The state dict without modules' extra state, which need not be tensors. Values share memory with the model."""
    return {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}


def _shape(value: Tensor) -> str:
    return str(tuple(value.shape))


def _read(path: Path) -> dict[str, Tensor]:
    """All tensors of the file, unwrapped."""
    readers: dict[str, Callable[[Path], Any]] = {".safetensors": _read_safetensors, ".npz": _read_npz}
    readers |= dict.fromkeys((".pth", ".pt", ".th", ".ckpt", ".tar"), _read_torch)
    if not path.is_file():
        raise UserError(f"weights file {path} does not exist")
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise UserError(f"weights file {path} has an unknown suffix; expected {_SUFFIXES}")
    try:
        state = reader(path)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"weights file {path} is damaged or holds more than tensors; save the network's state_dict() alone"
        ) from error
    except Exception as error:  # each format raises a dozen kinds of errors on damaged files, all meaning the same
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"weights file {path} is damaged or no {path.suffix} file of arrays: {reason}") from error

    if isinstance(state, Mapping):
        for wrapper in _WRAPPERS:
            if isinstance(state.get(wrapper), Mapping):
                state = state[wrapper]
                break
    if not isinstance(state, Mapping) or not state:
        raise UserError(f"weights file {path} holds no state dict, but {_describe(state)}")
    for name, value in state.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"weights file {path} holds no state dict: entry {name!r} is {_describe(value)}")
    return dict(state)


def _describe(value: object) -> str:
    return "nothing" if isinstance(value, Mapping) and not value else f"a value of type {type(value).__name__}"


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path)


def _read_npz(path: Path) -> dict[str, Tensor]:
    archive = np.load(path, allow_pickle=False)
    if isinstance(archive, np.ndarray):
        raise ValueError("it holds a single array without a name")
    with archive:
        arrays = {name: archive[name] for name in archive.files}
    # torch takes native byte order only
    return {name: torch.from_numpy(array.astype(array.dtype.newbyteorder("="))) for name, array in arrays.items()}


def _read_torch(path: Path) -> Any:
    return torch.load(path, map_location="cpu", weights_only=True)


def _strip_prefixes(state: Mapping[str, Tensor], expected: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Remove the wrappers' prefixes, also nested (`network._orig_mod.conv1.weight`), that no own name starts with."""
    prefixes = tuple(prefix for prefix in _PREFIXES if not any(name.startswith(prefix) for name in expected))
    stripped: dict[str, Tensor] = {}
    for name, value in state.items():
        short = name
        while prefix := next((prefix for prefix in prefixes if short.startswith(prefix)), None):
            short = short.removeprefix(prefix)
        if short in stripped:
            raise UserError(f"weights file {path} holds {short} twice, with and without a prefix")
        stripped[short] = value
    return stripped
