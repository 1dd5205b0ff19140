"""Observers: which range of real values a grid should cover, from the values that a tensor takes.

An observer sees tensors (`update`) and answers with a range (`range`); `affine_parameters` and `symmetric_scale` turn
it into scale and zero point. Its state lies in buffers and adds up (`merge`, `synchronize`), so that the answer does
not depend on how the batches are spread over processes. ACIQ, KL and batch-norm ranges are in modules of their own.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable

import torch
import torch.distributed
from torch import Tensor, fx, nn

from common.calibration.statistics import observe_activations
from common.graph import Site
from common.quantizers import AffineQuantizer, integer_range

_FINEST = -110  # exponent of the smallest bin width: its inverse is still a float32


def affine_parameters(minimum: Tensor, maximum: Tensor, quant_min: int, quant_max: int) -> tuple[Tensor, Tensor]:
    """Scale and zero point of the grid that covers [minimum, maximum] and holds 0.0 exactly.

    S = (max - min) / (quant_max - quant_min) after the range was widened to contain 0; Z = clamp(round(quant_min -
    min / S)), ties to even (Jacob et al. 2018, arXiv 1712.05877, section 3). A range of length 0 gets S = 1.

    Args:
        minimum, maximum: ends of the range, shape () or (C,).
    Raises:
        ValueError: fewer than two integers.
    """
    if quant_min >= quant_max:
        raise ValueError(f"quant_min must be below quant_max, got {quant_min} and {quant_max}")
    low, high = minimum.clamp(max=0), maximum.clamp(min=0)
    scale = (high - low) / (quant_max - quant_min)
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    return scale, torch.round(quant_min - low / scale).clamp(quant_min, quant_max)


def symmetric_scale(max_abs: Tensor, quant_max: int) -> Tensor:
    """S = max_abs / quant_max, for a zero point of 0; 1 where max_abs is 0.

    Raises:
        ValueError: quant_max below 1, as a signed grid of 1 bit has it.
    """
    if quant_max < 1:
        raise ValueError(f"quant_max must be at least 1, got {quant_max}")
    scale = max_abs / quant_max
    return torch.where(scale > 0, scale, torch.ones_like(scale))


@torch.no_grad()
def set_affine_range(quantizer: AffineQuantizer, minimum: Tensor, maximum: Tensor) -> None:
    """Write scale and zero point for [minimum, maximum], shape () or one value per channel, into the quantizer."""
    scale, zero_point = affine_parameters(minimum, maximum, int(quantizer.quant_min), int(quantizer.quant_max))
    quantizer.scale.copy_(scale)
    quantizer.zero_point.copy_(zero_point)


@torch.no_grad()
def set_symmetric_range(quantizer: AffineQuantizer, max_abs: Tensor, full_range: bool = False) -> None:
    """Write the scale for [-max_abs, max_abs] (unsigned: [0, max_abs]) into the quantizer; the zero point becomes 0.

    A signed grid loses its lowest integer, -2^(b-1), unless `full_range`: integer products then fit 16 bits.
    """
    quantizer.scale.copy_(symmetric_scale(max_abs, int(quantizer.quant_max)))
    quantizer.zero_point.zero_()
    if quantizer.quant_min < 0:
        quantizer.quant_min.copy_(-quantizer.quant_max - float(full_range))


class Observer(nn.Module, ABC):
    """Records statistics of what it sees and returns it unchanged, so that it can stand where a quantizer will."""

    def forward(self, x: Tensor) -> Tensor:
        self.update(x)
        return x

    @abstractmethod
    def update(self, x: Tensor) -> None:
        """See one batch, (N, ...); statistics are taken in float32 or better."""

    @abstractmethod
    def range(self, bit_width: int, signed: bool = True) -> tuple[Tensor, Tensor]:
        """(minimum, maximum) that a grid of `bit_width` bits should cover, float32.

        Args:
            signed: whether negative values are to be covered; if not, the minimum is 0.
        Raises:
            ValueError: nothing was seen, or values that are not finite; a bit-width that the rule does not have.
        """

    @abstractmethod
    def merge(self, other: Observer) -> None:
        """Add what another observer of this class and setting saw, after this one."""

    def synchronize(self) -> None:
        """Give the observer of every process what all of them saw, in the order of ranks; alone, do nothing."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        states: list[dict[str, Tensor]] = [{}] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(states, {name: value.cpu() for name, value in self.state_dict().items()})
        other = copy.deepcopy(self)
        self.load_state_dict(states[0])
        for state in states[1:]:
            other.load_state_dict(state)
            self.merge(other)

    def _ends(self, minimum: Tensor, maximum: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
        if not bool(torch.isfinite(minimum).all() & torch.isfinite(maximum).all()):
            raise ValueError(f"{type(self).__name__} has seen no values, or values that are not finite")
        return (minimum.float() if signed else torch.zeros_like(maximum).float()), (
            maximum.float() if signed else maximum.clamp(min=0).float()
        )


class MinMaxObserver(Observer):
    """Smallest and largest value seen.

    Args:
        axis: keep them for every index along this axis (0: output channels of a weight); None is per tensor.
        channels: length of that axis.
    """

    def __init__(self, axis: int | None = None, channels: int | None = None) -> None:
        super().__init__()
        if (axis is None) != (channels is None):
            raise ValueError(f"axis and channels belong together, got {axis} and {channels}")
        self.axis = axis
        size = () if channels is None else (channels,)
        self.register_buffer("minimum", torch.full(size, torch.inf))
        self.register_buffer("maximum", torch.full(size, -torch.inf))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        if self.axis is None:
            low, high = torch.aminmax(x.float())
        else:
            low, high = torch.aminmax(x.float().movedim(self.axis, 0).flatten(1), dim=1)
        self.minimum.copy_(torch.minimum(self.minimum, low))
        self.maximum.copy_(torch.maximum(self.maximum, high))

    def range(self, bit_width: int, signed: bool = True) -> tuple[Tensor, Tensor]:
        return self._ends(self.minimum, self.maximum, signed)

    def merge(self, other: MinMaxObserver) -> None:
        self.minimum.copy_(torch.minimum(self.minimum, other.minimum))
        self.maximum.copy_(torch.maximum(self.maximum, other.maximum))


class MovingAverageObserver(Observer):
    """Exponential moving average of each batch's extremes: r <- a r_batch + (1 - a) r; the first batch as it is.

    Args:
        momentum: a, the share of the NEW value: 1 minus the smoothing parameter "close to 1" of Jacob et al. 2018,
            section 3.1, which other frameworks call decay. Thousands of steps are smoothed by 0.001 and less.
    """

    def __init__(self, momentum: float = 0.01) -> None:
        super().__init__()
        if not 0 < momentum <= 1:
            raise ValueError(f"momentum must be in (0, 1], got {momentum}")
        self.momentum = momentum
        self.register_buffer("average", torch.tensor([torch.inf, -torch.inf]))  # minimum, maximum
        self.register_buffer("first", torch.zeros(2))  # extremes of the first batch, which `merge` needs
        self.register_buffer("batches", torch.tensor(0))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        extremes = torch.stack(torch.aminmax(x.float()))
        is_first = self.batches == 0
        # inf * 0 is no number: the first batch must not meet the initial value
        before = torch.where(is_first, extremes, self.average)
        self.average.copy_(torch.where(is_first, extremes, before + self.momentum * (extremes - before)))
        self.first.copy_(torch.where(is_first, extremes, self.first))
        self.batches += 1

    def range(self, bit_width: int, signed: bool = True) -> tuple[Tensor, Tensor]:
        return self._ends(self.average[0], self.average[1], signed)

    def merge(self, other: MovingAverageObserver) -> None:
        """The average of this observer's batches followed by the other's."""
        if other.batches == 0:
            return
        if self.batches == 0:
            self.load_state_dict(other.state_dict())
            return
        # The other's first batch weighs (1 - a)^(n - 1) there and a (1 - a)^(n - 1) here.
        kept = (1 - self.momentum) ** int(other.batches)
        self.average.copy_(other.average + kept * (self.average - other.first))
        self.batches += other.batches


class MeanExtremesObserver(Observer):
    """Mean over samples of the smallest and of the largest value of each: outliers of single images average out."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("sums", torch.zeros(2, dtype=torch.float64))  # of minima, of maxima
        self.register_buffer("samples", torch.tensor(0))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        self.sums += torch.stack(torch.aminmax(x.float().flatten(1), dim=1)).double().sum(1)
        self.samples += x.shape[0]

    def range(self, bit_width: int, signed: bool = True) -> tuple[Tensor, Tensor]:
        mean = self.sums / self.samples
        return self._ends(mean[0], mean[1], signed)

    def merge(self, other: MeanExtremesObserver) -> None:
        self.sums += other.sums
        self.samples += other.samples


class HistogramObserver(Observer):
    """Counts of values in bins of one width; subclasses read a range off it.

    The width is a power of two that doubles as larger values come, so that counts of any two observers add up exactly
    and the order of batches does not matter. Exact zeros (ReLU, padding) lie on every grid and are counted apart.

    Args:
        bins: a power of two; the largest magnitude seen lies between `bins` and twice as many bins from 0.
    """

    def __init__(self, bins: int = 2048) -> None:
        super().__init__()
        if bins < 2 or bins & (bins - 1):
            raise ValueError(f"bins must be a power of two, got {bins}")
        self.half = 2 * bins  # bins on each side of 0
        self.register_buffer("histogram", torch.zeros(2 * self.half, dtype=torch.int64))  # bin half starts at 0.0
        self.register_buffer("zeros", torch.tensor(0))
        self.register_buffer("exponent", torch.tensor(_FINEST))  # bins are 2^exponent wide
        self.register_buffer("minimum", torch.tensor(torch.inf))
        self.register_buffer("maximum", torch.tensor(-torch.inf))

    @torch.no_grad()
    def update(self, x: Tensor) -> None:
        values = x.float().flatten()
        low, high = torch.aminmax(values)
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            raise ValueError(f"{type(self).__name__} was shown values that are not finite")
        self.minimum.copy_(torch.minimum(self.minimum, low))
        self.maximum.copy_(torch.maximum(self.maximum, high))
        if (top := max(-float(low), float(high))) > 0:
            # top < 2^k with k from frexp, so that half bins of width 2^k / half hold it
            self._coarsen(math.frexp(top)[1] - int(math.log2(self.half)))
        inverse = 2.0 ** -int(self.exponent)
        counts, nonzero = torch.zeros_like(self.histogram), 0
        # Several times as fast as torch.histc: parts that stay in the cache, buffers that are not allocated anew.
        size = 2**16 if values.device.type == "cpu" else 2**26
        scaled = torch.empty(min(size, values.numel()), device=values.device)
        index = torch.empty_like(scaled, dtype=torch.int32)
        for part in values.split(size):
            n = part.numel()
            nonzero += int(torch.sign(part, out=scaled[:n]).abs_().sum(dtype=torch.float64))
            torch.mul(part, inverse, out=scaled[:n]).floor_()  # exact: a power of two
            index[:n].copy_(scaled[:n]).add_(self.half)
            counts += torch.bincount(index[:n], minlength=2 * self.half)
        zeros = values.numel() - nonzero
        counts[self.half] -= zeros
        self.histogram += counts
        self.zeros += zeros

    def _coarsen(self, exponent: int) -> None:
        """Make bins at least 2^exponent wide."""
        shift = exponent - int(self.exponent)
        if shift <= 0:
            return
        merged = self.histogram.view(-1, 2 ** min(shift, int(math.log2(self.half)))).sum(1)
        self.histogram.zero_()
        self.histogram[self.half - len(merged) // 2 : self.half + len(merged) // 2] = merged
        self.exponent.fill_(exponent)

    def merge(self, other: HistogramObserver) -> None:
        other = copy.deepcopy(other)
        self._coarsen(int(other.exponent))
        other._coarsen(int(self.exponent))
        self.histogram += other.histogram
        self.zeros += other.zeros
        self.minimum.copy_(torch.minimum(self.minimum, other.minimum))
        self.maximum.copy_(torch.maximum(self.maximum, other.maximum))

    @property
    def bin_width(self) -> float:
        return 2.0 ** int(self.exponent)

    @property
    def max_abs(self) -> Tensor:
        """Largest magnitude seen, float32 scalar."""
        self._ends(self.minimum, self.maximum, signed=True)
        return torch.maximum(-self.minimum, self.maximum)

    def magnitudes(self) -> Tensor:
        """Counts of |x| without exact zeros, int64, shape (2 bins,); bin i is [i, i + 1) bin widths."""
        return self.histogram[self.half :] + self.histogram[: self.half].flip(0)

    def _clipped(self, threshold: Tensor, signed: bool) -> tuple[Tensor, Tensor]:
        """The symmetric (signed) or one-sided range up to a threshold, at most up to the largest magnitude."""
        threshold = torch.minimum(threshold.to(self.maximum), self.max_abs if signed else self.maximum.clamp(min=0))
        return (-threshold if signed else torch.zeros_like(threshold)), threshold


class PercentileObserver(HistogramObserver):
    """The range that holds `percentile` % of the values (Wu et al. 2020, arXiv 2004.09602).

    Args:
        symmetric: percentile of the magnitudes, range [-t, t]; otherwise one percentile for each end.
    """

    def __init__(self, percentile: float = 99.99, symmetric: bool = True, bins: int = 2048) -> None:
        super().__init__(bins)
        if not 50 < percentile <= 100:
            raise ValueError(f"percentile must be in (50, 100], got {percentile}")
        self.percentile, self.symmetric = percentile, symmetric

    def range(self, bit_width: int, signed: bool = True) -> tuple[Tensor, Tensor]:
        low, high = self._ends(self.minimum, self.maximum, signed)
        fraction = self.percentile / 100
        if self.symmetric or not signed:
            counts = self.magnitudes() if signed else self.histogram[self.half :].clone()
            counts[0] += self.zeros
            return self._clipped(self._quantile(counts, fraction), signed)
        counts = self.histogram.clone()
        counts[self.half] += self.zeros
        start = self.half * self.bin_width
        lower, upper = ((self._quantile(counts, share) - start).float() for share in (1 - fraction, fraction))
        return torch.clamp(lower, low, high), torch.clamp(upper, low, high)

    def _quantile(self, counts: Tensor, fraction: float) -> Tensor:
        """Distance from the start of the first bin, float64; linear inside a bin."""
        total = counts.double().cumsum(0)
        wanted = fraction * total[-1:]
        last = torch.searchsorted(total, wanted).clamp(max=len(total) - 1)
        inside = 1 - (total[last] - wanted) / counts[last].clamp(min=1)
        return ((last + inside) * self.bin_width).squeeze(0)


class MSEObserver(HistogramObserver):
    """The range with the least mean squared error of quantization, values spread evenly inside each bin.

    Args:
        symmetric: signed grids have zero point 0 and range [-a, a]; otherwise minimum and maximum shrink by a common
            factor, on the affine grid of `affine_parameters`. Unsigned ranges are [0, a].
        full_range: the symmetric grid uses -2^(b-1) too, with the same scale a / (2^(b-1) - 1).
    """

    def __init__(self, symmetric: bool = True, full_range: bool = False, bins: int = 2048) -> None:
        super().__init__(bins)
        self.symmetric, self.full_range = symmetric, full_range

    def range(self, bit_width: int, signed: bool = True) -> tuple[Tensor, Tensor]:
        low, high = (end.double() for end in self._ends(self.minimum, self.maximum, signed))
        if self.symmetric or not signed:
            quant_min, quant_max = integer_range(bit_width, signed, narrow=signed and not self.full_range)
            top = torch.maximum(-low, high)

            def error(threshold: Tensor) -> Tensor:
                return self.error(symmetric_scale(threshold, quant_max), quant_min, quant_max)

            return self._clipped(least_error(error, top[None]).squeeze(0), signed)

        quant_min, quant_max = integer_range(bit_width, signed=True)

        def error_of_share(share: Tensor) -> Tensor:
            scale, zero_point = affine_parameters(share * low, share * high, quant_min, quant_max)
            return self.error(scale, quant_min - zero_point, quant_max - zero_point)

        share = least_error(error_of_share, torch.ones(1, dtype=torch.float64, device=low.device))
        return (share * low).squeeze(0).float(), (share * high).squeeze(0).float()

    def error(self, scale: Tensor, lowest: Tensor | int, highest: Tensor | int) -> Tensor:
        """Mean squared error on the grid scale * {lowest .. highest}, which holds 0; float64, shape (1,) as scale.

        Exact for values spread evenly inside bins: F(t) = r / 12 + (t - r)^3 / 3 with r = clamp(round(t)) is the
        integral of (t - r)^2, the squared error in steps.
        """
        bins = self.histogram.nonzero().squeeze(1)

        def integral(edge: Tensor) -> Tensor:
            steps = edge * self.bin_width / scale
            level = torch.clamp(torch.round(steps), lowest, highest)
            return level / 12 + (steps - level) ** 3 / 3

        left = (bins - self.half).double()
        per_bin = (integral(left + 1) - integral(left)) * scale**3 / self.bin_width
        return (self.histogram[bins] * per_bin).sum(0, keepdim=True) / (self.histogram.sum() + self.zeros)


def least_error(error: Callable[[Tensor], Tensor], top: Tensor, candidates: int = 100, refinements: int = 20) -> Tensor:
    """argmin of error(a) over a in (0, top], for every group: equal steps, then golden section around the best.

    Args:
        error: (G,) thresholds -> (G,) errors.
        top: (G,) upper ends, not negative; where one is 0, so is the result.
    Returns:
        (G,), the best of all that was tried.
    """
    end = top.clamp(min=torch.finfo(top.dtype).tiny)
    best, least = end, error(end)

    def keep(value: Tensor) -> Tensor:
        nonlocal best, least
        found = error(value)
        better = found < least
        best, least = torch.where(better, value, best), torch.where(better, found, least)
        return found

    for i in range(1, candidates):
        keep(end * (i / candidates))
    left, right = best - end / candidates, torch.minimum(best + end / candidates, end)
    golden = (math.sqrt(5) - 1) / 2
    for _ in range(refinements):
        inner, outer = right - golden * (right - left), left + golden * (right - left)
        go_left = keep(inner) < keep(outer)
        left, right = torch.where(go_left, left, inner), torch.where(go_left, outer, right)
    return torch.where(top > 0, best, top)


@torch.no_grad()
def mse_max_abs(
    x: Tensor, bit_width: int, axis: int | None = None, signed: bool = True, full_range: bool = False
) -> Tensor:
    """Range end a with the least squared error on the symmetric grid of scale a / quant_max, from all values.

    Args:
        x: a weight tensor, any shape.
        axis: one a for every index along it; None is one for all.
        signed, full_range: the grid, as of `MSEObserver`.
    Returns:
        float32, shape () or (C,).
    """
    quant_min, quant_max = integer_range(bit_width, signed, narrow=signed and not full_range)
    groups = x.float().reshape(1, -1) if axis is None else x.float().movedim(axis, 0).flatten(1)

    def error(max_abs: Tensor) -> Tensor:
        scale = symmetric_scale(max_abs, quant_max)[:, None]
        return (groups - scale * torch.clamp(torch.round(groups / scale), quant_min, quant_max)).square().mean(1)

    found = least_error(error, groups.abs().amax(1) if signed else groups.amax(1).clamp(min=0))
    return found.squeeze(0) if axis is None else found


def observe_sites(
    network: fx.GraphModule, batches: Iterable[Tensor], sites: Iterable[Site], make: Callable[[Site], Observer]
) -> dict[str, Observer]:
    """Site name -> the observer `make(site)` after it has seen the site's tensor for all batches.

    Arguments: see `observe_activations`.
    """
    sites = tuple(sites)
    observers = {site.name: make(site) for site in sites}
    device = next((p.device for p in network.parameters()), None)
    for observer in observers.values():
        observer.to(device)
    observe_activations(network, batches, sites, lambda name, x: observers[name].update(x))
    return observers
