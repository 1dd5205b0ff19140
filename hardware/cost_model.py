"""The cost-model contract: (layer table, bit-widths) -> a number with a unit, per layer and in total."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from common.bit_policy import FLOAT, BitPolicy, Bits, GroupBits, LayerBits
from common.errors import UserError
from common.graph import Layer
from hardware.bit_serial import BitSerialMachine
from hardware.spatial import SpatialMachine

MAX_WIDTH = 8  # widths of a cost table: 1..8


class Unmeasured(UserError):
    """A pair of widths for which a measured table has no cost."""


class Constant(NamedTuple):
    """A number that a cost model rests on.

    Attributes:
        status: "published" (paper, data sheet, public configuration), "decoded" (read out of a published table),
            "fitted" (to printed results), "chosen" (ours) or "measured" (a table of the user's).
    """

    name: str
    value: float | str
    unit: str
    status: str
    source: str


LayerCost = Callable[[Layer, "int | tuple[int, ...]", int], float]


@dataclass(frozen=True)
class CostModel:
    """One quantity on one target.

    Attributes:
        name: as commands take it.
        quantity: "latency", "energy", "size", "bitops", ...
        unit: of every cost.
        description: one line: what is modelled, for how many images.
        function: (layer, weight bits, activation bits) -> cost; weight bits as a tuple, one per output channel, where
            `kernel_wise`.
        lowest, highest: bit-widths that it takes.
        counts_first, counts_last: whether the first and the last layer are in the total.
        kernel_wise: whether output channels may have weights of different widths.
        slow: worth a cache on disk.
        constants: what it rests on.
        machine: of hardware.roofline; None where there is no roofline.
    """

    name: str
    quantity: str
    unit: str
    description: str
    function: LayerCost
    lowest: int = 1
    highest: int = MAX_WIDTH
    counts_first: bool = True
    counts_last: bool = True
    kernel_wise: bool = False
    slow: bool = False
    constants: tuple[Constant, ...] = ()
    machine: BitSerialMachine | SpatialMachine | None = None

    def counted(self, layers: Sequence[Layer]) -> tuple[bool, ...]:
        """Which layers are in the total."""
        last = len(layers) - 1
        return tuple((self.counts_first or i > 0) and (self.counts_last or i < last) for i in range(len(layers)))

    def layer_cost(self, layer: Layer, weight: Bits, activation: Bits) -> float:
        """Cost of one layer in `unit`, whether it is counted or not.

        Raises:
            UserError: a width outside the model's range, a layer or a grouping that it has no model of.
        """
        widths = self._weight_widths(layer, weight)
        width = max(activation.bits) if isinstance(activation, GroupBits) else activation
        if not self.lowest <= width <= self.highest:
            tensors = list(dict.fromkeys(read.names[-1] for read in layer.reads))
            sources = ", ".join(tensors[:4]) + (", ..." if len(tensors) > 4 else "")
            unnamed = f"names neither '{layer.name}.input' nor all of its sources ({sources})"
            raise UserError(f"layer {layer.name!r} reads {_shown(width, unnamed)}; {self._range()}")
        return float(self.function(layer, widths, width))

    def network_cost(self, layers: Sequence[Layer], widths: Sequence[LayerBits]) -> NetworkCost:
        """Costs of all layers; those that are not counted cost 0.

        Raises:
            UserError: see layer_cost.
        """
        counted = self.counted(layers)
        costs = tuple(
            self.layer_cost(layer, bits.weight, bits.activation) if counts else 0.0
            for layer, bits, counts in zip(layers, widths, counted, strict=True)
        )
        return NetworkCost(tuple(layer.name for layer in layers), costs, counted, self.unit)

    def policy_cost(self, layers: Sequence[Layer], policy: BitPolicy) -> NetworkCost:
        """Costs under a bit policy.

        Raises:
            UserError: see layer_cost.
        """
        return self.network_cost(layers, [policy.layer_bits(layer) for layer in layers])

    def _weight_widths(self, layer: Layer, weight: Bits) -> int | tuple[int, ...]:
        if isinstance(weight, GroupBits):
            channels = layer.out_channels if weight.axis == "out" else layer.in_channels // layer.groups
            if sum(weight.groups) != channels:
                raise UserError(
                    f"layer {layer.name!r}: the policy groups {sum(weight.groups)} {weight.axis}put channels of its "
                    f"weights; they have {channels}"
                )
            if len(set(weight.bits)) == 1:
                return self._weight_widths(layer, weight.bits[0])
            if not self.kernel_wise or weight.axis != "out":
                raise UserError(
                    f"layer {layer.name!r}: {self.name} has no model of weights whose width varies along their "
                    f"{weight.axis}put channels"
                )
            if max(weight.bits) > self.highest:
                raise UserError(f"layer {layer.name!r}: weights at {max(weight.bits)} bits; {self._range()}")
            return tuple(b for n, b in zip(weight.groups, weight.bits, strict=True) for _ in range(n))
        if not self.lowest <= weight <= self.highest:
            unnamed = f"does not name '{layer.name}.weight'"
            raise UserError(f"layer {layer.name!r} has weights at {_shown(weight, unnamed)}; {self._range()}")
        return weight

    def _range(self) -> str:
        return f"{self.name} takes {self.lowest} to {self.highest}"


@dataclass(frozen=True)
class NetworkCost:
    """Cost per layer.

    Attributes:
        names: of the layers.
        costs: in `unit`; 0 for layers that are not counted.
        counted: which layers are in the total.
    """

    names: tuple[str, ...]
    costs: tuple[float, ...]
    counted: tuple[bool, ...]
    unit: str

    @property
    def total(self) -> float:
        return sum(self.costs)


def uniform_widths(
    layers: Sequence[Layer], weight: int, activation: int, first_last: int | None = None
) -> list[LayerBits]:
    """The same widths in every layer; `first_last` for weights and inputs of the first and the last one."""
    body = LayerBits(weight, activation)
    ends = body if first_last is None else LayerBits(first_last, first_last)
    return [ends if i in (0, len(layers) - 1) else body for i in range(len(layers))]


def _shown(width: int, reason: str) -> str:
    return f"{width} bits (float: the policy {reason})" if width == FLOAT else f"{width} bits"
