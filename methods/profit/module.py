"""PROFIT's training: progressive widths, instability, freezing phases (Park and Yoo 2020)."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from pytorch_lightning.callbacks import Callback, WeightAveraging
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import get_ema_avg_fn

from common.calibration import observe_activations
from common.callbacks.progressive_bits import ProgressiveBitWidths
from common.compression import FLOAT_BITS
from common.errors import UserError
from common.graph import Layer, Site, remove_quantizers
from common.quantizers.duq import H_SWISH_OFFSET
from common.training.quantization_aware import QuantizationAware
from methods.profit.instability import weight_divergences
from methods.profit.quantizer import GradualDuQ
from methods.profit.schedule import Epochs, Stage, stages

MOMENTUM = 0.999  # of the running instability
IGNORED = 1.0  # instabilities above it


class PROFIT(QuantizationAware):
    """DuQ everywhere; widths fall to the last ones; then the layers that change their output most are frozen first.

    Args:
        progressive_bit_widths: widths before the last ones, first of activations, then of weights.
        epochs: lengths of the stages relative to each other, see `schedule.Epochs`; the run's own length scales them.
        instability_every_n_steps: sample the instability every so many steps (paper: 1).
        instability_images: of the batch, that a sample takes; None is all (paper).
        start_range: of quantizers: "paper", 0.9 max |w| and 95 % of the activations, kept when the width changes; or
            "fitted" to the least squared error, anew at every width.
        teacher: "none", or "self": the float network with its start weights; `set_teacher` takes any other.
        ema_decay: of the averaged parameters, which the run ends with and validates; None: no averaging.

    Other arguments: see QuantizationAware.

    Raises:
        UserError: widths outside 2..8 (32: float); epochs that do not exist or make no schedule.
    """

    def __init__(
        self,
        progressive_bit_widths: Sequence[int] = (8, 5),
        epochs: dict[str, float] | None = None,
        instability_every_n_steps: int = 1,
        instability_images: int | None = None,
        start_range: Literal["paper", "fitted"] = "paper",
        teacher: Literal["none", "self"] = "none",
        ema_decay: float | None = None,
        learning_rate: float = 0.005,
        nesterov: bool = True,
        weight_decay: float = 4e-5,
        decay_norms: bool = False,
        quantizer_learning_rate: float = 0.01,
        **kwargs: Any,
    ) -> None:
        if start_range not in ("paper", "fitted"):
            raise UserError(f"start_range must be paper or fitted, got {start_range!r}")
        if teacher not in ("none", "self"):
            raise UserError(f"teacher must be none or self, got {teacher!r}")
        if ema_decay is not None and not 0 <= ema_decay < 1:
            raise UserError(f"ema_decay must be in [0, 1), got {ema_decay}")
        if instability_every_n_steps < 1:
            raise UserError(f"instability_every_n_steps must be at least 1, got {instability_every_n_steps}")
        self.fitted, self.ema_decay = start_range == "fitted", ema_decay
        self.instability_every_n_steps, self.instability_images = instability_every_n_steps, instability_images
        super().__init__(
            learning_rate=learning_rate,
            nesterov=nesterov,
            weight_decay=weight_decay,
            decay_norms=decay_norms,
            quantizer_learning_rate=quantizer_learning_rate,
            **kwargs,
        )
        try:
            lengths = Epochs(**epochs or {})
        except (TypeError, ValueError) as error:
            raise UserError(f"epochs: {error}") from None
        if wrong := [width for width in progressive_bit_widths if not 2 <= width <= 8]:
            raise UserError(f"progressive_bit_widths must be in [2, 8], got {wrong[0]}")
        self.stages = stages(self.weight_bit_width, self.activation_bit_width, progressive_bit_widths, lengths)
        self.last_widths = {name: int(q.bit_width) for name, q in self.quantizers.items()}
        self.weight_sites = list(self.quantizers_of("weight"))
        self.register_buffer("instability", torch.zeros(len(self.weight_sites)))
        self._sampled: tuple[Tensor, dict[str, Tensor]] | None = None
        self._held: tuple[Stage, list[nn.Parameter]] | None = None
        if teacher == "self":
            plain = copy.deepcopy(self.network)
            remove_quantizers(plain)
            self.set_teacher(plain)

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        return GradualDuQ(bit_width, signed=True, fitted=self.fitted)

    def input_quantizer(self, site: Site, bit_width: int) -> nn.Module:
        if site.operator == "hardswish":
            return GradualDuQ(bit_width, signed=False, offset=H_SWISH_OFFSET, fitted=self.fitted)
        return GradualDuQ(bit_width, signed=not site.non_negative, fitted=self.fitted)

    # -- stages -----------------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        widths = [(stage.begin, stage.weight_bit_width, stage.activation_bit_width) for stage in self.stages]
        callbacks = [ProgressiveBitWidths(widths), *super().configure_callbacks()]
        if self.ema_decay is not None:
            # Parameters alone: widths are buffers, and batch norm averages by itself.
            callbacks.append(WeightAveraging(use_buffers=False, avg_fn=get_ema_avg_fn(self.ema_decay)))
        return callbacks

    def stage(self) -> Stage:
        """The stage of the batch that begins."""
        return [stage for stage in self.stages if round(stage.begin * self.total_steps) <= self.step][-1]

    def set_bit_widths(self, weight_bit_width: int, activation_bit_width: int, images: Tensor) -> None:
        """Give all quantizers these widths, or their last ones where those are larger.

        Args:
            weight_bit_width, activation_bit_width: 32 switches quantizers off.
            images: (N, C, H, W), to start activations with that are quantized from now on.
        """
        asked = {"weight": weight_bit_width, "edge": activation_bit_width}
        starting: dict[str, nn.Module] = {}
        for kind, width in asked.items():
            for name, quantizer in self.quantizers_of(kind).items():
                before, after = int(quantizer.bit_width), max(width, self.last_widths[name])
                if after == before:
                    continue
                quantizer.set_bit_width(after)
                if after < FLOAT_BITS and (self.fitted or before == FLOAT_BITS):
                    starting[name] = quantizer
        self._start(starting, images)

    def _start(self, starting: dict[str, nn.Module], images: Tensor) -> None:
        weights = self.latent_weights()
        inputs = [self.sites[name] for name in starting if name not in weights]
        for name in starting.keys() & weights.keys():
            starting[name].calibrate(weights[name].detach())
        if inputs:
            observe_activations(self.network, [images], inputs, lambda site, x: starting[site].calibrate(x))
        if starting:
            self.broadcast(starting.values())

    def frozen_sites(self, share: float) -> list[str]:
        """The most unstable weights, that share of all of them."""
        order = self.instability.sort(descending=True, stable=True).indices.tolist()
        return [self.weight_sites[i] for i in order[: round(share * len(order))]]

    def held_parameters(self) -> list[nn.Parameter]:
        """What the present step must not move: neither gradient, nor decay, nor momentum."""
        stage = self.stage_of_batch
        if self._held is None or self._held[0] != stage:
            if stage.norms_only:
                norms = [m for m in self.network.modules() if isinstance(m, _BatchNorm)]
                learning = {id(p) for norm in norms for p in norm.parameters()}
                held = [p for p in self.network.parameters() if id(p) not in learning]
            else:
                weights, frozen = self.latent_weights(), self.frozen_sites(stage.frozen)
                held = [weights[site] for site in frozen]
                held += [p for site in frozen for p in self.quantizers[site].parameters()]
            self._held = stage, held
        return self._held[1]

    # -- training ---------------------------------------------------------------------------------------------------

    def before_step(self, images: Tensor) -> None:
        super().before_step(images)
        self.stage_of_batch = self.stage()
        if self.stage_of_batch.measures and self.step % self.instability_every_n_steps == 0:
            self._sampled = images[: self.instability_images], self._quantized_weights()

    @torch.no_grad()
    def _quantized_weights(self) -> dict[str, Tensor]:
        return {site: self.quantizers[site](weight) for site, weight in self.latent_weights().items()}

    def training_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        logits = self(images)
        loss = self.task.loss(logits, labels)
        self.log("train/task_loss", loss)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            taught = F.softmax(self.teacher(images).float(), dim=1)
        return loss + F.cross_entropy(logits.float(), taught)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for parameter in self.held_parameters():
            parameter.grad = None  # an optimizer passes over what has no gradient

    def after_optimizer_step(self) -> None:
        super().after_optimizer_step()
        if self._sampled is None:
            return
        (images, before), self._sampled = self._sampled, None
        weights = {site: (weight, before[site]) for site, weight in self._quantized_weights().items()}
        found = weight_divergences(self.network, images, weights)
        found = self.trainer.strategy.reduce(found, reduce_op="mean")  # every rank freezes the same layers
        mean = MOMENTUM * self.instability + (1 - MOMENTUM) * found
        self.instability.copy_(torch.where(found <= IGNORED, mean, self.instability))

    def schedule_state(self) -> dict[str, float]:
        """Numbers of the present step for the logs."""
        return {"frozen": float(len(self.frozen_sites(self.stage_of_batch.frozen)))}
