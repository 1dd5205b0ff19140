"""TTQ's choice of quantizers (Zhu et al. 2017)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor, nn

from common.errors import UserError
from common.graph import Layer
from common.quantizers import ternary
from common.training.weights_only import WeightsOnly


class TTQ(WeightsOnly):
    """Weights are -w_n, 0 or w_p, two trained scales a layer; the threshold follows the largest latent weight.

    Args:
        factor: threshold in largest magnitudes of the weights (eq. 9: t = 0.05).
        start: scales at first, "means" of what lies beyond the threshold on either side, or "ones" (public code).

    Other arguments: see WeightsOnly; `weight_bit_width` is 2.

    Raises:
        UserError: another start; see also WeightsOnly.
    """

    own_eight_bits = False

    def __init__(
        self, factor: float = ternary.TTQ_FACTOR, start: Literal["means", "ones"] = "means", **kwargs: Any
    ) -> None:
        if start not in ("means", "ones"):
            raise UserError(f"start must be one of means, ones, got {start!r}")
        self.factor, self.start = factor, start
        super().__init__(**kwargs)

    def weight_quantizer(self, layer: Layer, bit_width: int) -> nn.Module:
        return ternary.TTQ(bit_width, factor=self.factor)

    def calibrate(self, batches: Iterable[Tensor]) -> None:
        super().calibrate(batches)
        if self.start == "means":
            for site, weight in self.latent_weights().items():
                if isinstance(self.quantizers[site], ternary.TTQ):
                    self.quantizers[site].start_from_means(weight)
