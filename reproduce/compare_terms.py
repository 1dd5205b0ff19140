"""What a comparison holds equal, and how it is said to each method: by the names of its constructor's arguments."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from common.compression import FLOAT_BITS, packed_bytes
from common.errors import UserError
from common.graph import Layer
from data import DATA_SETS
from reproduce.settings import checked_arguments, method_class
from reproduce.tables import METHODS, read_config

FLOAT_METHOD = "full_precision"
MAX_SIZE_DIFFERENCE = 0.02
NETWORK = ("model", "weights", "num_classes", "input_shape", "model_args", "seed")
WEIGHT_WIDTHS = ("weight_bit_width", "bit_width")
FIRST_LAST = {"8bit": 8, "same": None, "float": FLOAT_BITS}

# Where the shared terms of a data set are written down, as methods/<reference>/configs/<data>_equal_terms.yaml.
REFERENCE = "lsq"
SHARED = (
    *("optimizer", "learning_rate", "learning_rate_schedule", "weight_decay", "batch_norm"),
    *("compile_network", "channels_last"),
)
_USUAL = {
    "optimizer": "radam",
    "learning_rate": 1e-3,  # as in methods/hmq/configs/digits.yaml
    "learning_rate_schedule": "cosine",
    "weight_decay": 1e-4,
    "batch_norm": "train",
    "compile_network": False,
    "channels_last": False,
}
TERMS: dict[str, dict[str, dict[str, Any]]] = {  # of data sets without such a file
    "digits": {"model": _USUAL, "data": {"batch_size": 64}, "trainer": {"max_epochs": 30}},
    "imagenet": {  # those of methods/hmq/configs/imagenette_equal_terms.yaml
        "model": _USUAL | {"learning_rate": 1e-4, "channels_last": True},
        "data": {"batch_size": 32},
        "trainer": {"max_epochs": 50, "precision": "bf16-mixed"},
    },
}


def shared_terms(data_name: str) -> dict[str, dict[str, Any]]:
    """The sections model, data and trainer that all methods get on a data set."""
    file = f"{data_name}_equal_terms.yaml"
    if (METHODS / REFERENCE / "configs" / file).is_file():
        config = read_config(REFERENCE, file)
        model = {name: value for name, value in config["model"].items() if name in SHARED}
        data, trainer = config["data"].get("init_args") or {}, config["trainer"]
    else:
        model, data, trainer = (TERMS[data_name][section] for section in ("model", "data", "trainer"))
    return {"model": {**model, "budget_repair": True}, "data": dict(data), "trainer": dict(trainer)}


class NotOffered(Exception):
    """A method does not have what the comparison asks for; the message says what."""


@dataclass(frozen=True)
class Size:
    """What the rows of one group have in common.

    Attributes:
        label: "4/4", or "WCR 10".
        weight_bits: of uniform policies; None where no uniform width has this size.
        activation_bits: 32 is float.
        num_bytes: of the weights: packed codes, and float layers in float32.
        wcr: float32 bytes over `num_bytes`.
    """

    label: str
    weight_bits: int | None
    activation_bits: int
    num_bytes: float
    wcr: float

    @property
    def name(self) -> str:
        """As it stands in the names of rows: w4a4, wcr10."""
        if self.weight_bits is not None and "/" in self.label:
            return f"w{self.weight_bits}a{self.activation_bits}"
        return f"wcr{self.wcr:g}a{self.activation_bits}"


@dataclass(frozen=True)
class Terms:
    """What all methods are given.

    Attributes:
        model: name of the network.
        network: its further arguments (num_classes, input_shape, model_args).
        arguments: of every method that has an argument of the name.
        chosen: those of them that stand on the command line.
        first_last: "8bit", "same" or "float": weights and inputs of the first and the last layer.
        data_name: key of DATA_SETS.
        data, trainer: arguments of the data module and of the Trainer.
        constraint: see hardware.parse_constraint; None without.
    """

    model: str
    network: Mapping[str, Any]
    arguments: Mapping[str, Any]
    chosen: Mapping[str, Any]
    first_last: str
    data_name: str
    data: Mapping[str, Any]
    trainer: Mapping[str, Any]
    constraint: str | None = None


def make_terms(
    model: str,
    data_name: str,
    first_last: str = "8bit",
    epochs: int | None = None,
    constraint: str | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Terms:
    """The terms of a data set with what the command line changes.

    Args:
        settings: dotted names (`model.learning_rate`, `data.root`, `trainer.precision`) -> values.

    Raises:
        UserError: an unknown data set or option.
    """
    if data_name not in DATA_SETS:
        raise UserError(f"unknown data set {data_name!r}: choose one of {', '.join(DATA_SETS)}")
    sections = shared_terms(data_name)
    if epochs is not None:
        sections["trainer"]["max_epochs"] = epochs
    chosen: dict[str, Any] = {}
    network: dict[str, Any] = {}
    for name, value in (settings or {}).items():
        section, _, key = name.partition(".")
        if not key:
            raise UserError(f"unknown option --{name}")
        if section == "model" and key in ("model", "seed"):
            raise UserError(f"--{name} is said by --{'model' if key == 'model' else 'seeds'}")
        if section == "model" and key in NETWORK:
            network[key] = value
        elif section == "model":
            chosen[key] = value
        else:
            sections[section][key] = value
    network.pop("weights", None)  # where they are is no term; that they are equal is
    return Terms(
        model=model,
        network=network,
        arguments=sections["model"] | chosen,
        chosen=chosen,
        first_last=first_last,
        data_name=data_name,
        data=sections["data"],
        trainer=sections["trainer"],
        constraint=constraint,
    )


# -- sizes ------------------------------------------------------------------------------------------------------------


def uniform_bytes(layers: Sequence[Layer], bits: int, first_last: str) -> int:
    """Bytes of all weights at one width, the first and the last layer by the rule; float ones take 4 bytes each."""
    ends = FIRST_LAST[first_last] or bits
    widths = [ends if i in (0, len(layers) - 1) else bits for i in range(len(layers))]
    return sum(packed_bytes(layer.num_weights, width) for layer, width in zip(layers, widths, strict=True))


def size_of_bits(layers: Sequence[Layer], text: str, first_last: str) -> Size:
    """The size of uniform W/A.

    Raises:
        UserError: not of the form W/A.
    """
    weights, _, activations = text.partition("/")
    if not (weights.isdecimal() and activations.isdecimal()):
        raise UserError(f"--bits takes W/A such as 2/2 or 1/32, got {text!r}")
    w, a = int(weights), int(activations)
    if not 1 <= w <= 8 or (not 1 <= a <= 8 and a != FLOAT_BITS):
        raise UserError(f"--bits {text}: weights have 1 to 8 bits, activations 1 to 8 or {FLOAT_BITS} (float)")
    num_bytes = uniform_bytes(layers, w, first_last)
    return Size(f"{w}/{a}", w, a, num_bytes, _float_bytes(layers) / num_bytes)


def size_of_wcr(layers: Sequence[Layer], wcr: float, activation_bits: int, first_last: str) -> Size:
    """The size of a compression rate, with the uniform width that has it within 2 %, if there is one.

    Raises:
        UserError: no rate.
    """
    if not wcr > 0:
        raise UserError(f"--target-wcr must be a positive rate, got {wcr:g}")
    num_bytes = _float_bytes(layers) / wcr
    widths = range(1, 9)
    nearest = min(widths, key=lambda w: abs(uniform_bytes(layers, w, first_last) - num_bytes))
    fits = size_difference(uniform_bytes(layers, nearest, first_last), num_bytes) <= MAX_SIZE_DIFFERENCE
    return Size(f"WCR {wcr:g}, A{activation_bits}", nearest if fits else None, activation_bits, num_bytes, wcr)


def size_difference(num_bytes: float, reference: float) -> float:
    """|a - b| / b."""
    return abs(num_bytes - reference) / reference


def size_of_settings(layers: Sequence[Layer], model: Mapping[str, Any], first_last: str) -> Size:
    """The group of a row by its settings: its widths, or the uniform width of its target rate.

    Args:
        first_last: of the uniform policy that states the size.
    """
    weights = next((model[name] for name in WEIGHT_WIDTHS if model.get(name)), None)
    activations = model.get("activation_bit_width")
    if activations is None:
        rate = model.get("target_acr")
        activations = max(1, round(FLOAT_BITS / rate)) if rate else FLOAT_BITS
    if weights is None and model.get("target_wcr"):
        size = size_of_wcr(layers, model["target_wcr"], activations, first_last)
        if size.weight_bits is None:
            return size
        weights = size.weight_bits
    if weights is None:
        return Size("no stated size", None, activations, float("nan"), float("nan"))
    num_bytes = uniform_bytes(layers, weights, first_last)
    return Size(f"{weights}/{activations}", weights, activations, num_bytes, _float_bytes(layers) / num_bytes)


def first_last_of(model: Mapping[str, Any]) -> str | None:
    """The rule that a row's settings state; None where the method decides."""
    if "first_last" in model:
        return model["first_last"]
    if "first_last_weight_bit_width" in model:
        return "8bit" if model["first_last_weight_bit_width"] == 8 else "same"
    return None


def _float_bytes(layers: Iterable[Layer]) -> int:
    return 4 * sum(layer.num_weights for layer in layers)


# -- settings of a method ---------------------------------------------------------------------------------------------


def candidates() -> list[str]:
    """Folders of methods that can be compared, by name alone; the template and float training are left out."""
    names = sorted(path.parent.name for path in METHODS.glob("*/__init__.py"))
    return [name for name in names if not name.startswith("_") and name != FLOAT_METHOD]


@cache
def arguments_of(folder: str) -> dict[str, Any]:
    """Arguments of a method, inherited ones too, with their defaults."""
    return checked_arguments(method_class(folder), "model", {})


def own_settings(folder: str, data_name: str) -> tuple[str, dict[str, Any]]:
    """(file, what it says to the method): its equal-terms configuration for the data set, else that for the digits."""
    for name in (f"{data_name}_equal_terms.yaml", "digits.yaml"):
        if (METHODS / folder / "configs" / name).is_file():
            section = read_config(folder, name)["model"]
            return name, {key: value for key, value in section.items() if key not in NETWORK}
    return "defaults", {}


def run_of(folder: str, terms: Terms, size: Size, weights: str | None, chosen: bool = True) -> dict[str, Any]:
    """The `run` of a row (reproduce.tables) that puts a method on these terms.

    Args:
        weights: file with the start weights.
        chosen: with the arguments from the command line.

    Raises:
        NotOffered: the method has no argument for the widths, or not these.
    """
    known = arguments_of(folder)
    arguments = terms.arguments if chosen else {k: v for k, v in terms.arguments.items() if k not in terms.chosen}
    said = _width_arguments(known, size, terms.first_last) | dict(arguments)
    if terms.constraint is not None and "constraint" in known:
        said |= {"constraint": terms.constraint} | ({"target_wcr": None} if "target_wcr" in known else {})
    own = own_settings(folder, terms.data_name)[1]
    model = own | {name: value for name, value in said.items() if name in known}
    place = {} if weights is None else {"weights": weights}
    return {
        "method": folder,
        "config": {
            "model": {"model": terms.model, **terms.network, **place, **model},
            "data": {"class_path": f"data.{DATA_SETS[terms.data_name].__name__}", "init_args": dict(terms.data)},
            "trainer": dict(terms.trainer),
        },
    }


def _width_arguments(known: Mapping[str, Any], size: Size, first_last: str) -> dict[str, Any]:
    """The size, in every form that a method may take it."""
    said: dict[str, Any] = {"first_last": first_last, "target_wcr": size.wcr}
    by_width = [name for name in WEIGHT_WIDTHS if name in known]
    if not by_width and "target_wcr" not in known:
        raise NotOffered("it has no argument weight_bit_width or target_wcr")
    if by_width and size.weight_bits is None and "target_wcr" not in known:
        raise NotOffered("no width gives all its weights this size within 2 %")
    if by_width and size.weight_bits is not None:
        said[by_width[0]] = size.weight_bits
    if "first_last_weight_bit_width" in known and "first_last" not in known:
        if first_last == "float":
            raise NotOffered("it keeps no layer in float (--first-last float)")
        said["first_last_weight_bit_width"] = FIRST_LAST[first_last]
    a = size.activation_bits
    if "activation_bit_width" in known:
        said["activation_bit_width"] = a
    elif "target_acr" in known and a == FLOAT_BITS:
        raise NotOffered("it quantizes activations too, to 8 bits at most")
    elif "target_acr" not in known and a != FLOAT_BITS:
        raise NotOffered(f"it has no argument activation_bit_width or target_acr: W/{FLOAT_BITS} is offered")
    if "target_acr" in known and a != FLOAT_BITS:
        said["target_acr"] = FLOAT_BITS / a
    return said


def shared_names(terms: Terms) -> set[str]:
    """Arguments that the terms set wherever a method has them."""
    widths = {*WEIGHT_WIDTHS, "activation_bit_width", "target_wcr", "target_acr", "constraint"}
    return {*terms.arguments, *widths, "first_last", "first_last_weight_bit_width", *NETWORK}
