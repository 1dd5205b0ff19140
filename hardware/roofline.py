"""Roofline view of one layer: how much it computes per bit moved, and what holds it back.

Two machines, one definition: attainable throughput is that of the plain roofline (`bit_serial.cycles_fast`,
`spatial.cycles`), padding of rows, columns and positions included, and `bound` is the argument of its maximum.
The HAQ paper (arXiv 1811.08886) plots layers before and after its search at (intensity, attainable).
"""

from __future__ import annotations

from dataclasses import dataclass

from common.errors import UserError
from common.graph.layers import Layer
from hardware import bit_serial, spatial
from hardware.bit_serial import BitSerialMachine
from hardware.spatial import SpatialMachine


@dataclass(frozen=True)
class RooflinePoint:
    """One layer at one pair of widths.

    Attributes:
        intensity: multiply-accumulates per bit moved to and from memory.
        attainable: multiply-accumulates per second.
        peak: the same of a machine that never waits and pads nothing, at these widths.
        bound: "compute", "activation" or "weight" (bit-serial: two ports, fetches overlap); "compute" or "memory"
            (spatial: one port).
        share: attainable / peak.
    """

    intensity: float
    attainable: float
    peak: float
    bound: str
    share: float


def roofline(
    machine: BitSerialMachine | SpatialMachine, layer: Layer, weight_bits: int, activation_bits: int
) -> RooflinePoint:
    """One layer, all its calls.

    Raises:
        UserError: widths below 1; what the machine has no model of.
    """
    if weight_bits < 1:
        raise UserError(f"layer {layer.name!r}: a roofline needs weights of at least 1 bit, got {weight_bits!r}")
    if isinstance(machine, BitSerialMachine):
        calls = bit_serial.demands(machine, layer, weight_bits, activation_bits)
        num_macs = machine.batch * layer.num_macs
        macs_per_cycle = machine.side**2 * machine.depth / (weight_bits * activation_bits)
        bits_moved = sum(call.activation_bits_moved + call.weight_bits_moved for call in calls)
        cycles = {
            "compute": sum(call.compute_cycles for call in calls),
            "activation": sum(call.activation_cycles for call in calls),
            "weight": sum(call.weight_cycles for call in calls),
        }
    else:
        calls = spatial.demands(machine, layer, weight_bits, activation_bits)
        num_macs = layer.num_macs
        macs_per_cycle = machine.side**2 * spatial.products(activation_bits, weight_bits)
        bits_moved = sum(call.bits_moved for call in calls)
        cycles = {
            "compute": sum(call.compute_cycles for call in calls),
            "memory": sum(call.memory_cycles for call in calls),
        }
    clock_hz = machine.clock_mhz * 1e6
    attainable = num_macs / sum(call.cycles for call in calls) * clock_hz
    peak = macs_per_cycle * clock_hz
    return RooflinePoint(
        intensity=num_macs / bits_moved,
        attainable=attainable,
        peak=peak,
        bound=max(cycles, key=lambda part: cycles[part]),
        share=attainable / peak,
    )
