"""Cycles and energy on a spatial bit-composable array of the BitFusion kind (HAQ, arXiv 1811.08886, tables 4 and 5).

8 x 8 fusion units of 16 bricks, each of which multiplies 2 x 2 bits: narrow operands let one unit compute several
products at once. Machine and tile search follow the public simulator (hsharma35/bitfusion, commit 04ec1c8); one image,
all layers at the width of the row, the first convolution and the classifier too.

Depthwise layers run as HAQ's numbers suggest: one shared input plane of unfolded windows, all output channels from it.

Ours, beyond the published layers: kernels and maps that are not square, dilation (the input side of a tile is that of
the dilated kernel), several calls (their sum), linear layers over several positions (as 1x1 convolutions).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import permutations, product
from typing import Any

import numpy as np

from common.errors import UserError
from common.graph.layers import Layer

_WIDEST = 8  # bits of one unit's operands
_WIDTHS = range(1, _WIDEST + 1)
_NARROWEST = 2  # bits of one brick's operands
_HALF_KIB = 1024 * 8 // 2  # bits of the working half of a buffer, per KiB of its size
_NO_TILE = np.iinfo(np.int64).max


@dataclass(frozen=True)
class SpatialMachine:
    """One array.

    Attributes:
        side: units per row and column: input channels side by side, output channels side by side.
        clock_mhz: clock.
        memory_bits: bits per cycle to and from memory.
        activation_buffer_kib, weight_buffer_kib, output_buffer_kib: half of each holds the tile at work, half the next.
        output_bits: of a partial sum.
        nj_per_cycle, nj_per_activation_bit: energy of a cycle, and of a bit of the maps that layers read and write.
    """

    name: str
    side: int
    clock_mhz: float
    memory_bits: int
    activation_buffer_kib: int
    weight_buffer_kib: int
    output_buffer_kib: int
    output_bits: int
    nj_per_cycle: float
    nj_per_activation_bit: float


BITFUSION = SpatialMachine("bitfusion", 8, 500, 128, 64, 256, 16, 32, 1.647, 0.1783)

_SIMULATOR = "default configuration of hsharma35/bitfusion, commit 04ec1c8"
_LATENCY = (
    ("side", "units", "published", _SIMULATOR),
    ("clock_mhz", "MHz", "published", _SIMULATOR),
    ("memory_bits", "bit per cycle", "published", _SIMULATOR),
    ("activation_buffer_kib", "KiB", "published", _SIMULATOR),
    ("weight_buffer_kib", "KiB", "published", _SIMULATOR),
    ("output_buffer_kib", "KiB", "published", _SIMULATOR),
    ("output_bits", "bit", "published", _SIMULATOR),
)
_ENERGY = (
    ("nj_per_cycle", "nJ per cycle", "fitted", "the four energies of HAQ's table 5"),
    ("nj_per_activation_bit", "nJ per bit", "fitted", "the four energies of HAQ's table 5"),
)

# (name, value, unit, "published" | "decoded" | "fitted" | "chosen", source) behind each quantity
CONSTANTS: dict[str, tuple[tuple[str, float, str, str, str], ...]] = {
    quantity: tuple((name, getattr(BITFUSION, name), unit, status, source) for name, unit, status, source in rows)
    for quantity, rows in (("latency", _LATENCY), ("energy", (*_LATENCY, *_ENERGY)))
}


def products(activation_bits: int, weight_bits: int) -> int:
    """Products that one unit computes at once: 1 at 5 to 8 bits each, 16 at 2/2. A 3-bit operand takes the room of 4.

    Raises:
        UserError: a width outside 1..8.
    """
    for name, width in (("activation", activation_bits), ("weight", weight_bits)):
        if width not in _WIDTHS:
            raise UserError(f"the spatial array takes {name}s of 1 to {_WIDEST} bits, got {width!r}")
    return (_WIDEST // max(activation_bits, _NARROWEST)) * (_WIDEST // max(weight_bits, _NARROWEST))


def latency_ms(machine: SpatialMachine, num_cycles: float) -> float:
    """Milliseconds for one image."""
    return num_cycles / (machine.clock_mhz * 1e3)


@dataclass(frozen=True)
class Demand:
    """What a layer asks of compute and of memory in one call."""

    compute_cycles: int
    memory_cycles: float
    bits_moved: int

    @property
    def cycles(self) -> float:
        return max(self.compute_cycles, self.memory_cycles)


def demands(machine: SpatialMachine, layer: Layer, weight_bits: int, activation_bits: int) -> tuple[Demand, ...]:
    """The arguments of the maximum in `cycles`, of each call. Arguments and errors: as `cycles`."""
    return tuple(_demand(machine, call, weight_bits, activation_bits) for call in _calls(layer))


def cycles(machine: SpatialMachine, layer: Layer, weight_bits: int, activation_bits: int) -> float:
    """Closed form: the larger of compute and memory; inputs and weights are read once, outputs read and written once.

    Input channels (of a convolution: all its kh kw C inputs, unfolded) take 8 p lanes, output channels 8 columns.

    Raises:
        UserError: a width outside 1..8; a grouped convolution that is not depthwise.
    """
    return sum(demand.cycles for demand in demands(machine, layer, weight_bits, activation_bits))


def cycles_search(machine: SpatialMachine, layer: Layer, weight_bits: int, activation_bits: int) -> int:
    """The simulator's cycles for the best tiling and order of the tile loops.

    Tiles: a square of output positions, input channels, output channels; sides are powers of two, those of output
    channels times 8. Convolutions are unfolded where they read the image, and where they are depthwise.

    Not monotone: what fits its buffer whole is fetched before compute starts, without overlap, so that one bit less can
    cost more (960 to 320 channels at 7 x 7: 22 % more at 3/1 than at 4/1 bits).

    Arguments and errors: as `cycles`.
    """
    products(activation_bits, weight_bits)  # refuses other widths
    costs = [int(_search(machine, call)[weight_bits - 1, activation_bits - 1]) for call in _calls(layer)]
    if _NO_TILE in costs:
        raise UserError(f"layer {layer.name!r}: not even its smallest tile fits the spatial array's buffers")
    return sum(costs)


def energy_nj(
    machine: SpatialMachine,
    layer: Layer,
    weight_bits: int,
    activation_bits: int,
    num_cycles: float | None = None,
) -> float:
    """Energy of one image: one part per cycle, one per bit of the layer's input and output maps.

    Args:
        num_cycles: of the layer; None: the closed form.

    Raises:
        UserError: as `cycles`.
    """
    if num_cycles is None:
        num_cycles = cycles(machine, layer, weight_bits, activation_bits)
    elements = sum(math.prod(shape) for shape in (*layer.input_shapes, *layer.output_shapes))
    return machine.nj_per_cycle * num_cycles + machine.nj_per_activation_bit * activation_bits * elements


@dataclass(frozen=True)
class _Call:
    """One call of a layer, as the array sees it.

    Attributes:
        in_channels: 1 for depthwise layers.
        inputs: elements of the input map.
        kernel, stride, outputs: (height, width); outputs are positions.
        extent: (height, width) of the window that one output position reads, dilation included.
        is_first: whether it reads the image.
    """

    kind: str
    in_channels: int
    out_channels: int
    inputs: int
    outputs: tuple[int, int]
    kernel: tuple[int, int]
    extent: tuple[int, int]
    stride: tuple[int, int]
    is_first: bool


def _calls(layer: Layer) -> Iterator[_Call]:
    if layer.groups > 1 and layer.kind != "depthwise":
        raise UserError(
            f"layer {layer.name!r} has {layer.groups} groups of {layer.in_channels // layer.groups} channels; the "
            "spatial array has a model of dense and depthwise layers only"
        )
    for input_shape, output_shape in zip(layer.input_shapes, layer.output_shapes, strict=True):
        is_linear = layer.kind == "linear"
        yield _Call(
            kind=layer.kind,
            in_channels=layer.in_channels // layer.groups,
            out_channels=layer.out_channels,
            inputs=math.prod(input_shape),
            outputs=(math.prod(output_shape[:-1]), 1) if is_linear else (output_shape[1], output_shape[2]),
            kernel=layer.kernel_size,
            extent=tuple(d * (k - 1) + 1 for d, k in zip(layer.dilation, layer.kernel_size, strict=True)),
            stride=layer.stride,
            is_first=any(read.is_image for read in layer.reads),
        )


def _demand(machine: SpatialMachine, call: _Call, weight_bits: int, activation_bits: int) -> Demand:
    positions, window = math.prod(call.outputs), math.prod(call.kernel) * call.in_channels
    lanes = machine.side * products(activation_bits, weight_bits)
    inputs = {"depthwise": 0, "conv": window * positions}.get(call.kind, call.inputs)
    num_outputs = positions * call.out_channels
    bits = inputs * activation_bits + window * call.out_channels * weight_bits + 2 * machine.output_bits * num_outputs
    compute = positions * _ceil(call.out_channels, machine.side) * _ceil(window, lanes)
    return Demand(compute, bits / machine.memory_bits, bits)


_LOOPS = {
    "oh": ("activations", "outputs"),
    "ow": ("activations", "outputs"),
    "ic": ("activations", "weights"),
    "oc": ("weights", "outputs"),
}  # the arrays that depend on each loop's index


@lru_cache(maxsize=1024)
def _search(machine: SpatialMachine, call: _Call) -> np.ndarray:
    """Fewest cycles at every pair of widths: (8, 8) int64, [w - 1, a - 1]; _NO_TILE where no tile fits the buffers."""
    height, width = call.outputs
    sizes = product(
        _powers(1, max(height, width)), _powers(1, call.in_channels), _powers(machine.side, call.out_channels)
    )
    tile, ic, oc = np.array(list(sizes)).T  # (T,) each
    oh, ow = np.minimum(tile, height), np.minimum(tile, width)
    trips = {
        "oh": _ceil(height, oh),
        "ow": _ceil(width, ow),
        "ic": _ceil(call.in_channels, ic),
        "oc": _ceil(call.out_channels, oc),
    }
    w, a = np.array(_WIDTHS)[:, None, None], np.array(_WIDTHS)[:, None]
    lanes = machine.side * np.array([[products(a, w) for a in _WIDTHS] for w in _WIDTHS])[:, :, None]
    taps, column_groups = math.prod(call.kernel), _ceil(oc, machine.side)
    unfolded = _ceil(taps * ic, lanes)  # (8, 8, T)
    if call.kind == "depthwise" or call.is_first:
        inputs, steps = oh * ow * taps, unfolded
    else:
        inputs = math.prod(e + (n - 1) * s for e, n, s in zip(call.extent, (oh, ow), call.stride, strict=True))
        steps = taps * _ceil(ic, lanes)
    compute = math.prod(trips.values()) * oh * ow * column_groups * steps
    tiles = {
        "activations": inputs * ic * a,
        "weights": unfolded * lanes * oc * w,
        "outputs": oh * ow * column_groups * machine.side * machine.output_bits,
    }
    room = {
        "activations": machine.activation_buffer_kib * _HALF_KIB,
        "weights": machine.weight_buffer_kib * _HALF_KIB,
        "outputs": machine.output_buffer_kib * _HALF_KIB,
    }
    fits = reduce(np.logical_and, (tiles[name] <= room[name] for name in tiles))
    best = np.full((_WIDEST, _WIDEST), _NO_TILE)
    for order in permutations(_LOOPS):
        if height == width and order.index("oh") < order.index("ow"):
            continue  # the two have equal trips: swapped, they cost the same
        traffic, resident = zip(*(_traffic(tiles[name], room[name], name, order, trips) for name in tiles), strict=True)
        prologue, epilogue = sum(resident), resident[2]
        rest = sum(traffic) + traffic[2] - prologue - epilogue  # outputs are read and written
        stalls = np.maximum(0, _ceil(rest, machine.memory_bits) - compute)
        total = compute + stalls + _ceil(prologue, machine.memory_bits) + _ceil(epilogue, machine.memory_bits)
        best = np.minimum(best, np.where(fits, total, _NO_TILE).min(axis=2))
    return best


def _traffic(
    tile: np.ndarray, room: int, name: str, order: tuple[str, ...], trips: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Bits that an array moves under an order of loops, innermost first, and the most of it that is resident at once.

    A loop on whose index the array depends moves it again with every trip. Any other loop does so only once the array
    has outgrown its buffer.
    """
    traffic, resident, fits = tile, tile, np.True_
    for loop in order:
        grown = traffic * trips[loop]
        if name in _LOOPS[loop]:
            fits = fits & (grown <= room)
            traffic, resident = grown, np.where(fits, grown, resident)
        else:
            traffic = np.where(fits, traffic, grown)
    return traffic, resident


def _powers(first: int, size: int) -> list[int]:
    """first, 2 first, 4 first, ..., the last cut to size."""
    doublings = (_ceil(size, first) - 1).bit_length()
    return [min(first << i, size) for i in range(doublings + 1)]


def _ceil(numerator: Any, denominator: Any) -> Any:
    return -(-numerator // denominator)
