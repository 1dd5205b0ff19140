"""Training of quantized networks: the base LightningModule and its tasks."""

from common.training.quantized_module import QuantizedModule
from common.training.tasks import Classification

__all__ = ["Classification", "QuantizedModule"]
