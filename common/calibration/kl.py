"""KL calibration: the clip whose quantized histogram diverges least from the original one.

Source: the procedure of S. Migacz, "8-bit inference with TensorRT" (GTC 2017): 2048 bins, 128 levels. Here for any
number of levels, and for all thresholds at once from prefix sums.
"""

from __future__ import annotations

import torch
from torch import Tensor

from common.calibration.observers import HistogramObserver


def merge_into_levels(histogram: Tensor, levels: int) -> Tensor:
    """Q: sums of `levels` groups of n // levels bins (the rest joins the last), spread over their non-empty bins.

    Args:
        histogram: counts, shape (n,), n >= levels.
    Returns:
        float64, shape (n,); empty bins stay empty.
    """
    if not 1 <= levels <= len(histogram):
        raise ValueError(f"levels must be in [1, {len(histogram)}], got {levels}")
    counts = histogram.double()
    group = (torch.arange(len(counts), device=counts.device) // (len(counts) // levels)).clamp(max=levels - 1)
    filled = (counts > 0).double()
    sums, sizes = (torch.zeros(levels, dtype=counts.dtype, device=counts.device) for _ in range(2))
    sums.index_add_(0, group, counts)
    sizes.index_add_(0, group, filled)
    return (sums / sizes.clamp(min=1))[group] * filled


def kl_divergence(p: Tensor, q: Tensor) -> Tensor:
    """sum P log(P / Q) in nats, both normalised to 1; infinite where Q is 0 and P is not. Float64 scalar."""
    p, q = p.double() / p.sum(), q.double() / q.sum()
    return (torch.xlogy(p, p) - torch.xlogy(p, q)).sum()


def kl_threshold_bins(histogram: Tensor, levels: int) -> int:
    """Number of bins i, levels <= i <= n, whose clipped histogram is best told by `levels` levels.

    P is the first i bins with all that lies beyond added to the last of them; Q is `merge_into_levels` of the first i
    bins without it. An i whose last bin is empty while values lie beyond has Q = 0 where P is not, and is passed over.

    Args:
        histogram: counts of magnitudes, shape (m,); n is where its last non-empty bin ends.
    """
    filled = histogram.nonzero()
    n = int(filled[-1]) + 1 if len(filled) else 0
    if n <= levels:
        return n  # every bin has a level of its own
    counts = histogram[:n].double()

    def before(values: Tensor) -> Tensor:  # sums over the first 0 .. n bins
        return torch.cat([values.new_zeros(1), values.cumsum(0)])

    mass, sizes, entropy = before(counts), before((counts > 0).double()), before(torch.xlogy(counts, counts))
    ends = torch.arange(levels, n + 1, device=counts.device)
    edges = (ends // levels)[:, None] * torch.arange(levels + 1, device=counts.device)
    edges[:, -1] = ends
    sums, widths = mass[edges].diff(dim=1), sizes[edges].diff(dim=1)
    means = sums / widths.clamp(min=1)
    last, beyond = counts[ends - 1], mass[-1] - mass[ends]
    # sum P log P - sum P log Q, where P differs from the histogram in its last bin only
    p_log_p = entropy[ends] - torch.xlogy(last, last) + torch.xlogy(last + beyond, last + beyond)
    p_log_q = torch.xlogy(sums, means).sum(1) + torch.xlogy(beyond, means[:, -1])
    divergence = (p_log_p - p_log_q) / mass[-1] + mass[ends].log() - mass[-1].log()
    divergence[((last == 0) & (beyond > 0)) | (mass[ends] == 0)] = torch.inf
    return levels + int(divergence.argmin())


class KLObserver(HistogramObserver):
    """Symmetric (signed, 2^(b-1) magnitude levels) or one-sided (unsigned, 2^b levels) range of least KL divergence.

    Exact zeros, half of a ReLU's output, are left out of the histogram: they are represented whatever the clip.
    """

    def range(self, bit_width: int, signed: bool = True) -> tuple[Tensor, Tensor]:
        if not 1 <= bit_width <= 16:
            raise ValueError(f"bit_width must be in [1, 16], got {bit_width}")
        self._ends(self.minimum, self.maximum, signed)
        counts = self.magnitudes() if signed else self.histogram[self.half :]
        bins = kl_threshold_bins(counts, 2 ** (bit_width - signed))
        return self._clipped(torch.tensor((bins + 0.5) * self.bin_width, device=counts.device), signed)
