"""Accuracy of a network on the test split."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


@torch.no_grad()
def accuracy(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str = "cpu",
    channels_last: bool = False,
    limit: int | float | None = None,
) -> dict[str, float]:
    """Top-1 and, with more than 5 outputs, top-5 in percent, and the number of images. The mode is left as it was.

    Args:
        network: images (N, C, H, W) -> logits (N, classes).
        batches: (images, labels).
        limit: stop after so many batches.
    """
    training = network.training
    network.eval()
    ranks: Tensor | None = None
    correct = {1: 0, 5: 0}
    images_seen = classes = 0
    for index, (images, labels) in enumerate(batches):
        if limit is not None and index >= limit:
            break
        images, labels = images.to(device), labels.to(device)
        if channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        logits = network(images)
        classes = logits.shape[1]
        ranks = logits.topk(min(5, classes), 1).indices == labels[:, None]
        for k in correct:
            correct[k] += int(ranks[:, :k].any(1).sum())
        images_seen += len(labels)
    network.train(training)
    result = {f"top{k}": 100.0 * hits / max(1, images_seen) for k, hits in correct.items() if k == 1 or classes > k}
    return result | {"images": images_seen}


def sampling_error(top1: float, images: int) -> float:
    """One standard error of an accuracy of `top1` percent on `images` images, in points: sqrt(p (1 - p) / n)."""
    p = top1 / 100
    return 100 * math.sqrt(p * (1 - p) / images)
