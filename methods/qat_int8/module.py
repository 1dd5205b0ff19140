"""Quantization-aware training for integer-only inference (Jacob et al. 2018; Krishnamoorthi 2018)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any, Literal

import pytorch_lightning as pl
import torch
import torch.distributed
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.callbacks import PolicyLogger, SavePacked
from common.errors import UserError
from common.graph import Layer, Site, insert_quantizers, remove_quantizers
from common.graph.folding import fold_batch_norms
from common.training.quantization_aware import QuantizationAware
from methods.qat_int8.quantizer import FoldedWeights, MinMaxWeights, MovingRange


class QATInt8(QuantizationAware):
    """Weights on the min-max grid of what they are with their batch norm folded; inputs on a moving range.

    At the end of the training the batch norms are folded: network and packed file then hold what integers compute with.

    Args:
        symmetric: zero point 0 for weights (arXiv:1806.08342 with `per_channel`); else affine (arXiv:1712.05877).
        per_channel: a range for each output channel of the weights.
        narrow: affine weights leave out the lowest integer (arXiv:1712.05877, section 3.1).
        range_momentum: share of the new batch in the ranges of activations.
        activation_start: fraction of the training from which on activations are quantized.

    Other arguments: see QuantizationAware. Batch statistics are frozen for the last part of the training.

    Raises:
        UserError: widths outside 2..8 (32: float), a fraction or share that is none.
    """

    def __init__(
        self,
        weight_bit_width: int = 8,
        activation_bit_width: int = 8,
        symmetric: bool = False,
        per_channel: bool = False,
        narrow: bool = True,
        range_momentum: float = 0.01,
        activation_start: float = 0.0,
        first_last: Literal["float", "8bit", "same"] = "same",
        batch_norm: Literal["train", "freeze"] = "freeze",
        batch_norm_freeze_at: float = 0.8,
        **kwargs: Any,
    ) -> None:
        if not 0 < range_momentum <= 1:
            raise UserError(f"range_momentum must be in (0, 1], got {range_momentum}")
        if not 0 <= activation_start < 1:
            raise UserError(f"activation_start must be a fraction of the training below 1, got {activation_start}")
        self.symmetric, self.per_channel, self.narrow = symmetric, per_channel, narrow
        self.range_momentum, self.activation_start = range_momentum, activation_start
        self._norms: dict[str, str] | None = None
        super().__init__(
            weight_bit_width=weight_bit_width,
            activation_bit_width=activation_bit_width,
            first_last=first_last,
            batch_norm=batch_norm,
            batch_norm_freeze_at=batch_norm_freeze_at,
            **kwargs,
        )

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        channels = layer.out_channels
        grid = MinMaxWeights(
            bit_width, channels=channels if self.per_channel else None, symmetric=self.symmetric, narrow=self.narrow
        )
        return FoldedWeights(grid, channels) if layer.name in self.norms else grid

    def input_quantizer(self, site: Site, bit_width: int) -> nn.Module:
        return MovingRange(bit_width, not site.non_negative, self.range_momentum, delayed=self.activation_start > 0)

    @property
    def norms(self) -> dict[str, str]:
        """Layer -> the batch norm that can be folded into it."""
        if self._norms is None:
            foldable = fold_batch_norms(copy.deepcopy(self.network))
            calls = [node for node in self.network.graph.nodes if node.op == "call_module"]
            self._norms = {node.target: next(iter(node.users)).target for node in calls if node.target in foldable}
        return self._norms

    # -- training ---------------------------------------------------------------------------------------------------

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        super().calibrate(batches)
        self.refresh()

    def before_step(self, images: Tensor) -> None:
        super().before_step(images)
        if self.activation_start:
            for quantizer in self.quantizers_of("edge").values():
                quantizer.active.fill_(self.progress() >= self.activation_start)

    def after_optimizer_step(self) -> None:
        self._average_statistics()
        super().after_optimizer_step()
        self.refresh()

    def refresh(self) -> None:
        """Lay the grids of weights over what weights and batch norms are now."""
        weights = self.latent_weights()
        for site, quantizer in self.quantizers_of("weight").items():
            if isinstance(quantizer, FoldedWeights):
                norm = self.network.get_submodule(self.norms[site.removesuffix(".weight")])
                quantizer.fold(weights[site], norm)
            else:
                quantizer.calibrate(weights[site])

    def _average_statistics(self) -> None:
        """Give all ranks the mean of what they have seen: of running statistics and ranges, which grids rest on."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return
        tensors = [q.observer.average for q in self.quantizers_of("edge").values()]
        for norm in self.network.modules():
            if isinstance(norm, _BatchNorm) and norm.training and norm.running_mean is not None:
                tensors += [norm.running_mean, norm.running_var]
        if tensors:
            together = torch.cat([tensor.flatten() for tensor in tensors])
            torch.distributed.all_reduce(together)
            together /= torch.distributed.get_world_size()
            for tensor, mean in zip(tensors, together.split([t.numel() for t in tensors]), strict=True):
                tensor.copy_(mean.reshape(tensor.shape))

    # -- the end ----------------------------------------------------------------------------------------------------

    def configure_callbacks(self) -> list[Callback]:
        return [PolicyLogger(self.log_every_n_steps), SaveFolded()]

    @torch.no_grad()
    def fold(self) -> None:
        """Make the network what is deployed: batch norms folded, plain grids over the folded weights."""
        present = self.quantizers
        remove_quantizers(self.network)
        fold_batch_norms(self.network)
        for site, quantizer in present.items():
            if isinstance(quantizer, FoldedWeights):
                quantizer.grid.calibrate(self.network.get_parameter(site))
        insert_quantizers(self.network, {site: quantizer.inference_form() for site, quantizer in present.items()})
        self.network._compiled_call_impl = None  # compiled was the network that it is no longer


class SaveFolded(SavePacked):
    """`SavePacked` of the folded network, which the module then holds."""

    def on_fit_end(self, trainer: pl.Trainer, pl_module: QATInt8) -> None:
        if pl_module.step >= pl_module.total_steps:
            pl_module.fold()
        super().on_fit_end(trainer, pl_module)
