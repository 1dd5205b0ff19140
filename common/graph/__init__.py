"""Traced networks: sites, layer table, surgery."""

from common.graph.layers import Layer, Read, layer_table, uncounted_operators
from common.graph.sites import Site, activation_outputs, find_sites
from common.graph.surgery import (
    QuantizedConv2d,
    QuantizedLinear,
    insert_quantizers,
    quantizers,
    remove_quantizers,
)
from common.graph.trace import trace

__all__ = [
    "Layer",
    "QuantizedConv2d",
    "QuantizedLinear",
    "Read",
    "Site",
    "activation_outputs",
    "find_sites",
    "insert_quantizers",
    "layer_table",
    "quantizers",
    "remove_quantizers",
    "trace",
    "uncounted_operators",
]
