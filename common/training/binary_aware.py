"""What methods with binary weights share: latent weights in range, what feeds a sign, statistics, the loss."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.calibration.norms import fresh_statistics
from common.compression import FLOAT_BITS
from common.errors import UserError
from common.graph import Site, find_sites, layer_table
from common.operators import move_pools_first, pools_before, relus_before, remove_relus
from common.quantizers.binary import clip_weights_, glorot_bound
from common.quantizers.planes import PlanesQuantizer
from common.training.quantization_aware import QuantizationAware

BOUNDS = ("none", "one", "glorot")
LOSSES = ("cross_entropy", "square_hinge")


class BinaryAware(QuantizationAware):
    """Trains latent weights behind sign planes.

    A subclass defines `weight_quantizer`, and `input_quantizer` where it has one; those of the "8bit" first and last
    layer are LSQ's.

    Args:
        weight_bit_width: planes of the weights.
        activation_bit_width: 32 is float.
        first_last: as in QuantizationAware.
        clip_weights: latent weights stay within +-1 ("one") or the Glorot bound of their layer ("glorot"); "none".
        center_weights: after a step, before the clip, subtract the mean over the input channels.
        learning_rate_scale: multiple of the learning rate that latent weights get: "one", or the inverse of the Glorot
            bound of their layer ("glorot").
        remove_relus: with binary inputs: take ReLUs in front of them out and pool before batch norm, see
            `common.operators`; behind a ReLU every sign is +1.
        loss: "cross_entropy", or "square_hinge": mean over images and classes of max(0, 1 - t y)^2, t = 1 for the label
            and -1 for the others.

    Other arguments: see QuantizationAware.

    Raises:
        UserError: an unknown word; widths that the method's quantizers do not have.
    """

    own_eight_bits = False

    def __init__(
        self,
        weight_bit_width: int = 1,
        activation_bit_width: int = FLOAT_BITS,
        first_last: Literal["float", "8bit", "same"] = "float",
        clip_weights: Literal["none", "one", "glorot"] = "none",
        center_weights: bool = False,
        learning_rate_scale: Literal["one", "glorot"] = "one",
        remove_relus: bool = True,
        loss: Literal["cross_entropy", "square_hinge"] = "cross_entropy",
        **kwargs: Any,
    ) -> None:
        for name, value, words in (
            ("clip_weights", clip_weights, BOUNDS),
            ("learning_rate_scale", learning_rate_scale, BOUNDS[1:]),
            ("loss", loss, LOSSES),
        ):
            if value not in words:
                raise UserError(f"{name} must be one of {', '.join(words)}, got {value!r}")
        self.clip_weights, self.center_weights = clip_weights, center_weights
        self.learning_rate_scale, self.remove_relus, self.loss = learning_rate_scale, remove_relus, loss
        super().__init__(
            weight_bit_width=weight_bit_width,
            activation_bit_width=activation_bit_width,
            first_last=first_last,
            **kwargs,
        )

    def input_quantizer(self, site: Site, bit_width: int) -> nn.Module:
        raise ValueError(f"its inputs stay in float: activation_bit_width must be {FLOAT_BITS}, got {bit_width}")

    @staticmethod
    def bound(word: str, weight_shape: Sequence[int]) -> float:
        """What "none", "one" and "glorot" mean for a weight."""
        if word == "glorot":
            return glorot_bound(weight_shape)
        return {"none": float("inf"), "one": 1.0}[word]

    # -- binary inputs ----------------------------------------------------------------------------------------------

    def _choose(self) -> dict[str, nn.Module]:
        if self.activation_bit_width < FLOAT_BITS and self.remove_relus:
            layers = self.binary_inputs()
            remove_relus(self.network, relus_before(self.network, layers))
            move_pools_first(self.network, pools_before(self.network, layers))
            example = torch.zeros(2, *self.input_shape)
            self.layers = layer_table(self.network, example)
            self.sites = {site.name: site for site in find_sites(self.network, example)}
        return super()._choose()

    def binary_inputs(self) -> list[str]:
        """Layers whose inputs get quantizers of this method."""
        borrowed = self.first_last == "8bit"
        return [
            layer.name
            for layer in self.layers
            if self.widths_of(layer)[1] < FLOAT_BITS
            and not any(read.is_image for read in layer.reads)
            and not (borrowed and self.is_outer(layer))
        ]

    # -- latent weights ---------------------------------------------------------------------------------------------

    def planes(self) -> dict[str, PlanesQuantizer]:
        """Weight site -> its quantizer, where that is of sign planes and not borrowed for the first or last layer."""
        return {name: q for name, q in self.quantizers_of("weight").items() if isinstance(q, PlanesQuantizer)}

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        self._keep_in_range()
        if self.activation_bit_width < FLOAT_BITS:
            self._calibrate_in_order(batches)
        else:
            super().calibrate(batches)

    @torch.no_grad()
    def _calibrate_in_order(self, batches: Iterable[Tensor]) -> None:
        """Every input quantizer from what reaches it through those before it, with one batch.

        Behind signs, without ReLUs, tensors are not those of the float network and nor are batch norm's statistics,
        which start anew.
        """
        for site, quantizer in self.quantizers_of("weight").items():
            quantizer.calibrate(self.network.get_parameter(site).detach())
        inputs = [q for q in self.quantizers_of("edge").values() if hasattr(q, "calibrate")]
        hooks = [q.register_forward_pre_hook(lambda q, args: q.calibrate(args[0].flatten())) for q in inputs]
        try:
            with fresh_statistics(self.network):
                for images in islice(batches, 1):
                    self.network.forward(images)
        finally:
            for hook in hooks:
                hook.remove()

    def after_optimizer_step(self) -> None:
        super().after_optimizer_step()
        self._keep_in_range()

    def _keep_in_range(self) -> None:
        if self.clip_weights == "none" and not self.center_weights:
            return
        for site in self.planes():
            weight = self.network.get_parameter(site)
            clip_weights_(weight, self.bound(self.clip_weights, weight.shape), self.center_weights)

    def parameter_groups(self) -> list[dict[str, Any]]:
        groups = super().parameter_groups()
        if self.learning_rate_scale == "one":
            return groups
        latent = {id(p): p for p in map(self.network.get_parameter, self.planes())}
        by_rate: dict[float, list[nn.Parameter]] = {}
        for weight in latent.values():
            by_rate.setdefault(self.learning_rate / glorot_bound(weight.shape), []).append(weight)
        for group in groups:
            group["params"] = [p for p in group["params"] if id(p) not in latent]
        groups += [{"params": ps, "lr": rate, "weight_decay": self.weight_decay} for rate, ps in by_rate.items()]
        return [group for group in groups if group["params"]]

    def refresh(self) -> None:
        """Bring what quantizers know of the weights from before the last optimizer step up to date."""
        for site, quantizer in self.planes().items():
            quantizer.calibrate(self.network.get_parameter(site).detach())

    def on_validation_epoch_start(self) -> None:
        self.refresh()

    def on_train_end(self) -> None:
        self.refresh()  # before the packed file is written

    # -- loss -------------------------------------------------------------------------------------------------------

    def training_loss(self, images: Tensor, labels: Tensor) -> Tensor:
        if self.loss == "cross_entropy":
            return super().training_loss(images, labels)
        loss = square_hinge(self(images), labels)
        self.log("train/task_loss", loss)
        return loss


def square_hinge(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean of max(0, 1 - t y)^2 over images and classes, t = 1 for the label and -1 elsewhere (BinaryConnect's code).

    Args:
        logits: y, (N, num_classes).
        labels: (N,).
    """
    targets = 2.0 * F.one_hot(labels, logits.shape[1]) - 1.0
    return F.relu(1 - targets * logits.float()).square().mean()
