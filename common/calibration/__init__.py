"""Statistics of activations, recorded before training."""

from common.calibration.statistics import observe_activations, quantizers_off

__all__ = ["observe_activations", "quantizers_off"]
