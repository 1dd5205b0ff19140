"""What methods share that may have BWN's binary weights among quantized inputs."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

from common.quantizers.binary import BWN
from common.training.quantization_aware import QuantizationAware


class BinaryWeights(QuantizationAware):
    """Keeps BWN's scales those of the present weights; first and last layer in float, or "8bit" with LSQ's grid.

    In training the scales follow the weights by themselves, one optimizer step behind what is evaluated and packed.
    """

    own_eight_bits: ClassVar[bool] = False

    def __init__(self, first_last: Literal["float", "8bit", "same"] = "float", **kwargs: Any) -> None:
        super().__init__(first_last=first_last, **kwargs)

    def refresh_scales(self) -> None:
        """Scales of the weights after the last optimizer step."""
        weights = self.latent_weights()
        for site, quantizer in self.quantizers.items():
            if isinstance(quantizer, BWN):
                quantizer.calibrate(weights[site].detach())

    def on_validation_start(self) -> None:
        self.refresh_scales()

    def on_test_start(self) -> None:
        self.refresh_scales()

    def on_train_end(self) -> None:
        self.refresh_scales()  # before the packed file is written
