"""What a network is trained for: loss and metrics."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy


class Classification(nn.Module):
    """Cross entropy, top-1 and top-5 accuracy (micro average, in percent).

    Args:
        num_classes: classes of the network's output; top-5 is left out below 6.
    """

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        ranks = [1, 5] if num_classes > 5 else [1]
        self.metrics = nn.ModuleDict(
            {f"top{k}": MulticlassAccuracy(num_classes, top_k=k, average="micro") for k in ranks}
        )

    def loss(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Mean cross entropy of logits (N, num_classes) and labels (N,), scalar."""
        return F.cross_entropy(logits.float(), labels)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch to the metrics."""
        for metric in self.metrics.values():
            metric.update(logits, labels)

    def compute(self) -> dict[str, Tensor]:
        """Metrics in percent over what was added since the last reset, over all ranks; resets."""
        result = {name: 100.0 * metric.compute() for name, metric in self.metrics.items()}
        for metric in self.metrics.values():
            metric.reset()
        return result

