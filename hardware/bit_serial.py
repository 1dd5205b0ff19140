"""Cycles on a bit-serial matrix engine of the BISMO kind (HAQ, arXiv 1811.08886, table 3).

D x D dot-product units, each `depth` bits wide. A layer is a matrix product [rows] x [K] x [columns], rows = output
positions of every image of the batch, K = weights per output channel (im2col), columns = output channels, run once per
pair of bit planes. D rows times D columns times one slice of K take w a cycles; rows of K bits are fetched meanwhile,
a planes of activations and w planes of weights.

The formulas were decoded from the table of MobileNet-V2's cycles in the authors' code release (mit-han-lab/haq, commit
8228d12): equal in 60 % of its 3392 cells, within 1 % in 98 %, within 7 % in all.

Ours, beyond the published layers: kernels and maps that are not square, dilation (only output positions count), several
calls (their sum), grouped convolutions, linear layers over several positions, a width per output channel.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from common.errors import UserError
from common.graph.layers import Layer

_WORD = 32  # bits: the unit in which an engine with narrow_words fetches rows shorter than `depth`


@dataclass(frozen=True)
class BitSerialMachine:
    """One engine.

    Attributes:
        side: D; the array has D x D dot-product units.
        depth: bits of one unit, and of one fetched row.
        clock_mhz: clock.
        batch: images that run together; cycles count all of them.
        row_buffer: rows times bit planes of activations that stay on chip.
        activation_row_cycles, weight_row_cycles: to fetch one row of `depth` bits.
        pointwise_row_cycles: the same for activations of 1x1 convolutions and linear layers; None: as the others.
        narrow_words: whether a row shorter than `depth` is fetched in words of 32 bits. Rows that several groups share
            (depthwise layers) are fetched whole all the same.
    """

    name: str
    side: int
    depth: int
    clock_mhz: float
    batch: int
    row_buffer: int
    activation_row_cycles: float
    weight_row_cycles: float
    pointwise_row_cycles: float | None = None
    narrow_words: bool = False


BISMO_CLOUD = BitSerialMachine("bismo-cloud", 16, 256, 200, 16, 16384, 1, 1)
BISMO_EDGE = BitSerialMachine("bismo-edge", 8, 256, 200, 1, 8192, 8, 8, narrow_words=True)
BISMO_EDGE_TWO = BitSerialMachine(
    "bismo-edge-two", 8, 256, 200, 1, 8192, 8, 8, pointwise_row_cycles=4, narrow_words=True
)

_RELEASE = "table of MobileNet-V2's cycles in mit-han-lab/haq, commit 8228d12"
_CLOUD = (
    ("side", "units", "decoded", _RELEASE),
    ("depth", "bit", "decoded", _RELEASE),
    ("clock_mhz", "MHz", "published", "BISMO's default; confirmed by HAQ's table 3 to four digits"),
    ("batch", "images", "published", "file name of the " + _RELEASE),
    ("row_buffer", "rows x bit planes", "decoded", _RELEASE + "; 1024 rows a unit are BISMO's default"),
    ("activation_row_cycles", "cycles per row", "decoded", _RELEASE + ": a port of 256 bits"),
    ("weight_row_cycles", "cycles per row", "decoded", _RELEASE + ": a port of 256 bits"),
)
_EDGE = (
    ("side", "units", "chosen", "said of the Zynq-7020 engine; not verified"),
    ("depth", "bit", "chosen", "the largest that fits: 128 of the Zynq-7020's 140 block RAMs by BISMO's formula"),
    ("clock_mhz", "MHz", "published", "BISMO's default"),
    ("batch", "images", "chosen", "said of the Zynq-7020 engine; not verified"),
    ("row_buffer", "rows x bit planes", "published", "BISMO's default: 1024 rows a unit"),
    ("activation_row_cycles", "cycles per row", "fitted", "the eight edge latencies of HAQ's table 3"),
    ("weight_row_cycles", "cycles per row", "fitted", "the same constant as for activations"),
    ("narrow_words", "", "chosen", "words of 32 bits, as one row of 256 bits in 8 cycles suggests"),
)
_EDGE_TWO = (*_EDGE, ("pointwise_row_cycles", "cycles per row", "fitted", "the eight edge latencies of HAQ's table 3"))

# (name, value, unit, "published" | "decoded" | "fitted" | "chosen", source) of each machine, by its name
CONSTANTS: dict[str, tuple[tuple[str, float, str, str, str], ...]] = {
    machine.name: tuple((name, getattr(machine, name), unit, status, source) for name, unit, status, source in rows)
    for machine, rows in ((BISMO_CLOUD, _CLOUD), (BISMO_EDGE, _EDGE), (BISMO_EDGE_TWO, _EDGE_TWO))
}


def latency_ms(machine: BitSerialMachine, num_cycles: float) -> float:
    """Milliseconds for the whole batch."""
    return num_cycles / (machine.clock_mhz * 1e3)


def cycles(
    machine: BitSerialMachine,
    layer: Layer,
    weight_bits: int | Sequence[int],
    activation_bits: int,
    sort_channels: bool = True,
) -> int:
    """Cycles of one layer, all its calls, all images of the batch.

    Two loop orders are costed and the cheaper one counts (comments below). A dense layer with one output position per
    image, a linear layer above all, is one product over the batch, whose weights are fetched once.

    Grouped convolutions: with at least D outputs a group, one product each; with fewer, as many groups as fit into D
    columns share a product with block-diagonal weights (depthwise: ceil(C / D) products with K = D kh kw).

    Args:
        weight_bits: width of all output channels, or of each. The D channels of a column group run in lockstep, at the
            largest width among them; channels of width 0 are pruned and drop out.
        activation_bits: width of the layer's input.
        sort_channels: whether channels are grouped by width, widest first (groups of a grouped convolution by their
            widest channel), and not in their own order. A permutation of channels, free in the layer itself.

    Raises:
        UserError: widths that are no whole numbers, negative, zero for activations, or not one per output channel.
    """
    plan = _plan(machine, layer, weight_bits, activation_bits, sort_channels)
    total = 0.0
    for positions in _positions(layer):
        if plan.is_matrix_vector(positions):
            total += plan.demand(positions).cycles
        else:
            total += sum(count * plan.product_cycles(columns, positions) for columns, count in plan.products.items())
    return math.ceil(total)


def cycles_fast(
    machine: BitSerialMachine,
    layer: Layer,
    weight_bits: int | Sequence[int],
    activation_bits: int,
    sort_channels: bool = True,
) -> float:
    """The plain roofline of `cycles`: the largest of compute, activation fetch and weight fetch, perfectly overlapped.

    Arguments and errors: as `cycles`. 1.6 to 2 % below the printed cloud latencies.
    """
    plan = _plan(machine, layer, weight_bits, activation_bits, sort_channels)
    return sum(plan.demand(positions).cycles for positions in _positions(layer))


@dataclass(frozen=True)
class Demand:
    """What a layer asks of the parts of a machine, over all images of the batch."""

    compute_cycles: float
    activation_cycles: float
    weight_cycles: float
    activation_bits_moved: float
    weight_bits_moved: float

    @property
    def cycles(self) -> float:
        return max(self.compute_cycles, self.activation_cycles, self.weight_cycles)


def demands(
    machine: BitSerialMachine, layer: Layer, weight_bits: int | Sequence[int], activation_bits: int
) -> tuple[Demand, ...]:
    """The arguments of the maximum in `cycles_fast`, of each call. Arguments and errors: as `cycles`."""
    plan = _plan(machine, layer, weight_bits, activation_bits, sort_channels=True)
    return tuple(plan.demand(positions) for positions in _positions(layer))


_Runs = tuple[tuple[int, int], ...]  # (width, how many column groups or channels in a row have it)


@dataclass(frozen=True)
class _Plan:
    """A layer as matrix products on one machine.

    Attributes:
        depth: K, the length of a row in elements; slices: how many rows of the machine hold it.
        products: the column groups of a product -> how many products have such groups.
        channels: pruned ones left out.
        is_dense: whether it is one product with all channels.
        row_bits: bits fetched for one row of one bit plane and one slice.
        row_cycles, weight_row_cycles: to fetch them.
    """

    machine: BitSerialMachine
    activation_bits: int
    depth: int
    slices: int
    products: Mapping[_Runs, int]
    channels: _Runs
    is_dense: bool
    row_bits: int
    row_cycles: float
    weight_row_cycles: float

    def is_matrix_vector(self, positions: int) -> bool:
        return self.is_dense and positions == 1

    def product_cycles(self, columns: _Runs, positions: int) -> float:
        """One product, all images of the batch. Where widths differ, what a pipeline fills or drains has the widest."""
        side, a, r, rw = self.machine.side, self.activation_bits, self.row_cycles, self.weight_row_cycles
        tiles, rest = _ceil(positions, side), positions % side
        blocks = _ceil(positions * a, self.machine.row_buffer)
        first, widest = columns[0][0] * a, max(width for width, _ in columns)
        compute = sum(width * a * groups for width, groups in columns)  # one row tile, all columns
        fetch, fetch_last = side * r * a, (rest or side) * r * a  # a row tile

        # order 1: the fetch of a row tile hides behind the first column group only; weights stream once per image
        rows = (tiles - 1) * max(fetch, first) + max(fetch_last, first) + tiles * (compute - first)
        weights = sum(n * max(side * rw * width, tiles * width * a) for width, n in columns) + (tiles - 1) * widest * a
        # order 2: a block of rows stays on chip; each weight tile hides behind one row tile of the block
        block_weights = sum(
            n * ((tiles - blocks) * width * a + blocks * max(side * rw * width, width * a)) for width, n in columns
        )
        if rest:
            block_rows = fetch + max(0, tiles - 2) * max(fetch, compute) + compute - a
            block_rows += max(fetch_last, compute) if tiles > 1 else 0
        else:
            block_rows = positions * r * a + blocks * (compute - a)
        steady = min(max(rows, weights), max(block_weights, block_rows))
        return self.slices * self.machine.batch * steady + blocks * side * (widest - 1) * r

    def demand(self, positions: int) -> Demand:
        """One call on that many output positions per image."""
        machine, a = self.machine, self.activation_bits
        activation_rows = sum(self.products.values()) * machine.batch * positions * self.slices * a
        column_groups = sum(
            count * width * groups for columns, count in self.products.items() for width, groups in columns
        )
        if self.is_matrix_vector(positions):
            row_tiles = _ceil(machine.batch, machine.side)  # the images of the batch are the rows
            planes = range(max((width for width, _ in self.channels), default=0))
            channels = [sum(n for width, n in self.channels if width > plane) for plane in planes]
            weight_rows = sum(_ceil(self.depth * n, machine.depth) for n in channels)  # fetched once, without padding
            weight_row_bits, weight_row_cycles = machine.depth, machine.weight_row_cycles
        else:
            row_tiles = machine.batch * _ceil(positions, machine.side)
            weight_rows = machine.batch * self.slices * sum(width * n for width, n in self.channels)
            weight_row_bits, weight_row_cycles = self.row_bits, self.weight_row_cycles
        return Demand(
            compute_cycles=self.slices * row_tiles * a * column_groups,
            activation_cycles=activation_rows * self.row_cycles,
            weight_cycles=weight_rows * weight_row_cycles,
            activation_bits_moved=activation_rows * self.row_bits,
            weight_bits_moved=weight_rows * weight_row_bits,
        )


def _plan(
    machine: BitSerialMachine,
    layer: Layer,
    weight_bits: int | Sequence[int],
    activation_bits: int,
    sort_channels: bool,
) -> _Plan:
    if activation_bits != int(activation_bits) or activation_bits < 1:
        raise UserError(f"activation_bits must be a whole number of at least 1, got {activation_bits!r}")
    outputs = layer.out_channels // layer.groups  # per group
    packed = max(1, min(machine.side // outputs, layer.groups))  # groups that share one product
    depth = packed * layer.num_weights // layer.out_channels
    row_bits, row_cycles = machine.depth, machine.activation_row_cycles
    if layer.kind in ("pointwise", "linear") and machine.pointwise_row_cycles is not None:
        row_cycles = machine.pointwise_row_cycles
    if machine.narrow_words and packed == 1:
        row_bits = min(machine.depth, _ceil(depth, _WORD) * _WORD)
    groups = _widths(layer, weight_bits, sort_channels)
    return _Plan(
        machine=machine,
        activation_bits=int(activation_bits),
        depth=depth,
        slices=_ceil(depth, machine.depth),
        products=_products(groups, packed, machine.side),
        channels=tuple(Counter(groups[groups > 0].tolist()).items()),
        is_dense=layer.groups == 1,
        row_bits=row_bits,
        row_cycles=row_cycles * row_bits / machine.depth,
        weight_row_cycles=machine.weight_row_cycles * row_bits / machine.depth,
    )


def _widths(layer: Layer, weight_bits: int | Sequence[int], sort_channels: bool) -> np.ndarray:
    """(groups, channels of a group), in the order in which they run; groups of pruned channels are left out."""
    widths = np.asarray(weight_bits)
    if widths.dtype.kind not in "iu" or widths.min(initial=0) < 0:
        raise UserError(f"layer {layer.name!r}: weight_bits must be whole numbers of at least 0, got {weight_bits!r}")
    if widths.shape not in ((), (layer.out_channels,)):
        raise UserError(
            f"layer {layer.name!r}: weight_bits must be one width or one for each of {layer.out_channels} output "
            f"channels, got shape {widths.shape}"
        )
    groups = np.broadcast_to(widths, layer.out_channels).reshape(layer.groups, -1)
    groups = groups[groups.any(axis=1)]
    if sort_channels and widths.ndim:
        groups = -np.sort(-groups, axis=1)
        groups = groups[np.argsort(-groups[:, 0])]
    return groups


def _products(groups: np.ndarray, packed: int, side: int) -> Mapping[_Runs, int]:
    """Column groups are as wide as their widest channel; `packed` groups that share a product are one of them."""
    if packed == 1:
        return Counter(_columns(group[group > 0], side) for group in groups)
    widest = groups.max(axis=1)
    widest = np.pad(widest, (0, -len(widest) % packed)).reshape(-1, packed).max(axis=1)
    return {((width, 1),): count for width, count in Counter(widest.tolist()).items()}


def _columns(channels: np.ndarray, side: int) -> _Runs:
    widest = np.pad(channels, (0, -len(channels) % side)).reshape(-1, side).max(axis=1)
    return tuple((width, len(list(run))) for width, run in groupby(widest.tolist()))


def _positions(layer: Layer) -> tuple[int, ...]:
    """Output positions per image, of each call."""
    return tuple(math.prod(s[:-1] if layer.kind == "linear" else s[1:]) for s in layer.output_shapes)


def _ceil(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)
