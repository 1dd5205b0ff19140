"""Stand-in data for rehearsals: the embedded digits at the size and with the channels of natural images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from data import DigitsData
from data.tensor_data import TensorDataModule


class RehearsalData(TensorDataModule):
    """A few of scikit-learn's digits as (3, 32, 32) images: 128 to train on, 32 to test on.

    A pipeline that runs on them has shown that it runs, and nothing else.
    """

    name = "rehearsal digits"
    num_classes = 10
    input_shape = (3, 32, 32)

    def __init__(
        self,
        batch_size: int = 16,
        eval_batch_size: int = 32,
        seed: int = 0,
        mean: Sequence[float] = (0.3054, 0.3054, 0.3054),
        std: Sequence[float] = (0.3760, 0.3760, 0.3760),
    ) -> None:
        settings: dict[str, Any] = {"padding": 4, "flip": False, "drop_last": True, "val_fraction": 0.0}
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            mean=mean,
            std=std,
            subset=None,
            channels_last=False,
            device=None,
            **settings,
        )

    def _read(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        train_images, train_labels, test_images, test_labels = DigitsData()._read()

        def enlarge(images: Tensor) -> Tensor:
            return torch.repeat_interleave(torch.repeat_interleave(images, 4, 2), 4, 3).expand(-1, 3, -1, -1).clone()

        return enlarge(train_images[:128]), train_labels[:128], enlarge(test_images[:32]), test_labels[:32]
