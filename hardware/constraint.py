"""Budgets as text: "latency@bismo-edge<=50ms", "energy@bitfusion<=10mJ", "size<=70KiB", "bitops<=1.2G"."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from common.errors import UserError
from hardware.cost_model import CostModel
from hardware.targets import cost_model, models_of

_FORM = re.compile(r"\s*([a-z]+)\s*(?:@\s*(.+?))?\s*<=\s*([0-9.]+(?:[eE][-+]?[0-9]+)?)\s*([A-Za-z]*)\s*")
# Unit -> factor to the base unit of its quantity.
_UNITS = {
    "latency": {"s": 1.0, "ms": 1e-3, "us": 1e-6},
    "energy": {"J": 1.0, "mJ": 1e-3, "uJ": 1e-6, "nJ": 1e-9},
    "size": {"B": 1.0, "KB": 1e3, "MB": 1e6, "KiB": 2.0**10, "MiB": 2.0**20},
    "bitops": {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12},
}


@dataclass(frozen=True)
class Constraint:
    """An upper bound for the cost of a network.

    Attributes:
        text: as given.
        model: what it bounds.
        limit: in the model's unit.
    """

    text: str
    model: CostModel
    limit: float


def parse_constraint(text: str) -> Constraint:
    """`QUANTITY[@TARGET]<=NUMBER UNIT`; TARGET is a name of `python -m hardware --list` or table:FILE.

    KB and MB are powers of ten, KiB and MiB of two.

    Raises:
        UserError: not of this form; unknown quantity, target or unit; a limit that is no positive number.
    """
    match = _FORM.fullmatch(text)
    if match is None:
        raise UserError(f"constraint {text!r} is not of the form latency@bismo-edge<=50ms")
    quantity, target, number, unit = match.groups()
    if quantity not in _UNITS:
        raise UserError(f"constraint {text!r}: unknown quantity {quantity!r}; choose one of {', '.join(_UNITS)}")
    model = _model(text, quantity, target)
    units = _UNITS[quantity]
    if unit not in units:
        known = ", ".join(name or "none" for name in units)
        raise UserError(f"constraint {text!r}: unknown unit {unit!r} of {quantity}; choose one of {known}")
    try:
        limit = float(number) * units[unit] / units[model.unit]
    except ValueError:
        raise UserError(f"constraint {text!r}: {number!r} is no number") from None
    if not 0 < limit < math.inf:
        raise UserError(f"constraint {text!r}: the limit must be positive and finite")
    return Constraint(text.strip(), model, limit)


def _model(text: str, quantity: str, target: str | None) -> CostModel:
    if target is None:
        if len(models_of(quantity)) == 1:
            return cost_model(models_of(quantity)[0])
        raise UserError(f"constraint {text!r} names no target: {quantity}@{' or '.join(models_of(quantity))}")
    # latency and energy of one machine are two models: `energy@bitfusion` is bitfusion-energy
    named = f"{target}-{quantity}" if f"{target}-{quantity}" in models_of(quantity) else target
    model = cost_model(named)
    if model.quantity != quantity:
        raise UserError(
            f"constraint {text!r}: {target} gives {model.quantity}, not {quantity}; {quantity} is given by "
            f"{', '.join(models_of(quantity))}"
        )
    return model
