"""A user's own cost table, measured on a real device, as one more cost model.

A CSV file with the header `layer,weight_bits,activation_bits,cost` and one line per measurement, after comment lines
that may state `# quantity: latency` (default) and `# unit: ms` (default):

    # unit: ms
    layer,weight_bits,activation_bits,cost
    features.0.0,8,8,0.21
    features.1.conv.0.0,4,8,0.13

Layers are module paths. A pair of widths that was not measured is refused when it is asked for, never guessed.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path

from common.errors import UserError
from common.graph import Layer
from hardware.cost_model import MAX_WIDTH, Constant, CostModel, Unmeasured

COLUMNS = ("layer", "weight_bits", "activation_bits", "cost")
UNITS = {"latency": ("s", "ms", "us"), "energy": ("J", "mJ", "uJ", "nJ")}


def load_measured(path: str | Path) -> CostModel:
    """The cost model of a measured table.

    Raises:
        UserError: no such file, another header, a line that is no measurement, a unit that does not fit.
    """
    settings, measured = _read(Path(path))
    quantity, unit = settings.get("quantity", "latency"), settings.get("unit", "ms")
    if unit not in UNITS.get(quantity, ()):
        raise UserError(f"{path}: expected quantity latency or energy with a unit of it, got {quantity} in {unit!r}")

    def cost(layer: Layer, weight_bits: int | tuple[int, ...], activation_bits: int) -> float:
        if layer.name not in names:
            raise UserError(f"{path} has no measurement of layer {layer.name!r}")
        found = measured.get((layer.name, weight_bits, activation_bits))
        if found is None:
            widths = f"{weight_bits}/{activation_bits} bits"
            raise Unmeasured(f"{path} has no measurement of layer {layer.name!r} at {widths}")
        return found

    names = {name for name, _, _ in measured}
    return CostModel(
        name=f"table:{path}",
        quantity=quantity,
        unit=unit,
        description=f"measured, {len(measured)} pairs of widths of {len(names)} layers",
        function=cost,
        constants=(Constant("measurements", len(measured), "", "measured", str(path)),),
    )


def _read(path: Path) -> tuple[dict[str, str], dict[tuple[str, int, int], float]]:
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write a byte-order mark
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read {path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    lines = [(number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    comments = [line.lstrip("# ").partition(":") for _, line in lines if line.startswith("#")]
    settings = {key.strip(): value.strip() for key, colon, value in comments if colon}
    rows = [(number, next(csv.reader([line]))) for number, line in lines if not line.startswith("#")]
    if not rows or tuple(cell.strip() for cell in rows[0][1]) != COLUMNS:
        raise UserError(f"{path}: expected the header {','.join(COLUMNS)}")
    measured: dict[tuple[str, int, int], float] = {}
    for number, row in rows[1:]:
        try:
            layer, *widths, cost = (cell.strip() for cell in row)
            weight_bits, activation_bits = (int(width) for width in widths)
            value = float(cost)
        except ValueError:
            raise UserError(f"{path}, line {number}: expected {','.join(COLUMNS)}, got {','.join(row)!r}") from None
        if not (0 < weight_bits <= MAX_WIDTH and 0 < activation_bits <= MAX_WIDTH and 0 <= value < math.inf):
            raise UserError(f"{path}, line {number}: widths must lie in 1..{MAX_WIDTH}, the cost must be 0 or more")
        if (layer, weight_bits, activation_bits) in measured:
            raise UserError(f"{path}, line {number}: layer {layer!r} is there twice at these widths")
        measured[layer, weight_bits, activation_bits] = value
    return settings, measured
