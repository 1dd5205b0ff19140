"""A picture of a network's cost: bars per layer, and the roofline of the target where it has one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from common.bit_policy import Bits, GroupBits, LayerBits
from common.errors import UserError
from common.graph import Layer
from hardware.cost_model import CostModel, NetworkCost
from hardware.network import Network
from hardware.roofline import RooflinePoint, roofline

# Okabe and Ito's colours, which colour-blind readers can tell apart
KIND_COLORS = {"conv": "#0072B2", "depthwise": "#009E73", "pointwise": "#E69F00", "linear": "#CC79A7"}
BOUND_MARKERS = {"compute": "o", "activation": "^", "weight": "s", "memory": "^"}
_STYLE = {"font.size": 10, "axes.grid": True, "axes.axisbelow": True, "grid.alpha": 0.3, "legend.frameon": False}


def plot_cost(
    path: str | Path, network: Network, model: CostModel, widths: Sequence[LayerBits], cost: NetworkCost
) -> None:
    """Write a PNG.

    Raises:
        UserError: the file cannot be written.
    """
    counted = [i for i, counts in enumerate(cost.counted) if counts]
    with matplotlib.rc_context(_STYLE):
        rows = 2 if model.machine is not None else 1
        figure = Figure(figsize=(10, 4.2 * rows), layout="constrained")
        axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
        _bars(axes[0], network.layers, model, widths, cost, counted)
        if model.machine is not None:
            _roofline(axes[1], [network.layers[i] for i in counted], model, [widths[i] for i in counted])
        figure.suptitle(f"{network.model} on {model.name}: {cost.total:.6g} {model.unit}".strip())
        try:
            figure.savefig(path, dpi=130, format="png")
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None


def _bars(
    axes: Axes,
    layers: Sequence[Layer],
    model: CostModel,
    widths: Sequence[LayerBits],
    cost: NetworkCost,
    counted: Sequence[int],
) -> None:
    x = np.arange(len(counted))
    axes.bar(x, [cost.costs[i] for i in counted], color=[KIND_COLORS[layers[i].kind] for i in counted], width=0.8)
    axes.set_ylabel(f"{model.quantity} [{model.unit}]" if model.unit else model.quantity)
    few = len(counted) <= 60
    labels = [f"{layers[i].name} {_mean(widths[i].weight):.3g}/{_mean(widths[i].activation):.3g}" for i in counted]
    axes.set_xticks(x if few else [], labels if few else [], rotation=90, fontsize=7)
    axes.set_xlabel("layers in execution order (weight / input bits)")
    axes.margins(x=0.01)
    kinds = [kind for kind in KIND_COLORS if any(layers[i].kind == kind for i in counted)]
    axes.legend(handles=[Patch(color=KIND_COLORS[kind], label=kind) for kind in kinds])


def _roofline(axes: Axes, layers: Sequence[Layer], model: CostModel, widths: Sequence[LayerBits]) -> None:
    assert model.machine is not None
    points = [
        roofline(model.machine, layer, round(_mean(bits.weight)) or 1, round(_mean(bits.activation)))
        for layer, bits in zip(layers, widths, strict=True)
    ]
    for layer, point in zip(layers, points, strict=True):
        axes.plot(
            point.intensity, point.attainable / 1e9, BOUND_MARKERS[point.bound], color=KIND_COLORS[layer.kind], ms=6
        )
    for peak in sorted({point.peak for point in points}):
        axes.axhline(peak / 1e9, color="#222222", lw=0.8, ls="--")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("intensity: MACs per bit moved")
    axes.set_ylabel("attainable [GMAC/s]")
    axes.legend(handles=_bound_handles(points), title="bound by", loc="lower right")


def _bound_handles(points: Sequence[RooflinePoint]) -> list[Line2D]:
    bounds = [bound for bound in BOUND_MARKERS if any(point.bound == bound for point in points)]
    style = {"ls": "", "color": "#555555"}
    peak = Line2D([], [], color="#222222", lw=0.8, ls="--", label="peak at the layers' widths")
    return [*(Line2D([], [], marker=BOUND_MARKERS[bound], label=bound, **style) for bound in bounds), peak]


def _mean(bits: Bits) -> float:
    return bits.mean if isinstance(bits, GroupBits) else float(bits)
