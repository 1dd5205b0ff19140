"""Callbacks that several methods share, one effect each."""

from common.callbacks.phase_switch import PhaseSwitch
from common.callbacks.policy_logger import PolicyLogger
from common.callbacks.save_packed import SavePacked
from common.callbacks.target_schedule import TargetCompressionSchedule
from common.callbacks.temperature import TemperatureAnnealing

__all__ = ["PhaseSwitch", "PolicyLogger", "SavePacked", "TargetCompressionSchedule", "TemperatureAnnealing"]
