"""CIFAR-10 from local files: torchvision's layouts (python or binary batches) or one npz file."""

import os
import pickle
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np
import torch
from torch import Tensor

from data.errors import DataError
from data.tensor_data import TensorDataModule

NPZ = "cifar10.npz"
BINARY = "cifar-10-batches-bin"
PYTHON = "cifar-10-batches-py"
TRAIN_BATCHES = tuple(f"data_batch_{i}" for i in range(1, 6))
TEST_BATCH = "test_batch"
PIXELS = 3 * 32 * 32
EXPECTED = f"a folder with {NPZ}, {BINARY}/ or {PYTHON}/"


class CIFAR10Data(TensorDataModule):
    """50,000 training and 10,000 test images, (3, 32, 32), 10 classes.

    Args:
        root: `cifar10.npz` (train_images (N, 32, 32, 3) uint8, train_labels (N,) integers, test_images, test_labels),
            the folder `cifar-10-batches-bin` or `cifar-10-batches-py`, or a folder that holds one of these; default
            the environment variable CIFAR10_DIR.
        mean, std: default ImageNet's, which the well-known pre-trained CIFAR ResNets take
            (akamaster/pytorch_resnet_cifar10, trainer.py).
        padding, flip: default the augmentation of He et al. 2016 (arXiv:1512.03385), section 4.2.
    For the others see TensorDataModule.
    """

    name = "cifar10"
    num_classes = 10
    input_shape = (3, 32, 32)

    def __init__(
        self,
        root: str | None = None,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        seed: int = 0,
        mean: Sequence[float] = (0.485, 0.456, 0.406),
        std: Sequence[float] = (0.229, 0.224, 0.225),
        padding: int = 4,
        flip: bool = True,
        drop_last: bool = True,
        val_fraction: float = 0.0,
        subset: int | None = None,
        channels_last: bool = False,
        device: str | None = None,
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
        self.root = root

    def _read(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        root = self.root or os.environ.get("CIFAR10_DIR")
        if not root:
            raise DataError(f"CIFAR-10 needs a place to be read from: set CIFAR10_DIR or root to {EXPECTED}")
        path = _find(Path(root))
        if path.is_file():
            return _read_npz(path)
        read = _read_binary if (path / f"{TRAIN_BATCHES[0]}.bin").is_file() else _read_python
        train = [read(path, name) for name in TRAIN_BATCHES]
        if len(sizes := {len(labels) for _, labels in train}) > 1:
            raise DataError(f"{path}: training batches differ in size, {sorted(sizes)} images: get the data set again")
        test_images, test_labels = read(path, TEST_BATCH)
        return (
            torch.cat([images for images, _ in train]),
            torch.cat([labels for _, labels in train]),
            test_images,
            test_labels,
        )


def _find(root: Path) -> Path:
    """The npz file or the folder of batches that root is or holds."""
    if not root.exists():
        raise DataError(f"CIFAR-10 not found: {root} does not exist; set CIFAR10_DIR or root to {EXPECTED}")
    if root.is_file():
        return root
    if (root / NPZ).is_file():
        return root / NPZ
    for folder in (root, root / BINARY, root / PYTHON):
        if (folder / f"{TRAIN_BATCHES[0]}.bin").is_file() or (folder / TRAIN_BATCHES[0]).is_file():
            return folder
    raise DataError(f"CIFAR-10 not found in {root}: expected {EXPECTED}")


def _read_npz(path: Path) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    keys = ("train_images", "train_labels", "test_images", "test_labels")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if missing := [key for key in keys if key not in arrays.files]:
                raise DataError(f"{path} lacks {', '.join(missing)}: expected {', '.join(keys)}")
            read = [arrays[key] for key in keys]
    except DataError:
        raise
    except (OSError, ValueError, EOFError, AttributeError, TypeError, zipfile.BadZipFile, zlib.error) as error:
        # AttributeError, TypeError: np.load gives a plain array when the file is an npy under another name.
        raise DataError(f"{path} is damaged or no npz file ({_one_line(error)}): write or copy it again") from error
    for key, array in zip(keys[::2], read[::2], strict=True):
        if array.dtype != np.uint8 or array.shape[1:] != (32, 32, 3):
            raise DataError(f"{path}: {key} must be (N, 32, 32, 3) uint8, got {array.shape} {array.dtype}")
    train_images, train_labels, test_images, test_labels = read
    return (
        _channels_first(train_images),
        _labels(f"{path}: train_labels", train_labels),
        _channels_first(test_images),
        _labels(f"{path}: test_labels", test_labels),
    )


def _read_binary(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """One batch file: records of a label byte and 3072 pixel bytes (channel, row, column)."""
    path = folder / f"{name}.bin"
    try:
        records = np.fromfile(path, dtype=np.uint8)
    except OSError as error:
        raise DataError(f"{path} cannot be read ({_one_line(error)}): get the data set again") from error
    if records.size == 0 or records.size % (1 + PIXELS):
        raise DataError(f"{path} is truncated: {records.size} bytes are no whole number of images; get it again")
    records = records.reshape(-1, 1 + PIXELS)
    images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32))
    return images, torch.from_numpy(records[:, 0].astype(np.int64))


def _read_python(folder: Path, name: str) -> tuple[Tensor, Tensor]:
    """One batch file: a pickled dictionary with b"data" (N, 3072) uint8 and b"labels", a list of N integers."""
    path = folder / name
    try:
        with path.open("rb") as file:
            batch = _ArrayUnpickler(file).load()
        data, labels = batch[b"data"], batch[b"labels"]
    except FileNotFoundError as error:
        raise DataError(f"{path} is missing: get the data set again") from error
    except Exception as error:  # a damaged pickle raises nearly anything
        raise DataError(f"{path} is damaged or no CIFAR-10 batch ({_one_line(error)}): get it again") from error
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (PIXELS,):
        raise DataError(f"{path}: data must be an array of (N, {PIXELS}) uint8; get it again")
    labels = _labels(f"{path}: labels", np.asarray(labels))
    return torch.from_numpy(np.array(data).reshape(-1, 3, 32, 32)), labels


class _ArrayUnpickler(pickle.Unpickler):
    """Builds plain containers, numbers, bytes and numpy arrays; any other type in the file is refused."""

    _array_types: ClassVar[dict[str, Any]] = {
        "_reconstruct": np.zeros(0).__reduce__()[0],
        "_frombuffer": np.zeros(0).__reduce_ex__(5)[0],
        "ndarray": np.ndarray,
        "dtype": np.dtype,
    }
    _array_modules = ("numpy", "numpy.core.multiarray", "numpy._core.multiarray", "numpy._core.numeric")

    def __init__(self, file: BinaryIO) -> None:
        super().__init__(file, encoding="bytes")

    def find_class(self, module: str, name: str) -> Any:
        if module in self._array_modules and name in self._array_types:
            return self._array_types[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no CIFAR-10 file needs")


def _channels_first(images: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))


def _labels(what: str, labels: np.ndarray) -> Tensor:
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer):
        raise DataError(f"{what} must be (N,) integers, got {labels.shape} {labels.dtype}")
    return torch.from_numpy(labels.astype(np.int64))


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
