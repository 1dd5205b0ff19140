"""Accuracy of a network on the test split."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

import torch
from torch import Tensor, nn


@torch.no_grad()
def accuracy(
    network: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str = "cpu",
    channels_last: bool = False,
    limit: int | float | None = None,
    correct: list[bool] | None = None,
) -> dict[str, float]:
    """Top-1 and, with more than 5 outputs, top-5 in percent, and the number of images. The mode is left as it was.

    Args:
        network: images (N, C, H, W) -> logits (N, classes).
        batches: (images, labels).
        limit: stop after so many batches.
        correct: gets, for every image in order, whether its top-1 answer is right.
    """
    training = network.training
    network.eval()
    ranks: Tensor | None = None
    hits = {1: 0, 5: 0}
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
        if correct is not None:
            correct += ranks[:, 0].tolist()
        for k in hits:
            hits[k] += int(ranks[:, :k].any(1).sum())
        images_seen += len(labels)
    network.train(training)
    result = {f"top{k}": 100.0 * n / max(1, images_seen) for k, n in hits.items() if k == 1 or classes > k}
    return result | {"images": images_seen}


def sampling_error(top1: float, images: int) -> float:
    """One standard error of an accuracy of `top1` percent on `images` images, in points: sqrt(p (1 - p) / n)."""
    p = top1 / 100
    return 100 * math.sqrt(p * (1 - p) / images)


def paired_drop(before: Sequence[bool], after: Sequence[bool]) -> dict[str, float]:
    """How much accuracy is lost between two networks on the same images, in points, with its uncertainty.

    Images that both or neither get right cancel: the interval is much narrower than that of two separate accuracies.

    Args:
        before, after: whether each image is classified right.

    Returns:
        paired_drop, paired_drop_low and paired_drop_high (normal interval of 95 % of the mean difference; one image
        where all agree), lost and won (images that only the first, only the second gets right), mcnemar_p (exact,
        two-sided: the chance of so uneven a split of the images that differ if neither were better).
    """
    if len(before) != len(after) or not len(before):
        raise ValueError(f"expected answers about the same images, got {len(before)} and {len(after)}")
    count = len(before)
    lost = sum(bool(b) and not a for b, a in zip(before, after, strict=True))
    won = sum(bool(a) and not b for b, a in zip(before, after, strict=True))
    drop = (lost - won) / count
    margin = max(1 / count, 1.96 * math.sqrt(max(0.0, (lost + won) / count - drop**2) / count))
    tail = sum(math.comb(lost + won, k) for k in range(min(lost, won) + 1))
    return {
        "paired_drop": 100 * drop,
        "paired_drop_low": 100 * (drop - margin),
        "paired_drop_high": 100 * (drop + margin),
        "lost": lost,
        "won": won,
        "mcnemar_p": min(1.0, float(Fraction(2 * tail, 2 ** (lost + won)))),
    }
