"""ImageNet, or any subset of its classes, from folders of images per WordNet id."""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pytorch_lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate
from torchvision import transforms

from data.errors import DataError
from data.loaders import Batch, ResumableLoader, data_device, derived_seed, processed_batches
from data.tensor_data import normalise

SUFFIXES = (".jpeg", ".jpg", ".png", ".webp")
EXPECTED = "a folder with train/ and val/, each with one folder of images per WordNet id (n01440764, ...)"


@cache
def class_indices() -> dict[str, int]:
    """WordNet id -> class index 0..999: sorted ids, as in torchvision's and timm's pre-trained networks."""
    # Imported here: timm takes seconds to load, and the other data sets do without it.
    from timm.data import ImageNetInfo

    return {wnid: index for index, wnid in enumerate(ImageNetInfo("imagenet-1k").label_names())}


class ImageFiles(Dataset):
    """Item (epoch, index) is the image `paths[index]` as (3, crop, crop) uint8 and its label.

    Random transforms are a function of (seed, epoch, index): whichever worker makes them, whatever came before.
    A file that cannot be read gives its DataError as the item, because an exception that leaves a worker process loses
    its one-line message in a traceback.
    """

    def __init__(self, paths: Sequence[Path], labels: Sequence[int], transform: Callable, seed: int) -> None:
        self.paths = paths
        self.labels = labels
        self.transform = transform
        self.seed = seed

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, item: tuple[int, int]) -> tuple[Tensor, int] | DataError:
        epoch, index = item
        path = self.paths[index]
        try:
            with Image.open(path) as file:
                image = file.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            reason = " ".join(str(error).split())
            return DataError(f"{path} is no readable image ({reason}): get the file again or remove it")
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed("augmentation", self.seed, epoch, index))
            return self.transform(image), self.labels[index]


def collate(items: list) -> list | DataError:
    """A batch of items, or the first error among them."""
    return next((item for item in items if isinstance(item, DataError)), None) or default_collate(items)


class ImageFileLoader(ResumableLoader):
    """Batches (images (N, 3, crop, crop) float32 normalised, labels (N,) int64), decoded in num_workers processes.

    Workers hand over uint8, a quarter of the bytes; the images are normalised on `device`.
    """

    def __init__(
        self,
        files: ImageFiles,
        batch_size: int,
        seed: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        num_workers: int,
        device: torch.device,
        channels_last: bool,
        shuffle: bool = False,
        drop_last: bool = False,
        sharded: bool = True,
    ) -> None:
        super().__init__(len(files), batch_size, seed, shuffle=shuffle, drop_last=drop_last, sharded=sharded)
        self.mean = torch.tensor(mean, device=device).view(-1, 1, 1)
        self.std = torch.tensor(std, device=device).view(-1, 1, 1)
        self.device = device
        self.channels_last = channels_last
        self.files = files
        self.num_workers = num_workers

    def _batches(self, indices: Tensor, start: int) -> Iterator[Batch]:
        loader = DataLoader(
            self.files,
            batch_sampler=[
                [(self.epoch, index) for index in self._batch_indices(indices, batch).tolist()]
                for batch in range(start, len(self))
            ],
            num_workers=self.num_workers,
            pin_memory=self.device.type == "cuda",
            collate_fn=collate,
            # A pass draws a seed for its workers: from an own generator, to leave the global one alone.
            generator=torch.Generator(),
        )
        batches = iter(loader)
        try:
            for batch in batches:
                if isinstance(batch, DataError):
                    raise batch
                images, labels = (tensor.to(self.device, non_blocking=True) for tensor in batch)
                if self.channels_last:
                    images = images.contiguous(memory_format=torch.channels_last)
                yield normalise(images, self.mean, self.std), labels
        finally:
            # Ends the workers of a pass that is given up; left to the garbage collector, each takes 5 seconds.
            del batches


class ImageNetData(LightningDataModule):
    """ImageNet's 1,000 classes, or those of them that root holds, with the standard transforms.

    Training: random resized crop and mirroring; evaluation: resize of the shorter side, centre crop. The validation
    folder is also the test split. Crop, resize, interpolation, mean and std belong to the network: pass its own ones.

    Args:
        root: folder with train/ and val/, in each a folder of images per WordNet id; default the environment variable
            IMAGENET_DIR. Classes that are not there are simply absent: the others keep their 1000-way indices.
        batch_size, eval_batch_size: images per batch and rank.
        seed: of sample order, augmentation and calibration batches.
        crop: side of the square images given out, pixels.
        resize: length of the shorter side before the centre crop, pixels.
        interpolation: nearest, bilinear, bicubic, box, hamming or lanczos.
        mean, std: per channel, in units of the range 0..1.
        min_scale: smallest part of the area that a random resized crop takes (0.08: Szegedy et al. 2015,
            arXiv:1409.4842, section 6).
        flip: mirror half of the training images.
        drop_last: leave out the last, smaller training batch.
        num_workers: processes that decode images.
        class_subset_head: number the classes of train/ 0..k-1 in the order of their ids, for a k-way head.
        channels_last: memory format of the images.
        device: where batches are given out; default the trainer's device, CPU without a trainer.
    Raises:
        DataError: unsuitable settings; at the first use also a missing or empty folder and unknown classes; from the
            loaders an unreadable image.
    """

    name = "imagenet"

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 64,
        eval_batch_size: int = 64,
        seed: int = 0,
        crop: int = 224,
        resize: int = 256,
        interpolation: str = "bilinear",
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        min_scale: float = 0.08,
        flip: bool = True,
        drop_last: bool = True,
        num_workers: int = 2,
        class_subset_head: bool = False,
        channels_last: bool = False,
        device: str | None = None,
    ) -> None:
        super().__init__()
        modes = [mode.value for mode in transforms.InterpolationMode]
        if interpolation not in modes:
            raise DataError(f"unknown interpolation {interpolation!r}: choose one of {', '.join(modes)}")
        if not 0 < crop <= resize:
            raise DataError(f"crop must be in 1..resize, got crop {crop} and resize {resize}")
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise DataError(f"mean and std need 3 values each, std positive, got {tuple(mean)} and {tuple(std)}")
        if not 0 < min_scale <= 1:
            raise DataError(f"min_scale must be in (0, 1], got {min_scale}")
        if num_workers < 0:
            raise DataError(f"num_workers must not be negative, got {num_workers}")
        self.root = root
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.input_shape = (3, crop, crop)
        self.mean = tuple(mean)
        self.std = tuple(std)
        self.drop_last = drop_last
        self.num_workers = num_workers
        self.class_subset_head = class_subset_head
        self.channels_last = channels_last
        self.device = device
        mode = transforms.InterpolationMode(interpolation)
        self._train_transform = transforms.Compose(
            [
                transforms.RandomResizedCrop(crop, scale=(min_scale, 1.0), interpolation=mode),
                transforms.RandomHorizontalFlip(0.5 if flip else 0.0),
                transforms.PILToTensor(),
            ]
        )
        self._eval_transform = transforms.Compose(
            [transforms.Resize(resize, interpolation=mode), transforms.CenterCrop(crop), transforms.PILToTensor()]
        )
        self._splits: dict[str, tuple[list[Path], list[int]]] | None = None
        self._wnids: list[str] = []
        self._fingerprint: str | None = None

    def setup(self, stage: str | None = None) -> None:
        """List the files, once."""
        if self._splits is not None:
            return
        root = self.root or os.environ.get("IMAGENET_DIR")
        if not root:
            raise DataError(f"ImageNet needs a place to be read from: set IMAGENET_DIR or root to {EXPECTED}")
        files = {split: _image_files(Path(root), split) for split in ("train", "val")}
        self._wnids = sorted(files["train"])
        labels = class_indices()
        if self.class_subset_head:
            if missing := sorted(set(files["val"]) - set(self._wnids)):
                raise DataError(f"{root}: class_subset_head numbers the classes of train/, which lacks {missing[0]}")
            labels = {wnid: index for index, wnid in enumerate(self._wnids)}
        self._splits = {
            split: (
                [path for paths in classes.values() for path in paths],
                [labels[wnid] for wnid, paths in classes.items() for _ in paths],
            )
            for split, classes in files.items()
        }
        digest = hashlib.sha256()
        for path in sorted(path for paths, _ in self._splits.values() for path in paths):
            digest.update(f"{path.relative_to(root).as_posix()} {path.stat().st_size}\n".encode())
        self._fingerprint = digest.hexdigest()[:16]

    @property
    def num_classes(self) -> int:
        """1000, or the number of classes in train/ with class_subset_head."""
        if not self.class_subset_head:
            return 1000
        self.setup()
        return len(self._wnids)

    @property
    def wnids(self) -> tuple[str, ...]:
        """The WordNet ids in train/, sorted."""
        self.setup()
        return tuple(self._wnids)

    @property
    def fingerprint(self) -> str:
        """First 16 hex digits of the sha256 of all relative file names and sizes, sorted."""
        self.setup()
        return self._fingerprint

    @property
    def train_size(self) -> int:
        self.setup()
        return len(self._splits["train"][0])

    @property
    def test_size(self) -> int:
        self.setup()
        return len(self._splits["val"][0])

    def train_dataloader(self) -> ImageFileLoader:
        loader = self._loader(
            "train", self._train_transform, self.batch_size, self.seed, shuffle=True, drop_last=self.drop_last
        )
        loader.batches_processed = processed_batches(self)
        return loader

    def val_dataloader(self) -> ImageFileLoader:
        return self._loader("val", self._eval_transform, self.eval_batch_size, self.seed)

    def test_dataloader(self) -> ImageFileLoader:
        return self.val_dataloader()

    def calibration_batches(self, n: int, batch_size: int | None = None) -> Iterator[Batch]:
        """n batches of training images with the evaluation transforms, the same for the same seed and on every rank.

        They come in a seeded order and start over in another one when all images have been given; n = -1 is every
        image once, with a smaller batch at the end.
        """
        batch_size = min(batch_size or self.batch_size, self.train_size)
        seed = derived_seed("calibration", self.seed)
        loader = self._loader(
            "train", self._eval_transform, batch_size, seed, shuffle=True, drop_last=n >= 0, sharded=False
        )
        return iter(loader) if n < 0 else islice(chain.from_iterable(repeat(loader)), n)

    def _loader(self, split: str, transform: Callable, batch_size: int, seed: int, **settings: Any) -> ImageFileLoader:
        self.setup()
        paths, labels = self._splits[split]
        return ImageFileLoader(
            ImageFiles(paths, labels, transform, self.seed),
            batch_size,
            seed,
            mean=self.mean,
            std=self.std,
            num_workers=self.num_workers,
            device=data_device(self),
            channels_last=self.channels_last,
            **settings,
        )


def _image_files(root: Path, split: str) -> dict[str, list[Path]]:
    """Sorted WordNet ids of a split -> their sorted image files."""
    folder = root / split
    if not folder.is_dir():
        raise DataError(f"ImageNet not found: {folder} does not exist; set IMAGENET_DIR or root to {EXPECTED}")
    classes = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if unknown := [wnid for wnid in classes if wnid not in class_indices()]:
        raise DataError(
            f"{folder / unknown[0]} is not named after one of ImageNet's 1,000 classes: rename or remove it"
        )
    files = {
        wnid: sorted(path for path in (folder / wnid).iterdir() if path.suffix.lower() in SUFFIXES) for wnid in classes
    }
    if not classes:
        raise DataError(f"{folder} holds no classes: expected {EXPECTED}")
    if empty := [wnid for wnid, paths in files.items() if not paths]:
        raise DataError(f"{folder / empty[0]} holds no images ({', '.join(SUFFIXES)}): fill or remove it")
    return files
