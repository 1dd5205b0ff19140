"""The cost models by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import cache, partial

from common.compression import packed_bytes
from common.errors import UserError
from common.graph import Layer
from hardware import bit_serial, spatial
from hardware.cost_model import Constant, CostModel, uniform_widths
from hardware.measured import load_measured
from hardware.network import network

TABLE = "table:"  # prefix of a user's own measured table


def target_names() -> tuple[str, ...]:
    """Names of the built-in cost models."""
    return tuple(_TARGETS)


def models_of(quantity: str) -> tuple[str, ...]:
    """Names of the built-in cost models of one quantity."""
    return tuple(name for name in _TARGETS if cost_model(name).quantity == quantity)


def cost_model(name: str) -> CostModel:
    """A cost model by name, or `table:FILE` for a measured table (hardware.measured).

    Raises:
        UserError: unknown name; a table that cannot be read.
    """
    if name.startswith(TABLE):
        return load_measured(name.removeprefix(TABLE))
    if name not in _TARGETS:
        close = difflib.get_close_matches(name, _TARGETS, n=3)
        hint = f"did you mean {', '.join(close)}?" if close else f"choose one of {', '.join(_TARGETS)}"
        raise UserError(f"unknown target {name!r}; {hint} (or table:FILE)")
    return _built(name)


def uniform_cost(model: str, target: str, weight_bits: int, activation_bits: int, **model_args: object) -> float:
    """Cost of a network with the same widths in every layer, at its published input size, in the target's unit."""
    layers = network(model, **model_args).layers
    return cost_model(target).network_cost(layers, uniform_widths(layers, weight_bits, activation_bits)).total


@cache
def _built(name: str) -> CostModel:
    return _TARGETS[name](name)


def _bit_serial(name: str, machine: bit_serial.BitSerialMachine, fast: bool, what: str) -> CostModel:
    cycles = bit_serial.cycles_fast if fast else bit_serial.cycles

    def latency(layer: Layer, weight_bits: int | tuple[int, ...], activation_bits: int) -> float:
        return bit_serial.latency_ms(machine, cycles(machine, layer, weight_bits, activation_bits))

    images = "image" if machine.batch == 1 else f"batch of {machine.batch} images"
    return CostModel(
        name=name,
        quantity="latency",
        unit="ms",
        description=f"{what}, per {images}, without first and last layer",
        function=latency,
        counts_first=False,
        counts_last=False,
        kernel_wise=True,
        constants=tuple(Constant(*row) for row in bit_serial.CONSTANTS[machine.name]),
        machine=machine,
    )


def _spatial_latency(name: str, search: bool) -> CostModel:
    cycles = spatial.cycles_search if search else spatial.cycles
    machine = spatial.BITFUSION

    def latency(layer: Layer, weight_bits: int | tuple[int, ...], activation_bits: int) -> float:
        assert isinstance(weight_bits, int)
        return spatial.latency_ms(machine, cycles(machine, layer, weight_bits, activation_bits))

    how = "best tiling found by search" if search else "closed form"
    return CostModel(
        name=name,
        quantity="latency",
        unit="ms",
        description=f"bit-composable 8x8 array (BitFusion), {how}, per image, all layers",
        function=latency,
        slow=search,
        constants=tuple(Constant(*row) for row in spatial.CONSTANTS["latency"]),
        machine=machine,
    )


def _spatial_energy(name: str) -> CostModel:
    machine = spatial.BITFUSION

    def energy(layer: Layer, weight_bits: int | tuple[int, ...], activation_bits: int) -> float:
        assert isinstance(weight_bits, int)
        return spatial.energy_nj(machine, layer, weight_bits, activation_bits) / 1e6

    return CostModel(
        name=name,
        quantity="energy",
        unit="mJ",
        description="bit-composable 8x8 array (BitFusion), two fitted constants, per image, all layers",
        function=energy,
        constants=tuple(Constant(*row) for row in spatial.CONSTANTS["energy"]),
        machine=machine,
    )


def _size(name: str) -> CostModel:
    def size(layer: Layer, weight_bits: int | tuple[int, ...], activation_bits: int) -> float:
        if isinstance(weight_bits, int):
            return packed_bytes(layer.num_weights, weight_bits)
        return packed_bytes(layer.num_weights // layer.out_channels * sum(weight_bits), 1)

    return CostModel(
        name=name,
        quantity="size",
        unit="B",
        description="packed codes of convolution and linear weights, padded to whole bytes per layer",
        function=size,
        highest=32,
        kernel_wise=True,
    )


def _bitops(name: str) -> CostModel:
    def bitops(layer: Layer, weight_bits: int | tuple[int, ...], activation_bits: int) -> float:
        if isinstance(weight_bits, int):
            return layer.num_macs * weight_bits * activation_bits
        return layer.num_macs // layer.out_channels * sum(weight_bits) * activation_bits

    return CostModel(
        name=name,
        quantity="bitops",
        unit="",
        description="MACs x weight bits x activation bits, per image, all layers",
        function=bitops,
        highest=32,
        kernel_wise=True,
    )


_EDGE = "bit-serial 8x8 array on a small FPGA (BISMO)"
_CLOUD = "bit-serial 16x16 array on a large FPGA (BISMO)"
_TARGETS: dict[str, Callable[[str], CostModel]] = {
    "bismo-edge": partial(_bit_serial, machine=bit_serial.BISMO_EDGE, fast=False, what=_EDGE),
    "bismo-cloud": partial(_bit_serial, machine=bit_serial.BISMO_CLOUD, fast=False, what=_CLOUD),
    "bismo-edge-fast": partial(_bit_serial, machine=bit_serial.BISMO_EDGE, fast=True, what=f"{_EDGE}, roofline"),
    "bismo-cloud-fast": partial(_bit_serial, machine=bit_serial.BISMO_CLOUD, fast=True, what=f"{_CLOUD}, roofline"),
    "bitfusion": partial(_spatial_latency, search=False),
    "bitfusion-search": partial(_spatial_latency, search=True),
    "bitfusion-energy": _spatial_energy,
    "size": _size,
    "bitops": _bitops,
}
