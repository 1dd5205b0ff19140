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
from hardware.bit_serial import BitSerialMachine
from hardware.cost_model import CostModel, NetworkCost
from hardware.network import Network
from hardware.roofline import RooflinePoint, roofline
from hardware.spatial import SpatialMachine

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
        rows = 2 if model.machine is not None and counted else 1
        figure = Figure(figsize=(10, 4.2 * rows), layout="constrained")
        axes = figure.subplots(rows, 1, squeeze=False)[:, 0]
        _bars(axes[0], network.layers, model, widths, cost, counted)
        if rows == 2:
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
        roofline(model.machine, layer, max(1, round(_mean(bits.weight))), round(_mean(bits.activation)))
        for layer, bits in zip(layers, widths, strict=True)
    ]
    for layer, point in zip(layers, points, strict=True):
        axes.plot(
            point.intensity, point.attainable / 1e9, BOUND_MARKERS[point.bound], color=KIND_COLORS[layer.kind], ms=6
        )
    slope = bandwidth(model.machine) / 1e9  # [GMAC/s] per [MAC/bit]
    peaks = sorted({point.peak / 1e9 for point in points})
    left, right = 0.7 * min(point.intensity for point in points), 1.4 * max(point.intensity for point in points)
    ridge = peaks[-1] / slope
    start = min(left, ridge / 2)
    axes.plot([start, ridge], [start * slope, peaks[-1]], color="#222222", lw=0.8)
    for peak in peaks:
        axes.plot([peak / slope, max(right, 1.4 * ridge)], [peak, peak], color="#222222", lw=0.8, ls="--", alpha=0.5)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("intensity: MACs per bit moved")
    axes.set_ylabel("attainable [GMAC/s]")
    axes.legend(handles=_handles(points, model.machine), loc="lower right")


def bandwidth(machine: BitSerialMachine | SpatialMachine) -> float:
    """Bits per second to and from memory, over all ports at once: the slanted roof is intensity x bandwidth.

    A layer that keeps one of two ports busy, or fetches rows that it pads, stays under that roof.
    """
    if isinstance(machine, BitSerialMachine):
        activations = min(machine.activation_row_cycles, machine.pointwise_row_cycles or machine.activation_row_cycles)
        bits_per_cycle = machine.depth / activations + machine.depth / machine.weight_row_cycles
    else:
        bits_per_cycle = machine.memory_bits
    return bits_per_cycle * machine.clock_mhz * 1e6


def _handles(points: Sequence[RooflinePoint], machine: BitSerialMachine | SpatialMachine) -> list[Line2D]:
    bounds = [bound for bound in BOUND_MARKERS if any(point.bound == bound for point in points)]
    line = {"color": "#222222", "lw": 0.8}
    return [
        *(
            Line2D([], [], marker=BOUND_MARKERS[bound], label=f"bound by {bound}", ls="", color="#555555")
            for bound in bounds
        ),
        Line2D([], [], ls="--", alpha=0.5, label="peak at the layers' widths", **line),
        Line2D([], [], label=f"intensity x bandwidth ({bandwidth(machine) / 1e9:.3g} Gbit/s)", **line),
    ]


def _mean(bits: Bits) -> float:
    return bits.mean if isinstance(bits, GroupBits) else float(bits)
