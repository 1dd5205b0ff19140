"""scikit-learn's embedded digits: 1,797 real 8x8 images of handwritten digits; needs no download."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from data.tensor_data import TensorDataModule

TEST_SIZE = 360


class DigitsData(TensorDataModule):
    """1,437 training and 360 test images, (1, 8, 8), 10 classes; the embedded default of every command.

    The split is stratified and does not depend on `seed`, so that all runs report on the same test images. Training
    images are shifted by up to one pixel and never mirrored: a mirrored digit is none.

    Args:
        split_seed: another one gives another split.
        mean, std: default measured on the training images.
    For the others see TensorDataModule.
    """

    name = "digits"
    num_classes = 10
    input_shape = (1, 8, 8)

    def __init__(
        self,
        batch_size: int = 64,
        eval_batch_size: int = 360,
        seed: int = 0,
        mean: Sequence[float] = (0.3054,),
        std: Sequence[float] = (0.3760,),
        padding: int = 1,
        flip: bool = False,
        drop_last: bool = True,
        val_fraction: float = 0.0,
        subset: int | None = None,
        channels_last: bool = False,
        device: str | None = None,
        split_seed: int = 0,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            mean=mean,
            std=std,
            padding=padding,
            flip=flip,
            drop_last=drop_last,
            val_fraction=val_fraction,
            subset=subset,
            channels_last=channels_last,
            device=device,
        )
        self.split_seed = split_seed

    def _read(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        # Imported here: scikit-learn takes over a second to load, and the other data sets do without it.
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split

        digits = load_digits()
        pixels = np.round(digits.images * (255 / 16)).astype(np.uint8)  # stored as 0..16
        images = torch.from_numpy(pixels).unsqueeze(1)
        labels = torch.from_numpy(digits.target.astype(np.int64))
        train, test = train_test_split(
            np.arange(len(images)), test_size=TEST_SIZE, stratify=digits.target, random_state=self.split_seed
        )
        return images[train], labels[train], images[test], labels[test]
