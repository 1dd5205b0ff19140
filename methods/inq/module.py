"""INQ: weights become powers of two in portions, the largest first (Zhou et al. 2017)."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor, nn

from common.errors import UserError
from common.graph import Layer
from common.quantizers import inq
from common.training.gradual import Gradual, check_starts, even_starts
from common.training.weights_only import WeightsOnly


class INQ(Gradual, WeightsOnly):
    """Every stage fixes a further portion of each layer's weights at 0 or powers of two; the others train in float.

    Args:
        portions: of a layer's weights that are quantized in each stage, ascending up to 1.
        stage_starts: fractions of the training at which they are quantized; None: equally long stages.
        restart_learning_rate: run through the schedule of the learning rate, drops included, in every stage.
        largest: how the largest power of a layer is chosen, "max" (paper) or "error"; see `common.quantizers.inq.INQ`.

    Other arguments: see WeightsOnly; `weight_bit_width` is 2..8.

    Raises:
        UserError: portions or starts that do not ascend, a rule that does not exist; see also WeightsOnly.
    """

    def __init__(
        self,
        weight_bit_width: int = 5,
        portions: list[float] | None = None,
        stage_starts: list[float] | None = None,
        restart_learning_rate: bool = True,
        largest: str = "max",
        first_last: Literal["float", "8bit", "same"] = "same",
        **kwargs: Any,
    ) -> None:
        self.portions = portions or [0.5, 0.75, 0.875, 1.0]
        if not (self.portions[0] > 0 and self.portions[-1] == 1 and sorted(set(self.portions)) == self.portions):
            raise UserError(f"portions must ascend from above 0 to 1, got {self.portions}")
        self.stage_starts = even_starts(len(self.portions)) if stage_starts is None else stage_starts
        check_starts(self.stage_starts)
        if len(self.stage_starts) != len(self.portions):
            raise UserError(f"stage_starts must be as many as portions, {len(self.portions)}, got {stage_starts}")
        self.restart_learning_rate, self.largest = restart_learning_rate, largest
        super().__init__(weight_bit_width=weight_bit_width, first_last=first_last, **kwargs)

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        shape = self.network.get_parameter(f"{layer.name}.weight").shape
        return inq.IncrementalQuantizer(inq.INQ(bit_width, largest=self.largest), shape)

    def enter_stage(self, stage: int, images: Tensor | None) -> None:
        quantizers = self.quantizers
        for site, weight in self.latent_weights().items():
            quantizers[site].advance(weight, self.portions[stage])
