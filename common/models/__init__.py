"""Networks that quantization papers use, by name, and their weights."""

from common.models.registry import ModelInfo, build_model, list_models, model_info
from common.models.weights import load_weights, state_hash

__all__ = ["ModelInfo", "build_model", "list_models", "load_weights", "model_info", "state_hash"]
