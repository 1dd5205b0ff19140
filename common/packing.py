"""Packed models: bit-packed weight codes, quantizer tables and the float rest in one safetensors file."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, fx, nn

from common.bit_policy import BitPolicy
from common.errors import UserError
from common.graph import find_sites, insert_quantizers, quantizers, remove_quantizers, trace
from common.graph.rewrites import describe_changes, repeat_changes
from common.models import build_model, list_models
from common.operators import operators, repeat_operators
from common.quantizers import AffineEncoding, AffineQuantizer, Quantizer
from common.quantizers.duq import RescaledQuantizer
from common.quantizers.levels import LevelsEncoding, LevelsQuantizer
from common.quantizers.lsq import OffsetQuantizer
from common.quantizers.multi_bit import ABCNetActivations
from common.quantizers.planes import PlanesEncoding, PlanesQuantizer

FORMAT = "packed-network-1"
_CODES, _TABLES, _FLOATS = "codes/", "tables/", "floats/"
_LOADS_WEIGHTS = ("pretrained", "checkpoint", "weights", "cache_dir")  # arguments that fetch or read other files
Encoding = AffineEncoding | LevelsEncoding | PlanesEncoding
# Kind of encoded weights -> class, tables, and those of them that are left out where they are zero.
_ENCODINGS: dict[str, tuple[type[Encoding], tuple[str, ...], tuple[str, ...]]] = {
    "affine": (AffineEncoding, ("scale", "zero_point", "offset"), ("offset",)),
    "levels": (LevelsEncoding, ("levels",), ()),
    "planes": (PlanesEncoding, ("scales",), ()),
}
# Kind of activation grid -> class; all that it needs is in its state.
_GRIDS: dict[str, type[Quantizer] | type[RescaledQuantizer]] = {
    "grid": AffineQuantizer,
    "offset_grid": OffsetQuantizer,
    "rescaled_grid": RescaledQuantizer,
    "levels_grid": LevelsQuantizer,
    "planes_grid": PlanesQuantizer,
    "shifted_planes_grid": ABCNetActivations,
}


def save_packed(
    path: str | Path,
    network: fx.GraphModule,
    policy: BitPolicy,
    num_classes: int,
    model_args: dict[str, Any] | None = None,
    **metadata: Any,
) -> dict[str, int]:
    """Write the network in its eval-mode form; an existing file is replaced at once or not at all.

    Batch norms may be folded and activation functions replaced by per-channel ones (`common.graph.rewrites`): the
    header tells, so that loading does the same to the network that it builds.

    Tensors: `codes/SITE` packed weight codes (uint8), `tables/SITE.*` scales and zero points of weights and the grids
    of activations, `floats/NAME` everything else of the state dict (biases, batch norm) in float32.

    Args:
        path: the file.
        network: traced network with quantizers that have an `inference_form`.
        policy: its bit policy, stored with the model's name.
        num_classes, model_args: what `build_model` needs besides the name.
        metadata: stored as JSON.

    Returns:
        the size account of `size_account`.

    Raises:
        UserError: model_args or metadata that JSON does not hold, a folder that cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    encodings: dict[str, Any] = {}
    sites = quantizers(network)
    plain = copy.deepcopy(network)
    remove_quantizers(plain)
    state = dict(plain.state_dict())
    for name, quantizer in sites.items():
        if name in state:  # a parameter's site is named after the parameter
            encoding = quantizer.encode(state.pop(name))
            kind = next(kind for kind, (cls, _, _) in _ENCODINGS.items() if isinstance(encoding, cls))
            encodings[name] = {
                "kind": kind,
                "shape": list(encoding.codes.shape),
                "axis": encoding.axis,
                "group_sizes": list(encoding.group_sizes),
                "bits": list(encoding.bits),
            }
            tensors[_CODES + name] = encoding.pack()
            _, parts, optional = _ENCODINGS[kind]
            for part in parts:
                values = getattr(encoding, part)
                if part not in optional or bool(values.any()):
                    tensors[f"{_TABLES}{name}.{part}"] = values.float()
        else:
            grid = quantizer.inference_form()
            encodings[name] = _describe_grid(grid)
            for part, values in grid.state_dict().items():
                tensors[f"{_TABLES}{name}.{part}"] = values.float()
    changes = describe_changes(plain)
    tensors |= {_FLOATS + name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    try:
        header = {
            "format": FORMAT,
            "policy": json.dumps(policy.to_dict()),
            "network": json.dumps({"num_classes": num_classes, "model_args": model_args or {}, **changes}),
            "encodings": json.dumps(encodings),
            "metadata": json.dumps(metadata),
        }
        if changed := operators(network):
            header["operators"] = json.dumps(changed)
    except TypeError as error:
        raise UserError(f"packing {path}: {error}") from None
    temporary = Path(f"{path}.partial")
    try:
        save_file(tensors, temporary, metadata=header)
        os.replace(temporary, path)
    except (SafetensorError, OSError) as error:
        raise UserError(f"cannot write {path}: {error}") from None
    return size_account(path)


def size_account(path: str | Path) -> dict[str, int]:
    """Bytes of a packed file: codes + tables + floats + header = file.

    codes are the packed weights; tables the scales, zero points and activation grids; floats biases and batch norm.
    """
    with _open(path) as file:
        account = dict.fromkeys(("codes_bytes", "tables_bytes", "floats_bytes"), 0)
        for name in file.keys():  # noqa: SIM118 - not a dict
            tensor = file.get_tensor(name)
            account[f"{name.split('/')[0]}_bytes"] += tensor.numel() * tensor.element_size()
    total = Path(path).stat().st_size
    return account | {"header_bytes": total - sum(account.values()), "file_bytes": total}


def read_metadata(path: str | Path) -> dict[str, Any]:
    """Policy, network arguments, encodings and the writer's metadata of a packed file, as plain objects."""
    with _open(path) as file:
        header = file.metadata() or {}
    if header.get("format") != FORMAT:
        raise UserError(f"{path} is not a packed model (no {FORMAT} header)")
    try:
        parsed = {name: json.loads(header[name]) for name in ("policy", "network", "encodings", "metadata")}
        parsed["operators"] = json.loads(header.get("operators", "{}"))
    except (KeyError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: damaged header ({error})") from None
    if wrong := [name for name, content in parsed.items() if not isinstance(content, dict)]:
        raise UserError(f"{path}: damaged header ({wrong[0]} is no object)")
    return parsed | {"policy": BitPolicy.from_dict(parsed["policy"], source=str(path))}


def load_packed(path: str | Path, model: str | None = None) -> tuple[fx.GraphModule, dict[str, Any]]:
    """Rebuild the network in eval mode: decoded weights, plain quantizers at its activation sites.

    Its logits equal, bit by bit, those of the network that was saved.

    Args:
        path: a packed file.
        model: name of the network, if not the one in the file. A class path has to be given here: importing what a file
            names would run code that the file chooses.

    Returns:
        network and metadata (`read_metadata`).

    Raises:
        UserError: not a packed file, damaged, or of a network that does not fit.
    """
    metadata = read_metadata(path)
    policy: BitPolicy = metadata["policy"]
    name = model or policy.model
    if model is None and name not in known_models():
        raise UserError(f"{path} holds a network of class {name}: confirm it with --model {name}")
    try:
        arguments = {k: v for k, v in metadata["network"]["model_args"].items() if not k.startswith(_LOADS_WEIGHTS)}
        network = build_model(name, num_classes=metadata["network"]["num_classes"], **arguments)
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: cannot rebuild {name} ({error})") from None
    example = torch.zeros(2, *policy.input_shape)
    traced = trace(network, example)
    with _open(path) as file:
        names = [key.removeprefix(_FLOATS) for key in file.keys() if key.startswith(_FLOATS)]  # noqa: SIM118
    repeat_changes(traced, metadata["network"], names, str(path))
    policy.validate(policy.model, {site.name for site in find_sites(traced, example)})
    state, grids = {}, {}
    with _open(path) as file:
        try:
            for site, encoding in metadata["encodings"].items():
                if encoding["kind"] in _ENCODINGS:
                    state[site] = _read_encoding(file, site, encoding).decode()
                else:
                    grids[site] = _read_grid(file, site, encoding)
            for key in file.keys():  # noqa: SIM118 - not a dict
                if key.startswith(_FLOATS):
                    state[key.removeprefix(_FLOATS)] = file.get_tensor(key)
        except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"{path}: damaged content ({reason})") from None
    try:
        missing, unexpected = traced.load_state_dict(state, strict=False)
    except RuntimeError as error:
        raise UserError(f"{path} does not fit {name}: {str(error).splitlines()[-1].strip()}") from None
    if wrong := [k for k in missing if not k.endswith("num_batches_tracked")] + unexpected:
        raise UserError(f"{path} does not fit {name}: {wrong[0]} is missing or unknown")
    insert_quantizers(traced, grids)
    repeat_operators(traced, metadata["operators"])
    return traced.eval(), metadata


def known_models() -> set[str]:
    """Names that the registry itself resolves, without importing anything that a file names."""
    timm = list_models("timm")
    return {*list_models("own"), *list_models("torchvision"), *timm, *(name.removeprefix("timm:") for name in timm)}


def _open(path: str | Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError:
        raise UserError(f"no packed file {path}") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path} is not a readable safetensors file: {error}") from None


def _read_encoding(file: safe_open, site: str, encoding: dict[str, Any]) -> Encoding:
    layout = (tuple(encoding["shape"]), encoding["axis"], tuple(encoding["group_sizes"]), tuple(encoding["bits"]))
    cls, parts, optional = _ENCODINGS[encoding["kind"]]
    present = set(file.keys())
    tables = {part: file.get_tensor(f"{_TABLES}{site}.{part}") for part in parts if part not in optional}
    for part in optional:
        name = f"{_TABLES}{site}.{part}"
        tables[part] = file.get_tensor(name) if name in present else torch.zeros_like(tables[parts[0]])
    codes = cls.unpack_codes(file.get_tensor(_CODES + site), *layout)
    widths = "planes" if cls is PlanesEncoding else "bits"
    return cls(codes=codes, axis=layout[1], group_sizes=layout[2], **{widths: layout[3]}, **tables)


def _describe_grid(grid: nn.Module) -> dict[str, Any]:
    """What rebuilds a grid besides its buffers.

    Raises:
        TypeError: no grid that a packed file can hold.
    """
    for kind, cls in _GRIDS.items():
        if type(grid) is cls:
            described: dict[str, Any] = {"kind": kind, "channels": getattr(grid, "channels", None)}
            if kind == "offset_grid":
                described["channels"] = grid.grid.channels
            return described | ({"ties_up": grid.ties_up} if kind == "levels_grid" else {})
    raise TypeError(f"a packed file holds no activation grid of type {type(grid).__name__}")


def _read_grid(file: safe_open, site: str, encoding: dict[str, Any]) -> nn.Module:
    prefix = f"{_TABLES}{site}."
    values = {name.removeprefix(prefix): file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
    width = values[{"offset_grid": "grid.", "rescaled_grid": "grid.grid."}.get(encoding["kind"], "") + "bit_width"]
    settings: dict[str, Any] = {} if encoding["kind"] == "shifted_planes_grid" else {"channels": encoding["channels"]}
    if encoding["kind"] == "levels_grid":
        settings |= {"levels": values["levels"], "thresholds": values["thresholds"], "ties_up": encoding["ties_up"]}
    grid = _GRIDS[encoding["kind"]](int(width), **settings)
    own = grid.state_dict()
    grid.load_state_dict({name: value.reshape(own[name].shape).to(own[name].dtype) for name, value in values.items()})
    return grid
