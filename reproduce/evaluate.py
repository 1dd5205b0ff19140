"""`python -m reproduce evaluate FILE`: accuracy, compression and size of a packed model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from common.command_line import Parser
from common.compression import FLOAT_BITS, activation_compression_rate, weight_compression_rate
from common.errors import UserError
from common.graph import find_sites
from common.packing import load_packed, size_account
from data import DATA_SETS, make_data
from reproduce.cli import split_settings
from reproduce.measure import accuracy, sampling_error
from reproduce.settings import checked_arguments, parse_overrides, preprocessing_of


def main(arguments: Sequence[str]) -> int:
    parser = Parser(
        prog="python -m reproduce evaluate",
        description="Accuracy and size of a packed model. --data.NAME VALUE sets an argument of the data set.",
    )
    parser.add_argument("file", metavar="FILE", help="packed.safetensors of a run")
    parser.add_argument("--data", metavar="NAME", help=f"{', '.join(DATA_SETS)}; default: what the file was made with")
    parser.add_argument("--model", metavar="NAME", help="confirms a network that the file names by class path")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--json", action="store_true")
    own, rest = split_settings(arguments)
    options = parser.parse_args(own)
    overrides = parse_overrides(rest)
    if other := [name for name in overrides if not name.startswith("data.")]:
        raise UserError(f"evaluate takes --data.NAME settings only, not --{other[0]}")
    settings = {name.removeprefix("data."): value for name, value in overrides.items()}
    result = evaluate(options.file, options.data, settings, options.model, options.device)
    if options.json:
        print(json.dumps(result, indent=1))
        return 0
    error = sampling_error(result["top1"], result["images"])
    print(f"{options.file}: {result['model']} by {result['method']}")
    print(f"  top-1   {result['top1']:.2f} % of {result['images']} test images of {result['data']} (± {error:.2f})")
    if "top5" in result:
        print(f"  top-5   {result['top5']:.2f} %")
    print(f"  WCR     {result['wcr']:.4f}")
    if result["acr"] is not None:
        print(f"  ACR     {result['acr']:.4f}")
    parts = " + ".join(f"{name} {result['bytes'][f'{name}_bytes']}" for name in ("codes", "tables", "floats", "header"))
    print(f"  bytes   {parts} = {result['bytes']['file_bytes']}")
    return 0


def evaluate(
    file: str | Path,
    data_name: str | None = None,
    data_settings: dict[str, Any] | None = None,
    model: str | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Load a packed file and measure it on the test split.

    Args:
        data_name: key of DATA_SETS; None is the data set that the file names.
        data_settings: arguments of the data module, such as root.
        model: see `load_packed`.

    Returns:
        model, method, data, images, top1 (and top5) in percent, wcr, acr, bytes (see `size_account`).

    Raises:
        UserError, DataError: a file that is no packed model, data that are missing or do not fit it.
    """
    network, content = load_packed(file, model)
    policy = content["policy"]
    made = content["metadata"] if isinstance(content["metadata"], dict) else {}
    made_on = made.get("data") if isinstance(made.get("data"), dict) else {}
    name = data_name or made_on.get("name")
    if not name:
        raise UserError(f"{file} does not say what data it was made with: give --data NAME")
    if data_name is None and name not in DATA_SETS:
        raise UserError(f"{file} was made with {name!r}: give --data with one of {', '.join(DATA_SETS)}")
    data = _data(name, policy, made_on if name == made_on.get("name") else {}, content, data_settings or {})
    if tuple(data.input_shape) != tuple(policy.input_shape):
        raise UserError(f"{name} has images of {tuple(data.input_shape)}, {file} takes {tuple(policy.input_shape)}")
    sites = {site.name: site for site in find_sites(network, torch.zeros(2, *policy.input_shape))}
    weights = {name: site.num_elements for name, site in sites.items() if site.kind == "weight"}
    widths = {name: FLOAT_BITS for name in weights} | dict(policy.sites)
    inputs = {name: sites[name].num_elements for name in policy.sites if sites[name].kind in ("tensor", "edge")}
    try:
        network = network.to(device)
    except (RuntimeError, AssertionError) as error:  # torch without CUDA asserts
        raise UserError(f"device {device!r}: {str(error).splitlines()[0]}") from None
    data.setup()
    return {
        "model": policy.model,
        "method": made.get("method", "an unnamed method"),
        "data": name,
        **accuracy(network, data.test_dataloader(), device),
        "wcr": weight_compression_rate(weights, widths),
        "acr": activation_compression_rate(inputs, policy.sites) if inputs else None,
        "bytes": size_account(file),
    }


def _data(name: str, policy: Any, made_on: dict[str, Any], content: dict[str, Any], settings: dict[str, Any]) -> Any:
    if name not in DATA_SETS:
        return make_data(name)  # raises, naming the known ones
    arguments = {key: made_on[key] for key in ("mean", "std") if key in made_on}
    arguments = preprocessing_of(policy.model, DATA_SETS[name]) | arguments
    if name == "imagenet" and content["network"].get("num_classes") not in (None, 1000):
        arguments["class_subset_head"] = True  # a head of its own numbers the classes that are there
    return DATA_SETS[name](**checked_arguments(DATA_SETS[name], "data", arguments | settings))
