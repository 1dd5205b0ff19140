"""Costs that need no machine: model size, compression, BitOPs, activation memory, multiplications of bit planes.

Published tables count differently; what a function leaves open (`SizeConvention`, `first_last_bits`) is stated by every
table file that uses it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from common.errors import UserError
from common.graph import Layer
from hardware.network import Network

KIB, MIB = 2**10, 2**20  # bytes; most papers print the latter as MB
KB, MB = 10**3, 10**6
FLOAT_BITS = 32


@dataclass(frozen=True)
class SizeConvention:
    """What a published model size counts.

    Attributes:
        first_layer_bits, last_layer_bits: weights of these layers; None: as the others.
        bias_bits: 0: not counted.
        batch_norm_values: float32 numbers per channel: 0, 2 (scale and shift) or 4 (running statistics too).
        codebooks: 2^b float32 entries per layer of b bits (k-means).
    """

    first_layer_bits: float | None = None
    last_layer_bits: float | None = None
    bias_bits: int = FLOAT_BITS
    batch_norm_values: int = 2
    codebooks: bool = False


def model_size(network: Network, weight_bits: float, convention: SizeConvention) -> float:
    """Bytes of a model whose weights have `weight_bits` each."""
    widths = [weight_bits] * len(network.layers)
    for index, special in ((0, convention.first_layer_bits), (-1, convention.last_layer_bits)):
        if special is not None:
            widths[index] = special
    bits = sum(layer.num_weights * width for layer, width in zip(network.layers, widths, strict=True))
    bits += network.num_biases * convention.bias_bits
    bits += network.batch_norm_channels * convention.batch_norm_values * FLOAT_BITS
    if convention.codebooks:
        bits += sum(FLOAT_BITS * 2**width for width in widths if width < FLOAT_BITS)
    return bits / 8


def compression_rate(bits: float) -> float:
    """32 / b, of weights or activations of b bits on average."""
    return FLOAT_BITS / bits


def mean_weight_bits(layers: Sequence[Layer], widths: Mapping[str, float]) -> float:
    """sum b_l n_l / sum n_l over layers by name (HAWQ's average bit-width).

    Raises:
        KeyError: a layer without a width.
    """
    return sum(widths[layer.name] * layer.num_weights for layer in layers) / sum(layer.num_weights for layer in layers)


def bitops(
    layers: Sequence[Layer], weight_bits: float, activation_bits: float, first_last_bits: float | None = 8
) -> float:
    """BitOPs of one image: sum of MACs x weight bits x activation bits.

    Args:
        first_last_bits: weights and inputs of the first and the last layer; None: as the others.
    """
    ends = weight_bits * activation_bits if first_last_bits is None else first_last_bits**2
    outer = layers[0].num_macs + (layers[-1].num_macs if len(layers) > 1 else 0)
    inner = sum(layer.num_macs for layer in layers[1:-1])
    return ends * outer + weight_bits * activation_bits * inner


@dataclass(frozen=True)
class MultiBitCounts:
    """Ratios of a float network's operations and weights over those of bit planes (higher is cheaper)."""

    multiplications: float
    additions: float
    weights: float


def multi_bit_counts(layers: Iterable[Layer], planes: int) -> MultiBitCounts:
    """What M binary planes with one scale per plane and kernel save, over the convolutions (KCNN, tables 1 and 2).

    With A MACs, O output values, N weights and K kernels: multiplications A / (M O): one per output and plane;
    additions A / (M A + (M - 1) O); weights 32 N / (M (N + 32 K)): a bit per weight and plane, a float per scale.

    Raises:
        UserError: no convolution among the layers, or no plane.
    """
    convolutions = [layer for layer in layers if layer.kind != "linear"]
    if not convolutions or planes < 1:
        raise UserError("counts of bit planes need a convolution and at least one plane")
    macs = sum(layer.num_macs for layer in convolutions)
    outputs = sum(layer.num_macs * layer.out_channels // layer.num_weights for layer in convolutions)
    weights = sum(layer.num_weights for layer in convolutions)
    kernels = sum(layer.out_channels for layer in convolutions)
    return MultiBitCounts(
        multiplications=macs / (planes * outputs),
        additions=macs / (planes * macs + (planes - 1) * outputs),
        weights=FLOAT_BITS * weights / (planes * (weights + FLOAT_BITS * kernels)),
    )


def relu_outputs(network: Network) -> dict[str, int]:
    """Elements of one image per output of a ReLU or ReLU6: what DQ counts as activations."""
    tensors = [site for site in network.sites if site.kind == "tensor"]
    return {site.name: site.num_elements for site in tensors if site.operator in ("relu", "relu6")}


def layer_outputs(network: Network) -> dict[str, int]:
    """Elements of one image per layer output, all calls together."""
    return {layer.name: layer.num_macs * layer.out_channels // layer.num_weights for layer in network.layers}


def activation_size(elements: Mapping[str, int], bits: float | Mapping[str, float], over: str = "max") -> float:
    """Bytes of the activations of one image: the largest tensor, or all of them.

    Args:
        elements: tensor -> elements.
        bits: of all tensors, or of each.
        over: "max" or "sum".

    Raises:
        UserError: another word; no tensor.
    """
    if over not in ("max", "sum"):
        raise UserError(f"activation memory is taken over max or sum, not {over!r}")
    if not elements:
        raise UserError("there is no activation whose memory could be taken")
    sizes = [n * (bits[name] if isinstance(bits, Mapping) else bits) / 8 for name, n in elements.items()]
    return max(sizes) if over == "max" else sum(sizes)
