"""TQT's quantizers, and the freezing of their thresholds (Jain et al. 2020)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from common.calibration.kl import KLObserver
from common.errors import UserError
from common.graph import Layer, Site
from common.quantizers import tqt
from common.training.optimizers import with_factors
from common.training.quantization_aware import QuantizationAware

AVERAGED = 0.01  # share of the new value in the running averages that freezing looks at (our choice)


def kl_threshold(x: Tensor, bit_width: int, signed: bool) -> float:
    """The clip of x that `KLObserver` finds for a grid of this width; 0 where x is all zero."""
    observer = KLObserver()
    observer.update(x)
    return float(observer.range(bit_width, signed)[1])


class TQT(QuantizationAware):
    """Power-of-two scales from trained log2 thresholds, one per weight tensor and layer input.

    Args:
        weight_start, activation_start: thresholds at the start: "max", "3std" or "kl".
        weight_rate_interval, threshold_rate_interval: fractions of the training after each of which the learning rate
            of the weights is multiplied by 0.94, that of the thresholds by 0.5; None keeps it.
        freeze_thresholds_at: from this fraction of the training on, fix one threshold every `freeze_every` steps, that
            of the smallest gradient first, if it gives the same power of two as its running average; None: never.
        freeze_every: steps.

    Other arguments: see QuantizationAware. The learning rates are those of the paper for 24 images a batch.

    Raises:
        UserError: an unknown start, a fraction out of range; widths outside 2..16 (32: float).
    """

    def __init__(
        self,
        weight_start: Literal["max", "3std", "kl"] = "3std",
        activation_start: Literal["max", "3std", "kl"] = "kl",
        weight_rate_interval: float | None = None,
        threshold_rate_interval: float | None = None,
        freeze_thresholds_at: float | None = None,
        freeze_every: int = 50,
        batch_norm: Literal["train", "freeze"] = "freeze",
        batch_norm_freeze_at: float = 0.2,
        optimizer: Literal["sgd", "adam", "radam"] = "adam",
        learning_rate: float = 1e-6,
        weight_decay: float = 0.0,
        quantizer_learning_rate: float = 1e4,
        learning_rate_schedule: str = "constant",
        **kwargs: Any,
    ) -> None:
        for name, fraction in (
            ("weight_rate_interval", weight_rate_interval),
            ("threshold_rate_interval", threshold_rate_interval),
        ):
            if fraction is not None and not 0 < fraction <= 1:
                raise UserError(f"{name} must be a fraction of the training above 0, got {fraction}")
        if freeze_thresholds_at is not None and not 0 <= freeze_thresholds_at <= 1:
            raise UserError(f"freeze_thresholds_at must be a fraction of the training, got {freeze_thresholds_at}")
        if freeze_every < 1:
            raise UserError(f"freeze_every must be at least 1, got {freeze_every}")
        self.weight_start, self.activation_start = weight_start, activation_start
        self.rate_intervals = (weight_rate_interval, threshold_rate_interval)
        self.freeze_thresholds_at, self.freeze_every = freeze_thresholds_at, freeze_every
        super().__init__(
            batch_norm=batch_norm,
            batch_norm_freeze_at=batch_norm_freeze_at,
            optimizer=optimizer,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            quantizer_learning_rate=quantizer_learning_rate,
            learning_rate_schedule=learning_rate_schedule,
            **kwargs,
        )
        count = len(self.thresholds())
        self.register_buffer("frozen", torch.zeros(count, dtype=torch.bool))
        self.register_buffer("held", torch.zeros(count))  # log2 thresholds that are frozen
        self.register_buffer("averaged", torch.tensor(0.0))  # optimizer steps that the running averages saw
        self.register_buffer("average", torch.zeros(count))  # of the log2 thresholds
        self.register_buffer("gradient", torch.zeros(count))  # of the size of their gradients

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        return tqt.TQT(bit_width, signed=True, start=_start(self.weight_start))

    def input_quantizer(self, site: Site, bit_width: int) -> nn.Module:
        return tqt.TQT(bit_width, signed=not site.non_negative, start=_start(self.activation_start))

    def thresholds(self) -> list[nn.Parameter]:
        """All log2 thresholds, in execution order."""
        return [quantizer.log2_threshold for quantizer in self.quantizers.values()]

    def configure_optimizers(self) -> dict[str, Any]:
        configured = super().configure_optimizers()
        if self.rate_intervals == (None, None):
            return configured

        def staircase(factor: float, interval: float | None):
            return lambda step: 1.0 if interval is None else factor ** int(step / (interval * self.total_steps))

        weights, thresholds = (staircase(*pair) for pair in zip((0.94, 0.5), self.rate_intervals, strict=True))
        optimizer, learned = configured["optimizer"], {id(p) for p in self.thresholds()}
        factors = [thresholds if id(group["params"][0]) in learned else weights for group in optimizer.param_groups]
        return with_factors(optimizer, factors, self.trainer.accumulate_grad_batches)

    def after_optimizer_step(self) -> None:
        super().after_optimizer_step()
        if self.freeze_thresholds_at is not None:
            self._freeze_thresholds()

    @torch.no_grad()
    def _freeze_thresholds(self) -> None:
        parameters = self.thresholds()
        values = torch.stack([p.detach() for p in parameters])
        values = torch.where(self.frozen, self.held, values)  # the optimizer's momentum moves them on
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)
        sizes = torch.stack([torch.zeros_like(p) if p.grad is None else p.grad.abs() for p in parameters])
        self.averaged += 1
        share = (1 / self.averaged).clamp(min=AVERAGED)  # the plain mean at first
        self.average.lerp_(values, share)
        self.gradient.lerp_(sizes, share)
        if self.progress() < self.freeze_thresholds_at or self.step % self.freeze_every:
            return
        settled = ~self.frozen & (values.ceil() == self.average.ceil())
        smallest = torch.where(settled, self.gradient, torch.inf).argmin()
        self.frozen[smallest] |= settled[smallest]
        self.held.copy_(values)


def _start(name: str):
    if name not in ("max", "3std", "kl"):
        raise UserError(f"a threshold starts at max, 3std or kl, got {name!r}")
    return kl_threshold if name == "kl" else name
