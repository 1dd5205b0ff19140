"""Cost models of accelerators and of memory: pure functions of layer table and bit-widths, without training or data."""

from hardware.constraint import Constraint, parse_constraint
from hardware.cost_model import Constant, CostModel, NetworkCost, uniform_widths
from hardware.cost_table import CostTable, cost_table, expected_cost, interpolated_cost
from hardware.network import Network, network
from hardware.targets import cost_model, target_names

__all__ = [
    "Constant",
    "Constraint",
    "CostModel",
    "CostTable",
    "Network",
    "NetworkCost",
    "cost_model",
    "cost_table",
    "expected_cost",
    "interpolated_cost",
    "network",
    "parse_constraint",
    "target_names",
    "uniform_widths",
]
