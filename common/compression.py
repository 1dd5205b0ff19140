"""Compression rates of weights and activations, and the activation widths that a memory bound allows."""

from __future__ import annotations

from collections.abc import Mapping

from common.errors import UserError

FLOAT_BITS = 32


def packed_bytes(num_values: int, bit_width: int) -> int:
    """Bytes of `num_values` codes of `bit_width` bits, padded to a whole byte."""
    return -(-num_values * bit_width // 8)


def weight_compression_rate(num_weights: Mapping[str, int], bit_widths: Mapping[str, int]) -> float:
    """WCR: bytes of the float32 weights over bytes of the packed codes, over the sites of `num_weights`.

    Without byte padding this is 32 sum |theta_i| / sum b_i |theta_i| (HMQ, section 4.1 and its tables).

    Raises:
        KeyError: a site without a bit-width.
    """
    if missing := [site for site in num_weights if site not in bit_widths]:
        raise KeyError(f"no bit-width for {missing}")
    code_bytes = sum(packed_bytes(n, bit_widths[site]) for site, n in num_weights.items())
    return 4 * sum(num_weights.values()) / code_bytes


def activation_compression_rate(num_elements: Mapping[str, int], bit_widths: Mapping[str, int]) -> float:
    """ACR: 32 max |X| / max b |X|, the largest tensor in float32 over the largest quantized one (HMQ, section 4.2).

    Args:
        num_elements: elements of one sample per activation site.
        bit_widths: bits per value of the same sites.
    """
    return FLOAT_BITS * max(num_elements.values()) / max(bit_widths[s] * n for s, n in num_elements.items())


def activation_bit_widths(
    num_elements: Mapping[str, int], target_acr: float, max_bit_width: int = 8
) -> dict[str, int]:
    """b(X) = min(floor(U / |X|), max_bit_width), where U = 32 max |X| / target_acr bits (HMQ, eq. 10 and 11).

    Raises:
        UserError: the target is no rate, or the bound leaves some tensor less than one bit per value.
    """
    if not target_acr > 0:
        raise UserError(f"activation compression must be a positive rate, got {target_acr:g}")
    bound_bits = FLOAT_BITS * max(num_elements.values()) / target_acr
    widths = {}
    for site, count in num_elements.items():
        # A relative 1e-9 keeps 32 / (16/3) * n / n = 6 from being floored to 5 by rounding.
        width = int(bound_bits / count * (1 + 1e-9))
        if width < 1:
            raise UserError(
                f"activation compression {target_acr:g} leaves {site} {bound_bits / count:.2f} bits per value; "
                f"it needs at least 1 (largest possible rate: {FLOAT_BITS})"
            )
        widths[site] = min(width, max_bit_width)
    return widths
