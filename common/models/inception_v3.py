"""Inception-V3 without its auxiliary head.

Source: C. Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (arXiv 1512.00567), as
torchvision builds it.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor
from torchvision.models import Inception3


class InceptionV3NoAux(Inception3):
    """torchvision's network, which gives logits alone in train mode too, and takes torchvision's weights files.

    Those weights are Google's, for pixels scaled to [-1, 1] (mean and deviation 0.5); torchvision's `transform_input`,
    which gets there from ImageNet's mean and deviation, is off. Images: (N, 3, H, W), H and W at least 75.

    Args:
        num_classes: outputs of the classifier.
        dropout: probability before the classifier.
    """

    def __init__(self, num_classes: int = 1000, dropout: float = 0.5) -> None:
        super().__init__(num_classes, aux_logits=False, transform_input=False, init_weights=True, dropout=dropout)

    def adapt_state_dict(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The entries of the auxiliary head, `AuxLogits.*`, go."""
        return {name: value for name, value in state.items() if not name.startswith("AuxLogits.")}


def inception_v3_no_aux(num_classes: int = 1000, dropout: float = 0.5) -> InceptionV3NoAux:
    """23,834,568 parameters, of which 23,799,136 weights; 5,713,216,096 MACs at 299x299."""
    return InceptionV3NoAux(num_classes, dropout)
