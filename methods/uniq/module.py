"""UNIQ: noise and then k-quantile quantization, layer by layer (Baskin et al. 2018)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor, nn

from common.calibration import observe_activations
from common.errors import UserError
from common.graph import Layer, Site
from common.quantizers import quantile
from common.training.gradual import Gradual, even_starts


class UNIQ(Gradual):
    """One layer after the other trains with noise and is then quantized and frozen; inputs follow their layer.

    In a layer's stage its weights carry noise and its input is quantized, with the statistics of the present batch; the
    layers before it are quantized, weights frozen; those behind it are in float. From the second pass on all other
    layers are quantized. Evaluation quantizes everything at any time.

    Args:
        passes: how often the stages go through the network.
        warm_up: fraction of the training in float before the first stage, for runs from initial weights.

    Other arguments: see QuantizationAware.

    Raises:
        UserError: no pass, a fraction outside [0, 1), widths outside 1..8 (32: float).
    """

    def __init__(
        self,
        weight_bit_width: int = 4,
        activation_bit_width: int = 8,
        passes: int = 2,
        warm_up: float = 0.0,
        first_last: Literal["float", "8bit", "same"] = "same",
        learning_rate: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        if passes < 1:
            raise UserError(f"passes must be at least 1, got {passes}")
        if not 0 <= warm_up < 1:
            raise UserError(f"warm_up must be a fraction of the training below 1, got {warm_up}")
        super().__init__(
            weight_bit_width=weight_bit_width,
            activation_bit_width=activation_bit_width,
            first_last=first_last,
            learning_rate=learning_rate,
            **kwargs,
        )
        found = self.quantizers
        names = (layer.name for layer in self.layers)
        self.order = [name for name in names if f"{name}.weight" in found or f"{name}.input" in found]
        starts = even_starts(passes * len(self.order))
        self.stage_starts = [warm_up + (1 - warm_up) * start for start in starts]

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        return quantile.UNIQ(bit_width, shape=self.network.get_parameter(f"{layer.name}.weight").shape)

    def input_quantizer(self, site: Site, bit_width: int) -> nn.Module:
        return quantile.UNIQ(bit_width, signed=not site.non_negative)

    # -- stages -----------------------------------------------------------------------------------------------------

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        super().calibrate(batches)
        for quantizer in self.quantizers.values():
            quantizer.stage = "float"

    def enter_stage(self, stage: int, images: Tensor | None) -> None:
        full_pass, position = divmod(stage, len(self.order))
        found, latent = self.quantizers, self.latent_weights()
        for index, name in enumerate(self.order):
            done = full_pass > 0 or index < position
            if weight := found.get(f"{name}.weight"):
                weight.follow(latent[f"{name}.weight"])
                weight.stage = "noise" if index == position else "quantized" if done else "float"
            if activation := found.get(f"{name}.input"):
                activation.stage = "quantized" if done or index == position else "float"
        self._fit_input(f"{self.order[position]}.input", images)

    def _fit_input(self, site: str, images: Tensor | None) -> None:
        """Statistics of one layer's input, behind the layers that are quantized already, from a batch."""
        if site not in self.quantizers or images is None:
            return
        quantizer = self.quantizers[site]
        observe_activations(self.network, [images], [self.sites[site]], lambda _, x: quantizer.calibrate(x))
        self.broadcast([quantizer])

    def frozen_weights(self) -> Iterable[nn.Parameter]:
        found = self.quantizers
        return [weight for site, weight in self.latent_weights().items() if found[site].stage == "quantized"]

    # -- the latest weights before they are evaluated -----------------------------------------------------------------

    def follow_weights(self) -> None:
        """Statistics of the weights as they are now; frozen ones keep theirs."""
        found = self.quantizers
        for site, weight in self.latent_weights().items():
            found[site].follow(weight)

    def on_validation_start(self) -> None:
        self.follow_weights()

    def on_test_start(self) -> None:
        self.follow_weights()

    def on_train_end(self) -> None:
        super().on_train_end()
        self.follow_weights()
