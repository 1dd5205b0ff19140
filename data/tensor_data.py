"""Small image sets held in memory as one uint8 tensor and augmented in batches on the device."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import chain, islice, repeat
from typing import Any

import torch
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.nn import functional as F

from data.errors import DataError
from data.loaders import (
    Batch,
    ResumableLoader,
    data_device,
    derived_generator,
    derived_seed,
    processed_batches,
    shuffled,
)


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(x / 255 - mean) / std, operation by operation as torchvision's ToTensor and Normalize: bit-identical to them.

    Args:
        images: (N, C, H, W) uint8.
        mean, std: (C, 1, 1) float32, in units of the range 0..1.
    Returns:
        (N, C, H, W) float32, memory format of images.
    """
    return images.float().div_(255).sub_(mean).div_(std)


def draw_augmentation(
    count: int, padding: int, flip: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Every sample's own crop offsets, uniform over 0..2*padding, and flips with probability 1/2 (none if not flip).

    Drawn on the CPU, so that every device gets the same ones.

    Returns:
        top (count,) int64, left (count,) int64, flipped (count,) bool.
    """
    top, left = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)
    flipped = (
        torch.randint(0, 2, (count,), generator=generator).bool() if flip else torch.zeros(count, dtype=torch.bool)
    )
    return top, left, flipped


def crop_and_flip(images: Tensor, padding: int, top: Tensor, left: Tensor, flipped: Tensor) -> Tensor:
    """Zero-pad each image, cut its (H, W) window at its own offset, mirror it left to right where flipped.

    Args:
        images: (N, C, H, W), any dtype.
        padding: zeros added at each side.
        top, left: (N,) int64 in 0..2*padding, the window's corner in the padded image; padding is the middle.
        flipped: (N,) bool.
    Returns:
        (N, C, H, W), dtype of images.
    """
    count, channels, height, width = images.shape
    offsets = 2 * padding + 1
    padded = F.pad(images, (padding,) * 4)
    sample, channel, row, column = padded.stride()
    # A view of every window of every image: one gather picks each sample's, and copies whole rows.
    windows = padded.as_strided(
        (count, offsets, offsets, channels, height, width), (sample, row, column, channel, row, column)
    )
    cropped = windows[torch.arange(count, device=images.device), top, left]
    return torch.where(flipped.view(-1, 1, 1, 1), cropped.flip(-1), cropped)


def check_images(
    what: str, images: Tensor, labels: Tensor, input_shape: tuple[int, int, int], num_classes: int
) -> None:
    """Raise DataError unless images are (N > 0, *input_shape) uint8 and labels (N,) int64 in 0..num_classes - 1."""
    if images.dtype != torch.uint8 or tuple(images.shape[1:]) != tuple(input_shape) or len(images) == 0:
        raise DataError(
            f"{what}: expected images of shape (N, {', '.join(map(str, input_shape))}) and dtype uint8, "
            f"got {tuple(images.shape)} {str(images.dtype).removeprefix('torch.')}"
        )
    if labels.dtype != torch.int64 or tuple(labels.shape) != (len(images),):
        raise DataError(
            f"{what}: expected one int64 label for each of {len(images)} images, "
            f"got {tuple(labels.shape)} {str(labels.dtype).removeprefix('torch.')}"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise DataError(f"{what}: labels must be 0..{num_classes - 1}, found {int(labels.min())}..{int(labels.max())}")


class TensorLoader(ResumableLoader):
    """Batches of an in-memory image set: (images (N, C, H, W) float32 normalised, labels (N,) int64), on its device.

    What a training batch holds is a function of (seed, epoch, rank, batch index) alone.

    Args:
        images: (size, C, H, W) uint8; labels: (size,) int64, on the same device.
        mean, std: per channel, in units of the range 0..1.
        padding, flip: augmentation; 0 and False for none.
        channels_last: memory format of the images given out.
    For the others see ResumableLoader.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        seed: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        shuffle: bool = False,
        drop_last: bool = False,
        padding: int = 0,
        flip: bool = False,
        channels_last: bool = False,
        sharded: bool = True,
    ) -> None:
        super().__init__(len(images), batch_size, seed, shuffle=shuffle, drop_last=drop_last, sharded=sharded)
        self.images = images
        self.labels = labels
        self.mean = torch.tensor(mean, device=images.device).view(-1, 1, 1)
        self.std = torch.tensor(std, device=images.device).view(-1, 1, 1)
        self.padding = padding
        self.flip = flip
        self.channels_last = channels_last

    def _batches(self, indices: Tensor, start: int) -> Iterator[Batch]:
        device = self.images.device
        epoch, rank = self.epoch, self._shard()[0]
        indices = indices.to(device)
        for batch in range(start, len(self)):
            chosen = self._batch_indices(indices, batch)
            images = self.images[chosen]
            if self.padding or self.flip:
                generator = derived_generator("augmentation", self.seed, epoch, rank, batch)
                draws = draw_augmentation(len(chosen), self.padding, self.flip, generator)
                images = crop_and_flip(images, self.padding, *(draw.to(device) for draw in draws))
            if self.channels_last:
                images = images.contiguous(memory_format=torch.channels_last)
            yield normalise(images, self.mean, self.std), self.labels[chosen]


class TensorDataModule(LightningDataModule, ABC):
    """Base of the in-memory data sets: a subclass gives `name`, `num_classes`, `input_shape` and `_read`.

    The data are read at the first use. Training batches are shuffled, augmented and of equal size (`drop_last`);
    evaluation batches come in stored order, without augmentation. Validation is done on the test split unless
    val_fraction > 0.

    Args:
        batch_size: images per training batch and rank.
        eval_batch_size: images per evaluation batch and rank.
        seed: of sample order, augmentation, calibration batches and the held-out part.
        mean, std: per channel, in units of the range 0..1.
        padding: zeros around a training image before the random crop; 0: no crop.
        flip: mirror half of the training images.
        drop_last: leave out the last, smaller training batch.
        val_fraction: in [0, 1): part of the training images held out for validation, the last ones of a seeded order.
        subset: use only the first so many training images.
        channels_last: memory format of the images.
        device: where the data live; default the trainer's device, CPU without a trainer.
    Raises:
        DataError: unsuitable settings; at the first use also missing or damaged data.
    """

    name: str
    num_classes: int
    input_shape: tuple[int, int, int]

    def __init__(
        self,
        *,
        batch_size: int,
        eval_batch_size: int,
        seed: int,
        mean: Sequence[float],
        std: Sequence[float],
        padding: int,
        flip: bool,
        drop_last: bool,
        val_fraction: float,
        subset: int | None,
        channels_last: bool,
        device: str | None,
    ) -> None:
        super().__init__()
        channels = self.input_shape[0]
        if len(mean) != channels or len(std) != channels:
            raise DataError(
                f"mean and std of {self.name} need {channels} value(s) each, got {len(mean)} and {len(std)}"
            )
        if min(std) <= 0:
            raise DataError(f"std must be positive, got {tuple(std)}")
        if padding < 0:
            raise DataError(f"padding must not be negative, got {padding}")
        if not 0 <= val_fraction < 1:
            raise DataError(f"val_fraction must be in [0, 1), got {val_fraction}")
        if subset is not None and subset < 1:
            raise DataError(f"subset must be at least 1 image, got {subset}")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.padding = padding
        self.flip = flip
        self.drop_last = drop_last
        self.val_fraction = val_fraction
        self.subset = subset
        self.channels_last = channels_last
        self.device = device
        self._splits: dict[str, Batch] | None = None
        self._fingerprint: str | None = None

    @abstractmethod
    def _read(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Training images (N, C, H, W) uint8 and labels (N,) int64, test images and labels; DataError if damaged."""

    def setup(self, stage: str | None = None) -> None:
        """Read the data, once."""
        if self._splits is not None:
            return
        train_images, train_labels, test_images, test_labels = self._read()
        for split, images, labels in (("training", train_images, train_labels), ("test", test_images, test_labels)):
            check_images(f"{self.name} {split} set", images, labels, self.input_shape, self.num_classes)
        digest = hashlib.sha256()
        for tensor in (test_images, test_labels, train_images, train_labels):
            digest.update(tensor.contiguous().view(-1).numpy())
        self._fingerprint = digest.hexdigest()[:16]

        if self.subset is not None:
            if self.subset > len(train_images):
                raise DataError(f"subset {self.subset} is more than the {len(train_images)} training images")
            train_images, train_labels = train_images[: self.subset], train_labels[: self.subset]
        val = test_images, test_labels
        if self.val_fraction > 0:
            held_out = round(self.val_fraction * len(train_images))
            if not 0 < held_out < len(train_images):
                raise DataError(
                    f"val_fraction {self.val_fraction} of {len(train_images)} training images leaves an empty split"
                )
            order = shuffled(len(train_images), "held out", self.seed)
            kept, held = order[:-held_out], order[-held_out:]
            val = train_images[held], train_labels[held]
            train_images, train_labels = train_images[kept], train_labels[kept]
        self._splits = {"train": (train_images, train_labels), "val": val, "test": (test_images, test_labels)}

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the sha256 of the whole set as read (test, then training images and labels)."""
        self.setup()
        return self._fingerprint

    @property
    def train_size(self) -> int:
        """Number of images trained on: after `subset`, without the held-out part."""
        return len(self._split("train")[0])

    @property
    def test_size(self) -> int:
        return len(self._split("test")[0])

    def train_dataloader(self) -> TensorLoader:
        loader = self._loader(
            "train", self.batch_size, shuffle=True, drop_last=self.drop_last, padding=self.padding, flip=self.flip
        )
        loader.batches_processed = processed_batches(self)
        return loader

    def val_dataloader(self) -> TensorLoader:
        return self._loader("val", self.eval_batch_size)

    def test_dataloader(self) -> TensorLoader:
        return self._loader("test", self.eval_batch_size)

    def calibration_batches(self, n: int, batch_size: int | None = None) -> Iterator[Batch]:
        """n batches of training images without augmentation, the same ones for the same seed and on every rank.

        They come in a seeded order and start over in another one when all images have been given; n = -1 is every
        image once, with a smaller batch at the end.
        """
        batch_size = min(batch_size or self.batch_size, self.train_size)
        loader = self._loader(
            "train",
            batch_size,
            seed=derived_seed("calibration", self.seed),
            shuffle=True,
            drop_last=n >= 0,
            sharded=False,
        )
        return iter(loader) if n < 0 else islice(chain.from_iterable(repeat(loader)), n)

    def _split(self, split: str) -> Batch:
        self.setup()
        images, labels = self._splits[split]
        device = data_device(self)
        if images.device != device:
            images, labels = self._splits[split] = images.to(device), labels.to(device)
        return images, labels

    def _loader(self, split: str, batch_size: int, seed: int | None = None, **settings: Any) -> TensorLoader:
        images, labels = self._split(split)
        return TensorLoader(
            images,
            labels,
            batch_size,
            self.seed if seed is None else seed,
            mean=self.mean,
            std=self.std,
            channels_last=self.channels_last,
            **settings,
        )
