"""A quantizer behind a transform, and the transforms that several papers share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from common.quantizers.encoding import AffineEncoding
from common.quantizers.levels import LevelsEncoding
from common.quantizers.modules import Quantizer


class TransformedQuantizer(nn.Module):
    """y = grid(transform(x)): the grid keeps the quantizer contract, the transform moves x into the grid's domain.

    It is no `Quantizer` itself, for y is on the grid and yet quantizing y again may change it. `encode` and `forward`
    transform; `grid` is what a deployed network holds.

    Args:
        transform: module with forward(x) of the shape of x.
        grid: the idempotent part.
    """

    def __init__(self, transform: nn.Module, grid: Quantizer) -> None:
        super().__init__()
        self.transform, self.grid = transform, grid

    @property
    def bit_width(self) -> Tensor:
        return self.grid.bit_width

    def transformed(self, x: Tensor) -> Tensor:
        """x in the grid's domain."""
        return self.transform(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.grid(self.transformed(x))

    def calibrate(self, x: Tensor, max_abs: float | None = None) -> None:
        """Fill the grid, where it can be filled, from the transformed values of x; `max_abs` is not needed."""
        if hasattr(self.grid, "calibrate"):
            with torch.no_grad():
                transformed = self.transformed(x)
            self.grid.calibrate(transformed, float(transformed.abs().max()))

    def encode(self, x: Tensor) -> AffineEncoding | LevelsEncoding:
        """Codes of the transformed x: what a packed file stores of a weight."""
        with torch.no_grad():
            return self.grid.encode(self.transformed(x))

    def inference_form(self) -> Quantizer:
        """
        Raises:
            TypeError: always, an activation would still need the transform; a weight is stored by `encode`.
        """
        raise TypeError(
            f"{type(self).__name__} has no plain form: {type(self.transform).__name__} stands before its grid"
        )


class TanhNormalization(nn.Module):
    """w -> tanh(w) / max |tanh(w)|, in [-1, 1]; the maximum over the whole tensor (DoReFa, Zhou et al. 2016, eq. 9).

    Args:
        differentiate_max: let the gradient flow through the maximum, as the public code does; otherwise it is a
            constant. Only the largest entry m notices: it gets -(sign(t_m) (1 - t_m^2) / M^2) sum_j g_j t_j more
            (equal ones share it).
    """

    def __init__(self, differentiate_max: bool = True) -> None:
        super().__init__()
        self.differentiate_max = differentiate_max

    def forward(self, w: Tensor) -> Tensor:
        bounded = torch.tanh(w)
        largest = (bounded if self.differentiate_max else bounded.detach()).abs().max()
        return bounded / torch.where(largest == 0, 1.0, largest)


class WeightNormalization(nn.Module):
    """w -> (w - mean w) / std w over the whole tensor; std with n - 1 (APoT, Li et al. 2020, section 2.4).

    Args:
        differentiate_statistics: let the gradient flow through mean and std (public ImageNet code; detached in its
            CIFAR-10 code).
    """

    def __init__(self, differentiate_statistics: bool = True) -> None:
        super().__init__()
        self.differentiate_statistics = differentiate_statistics

    def forward(self, w: Tensor) -> Tensor:
        statistics = w if self.differentiate_statistics else w.detach()
        std, mean = torch.std_mean(statistics)
        return (w - mean) / torch.where(std == 0, 1.0, std)
