"""Data sets as LightningDataModules; imports nothing of the other packages."""

from collections.abc import Callable
from typing import Any

from pytorch_lightning import LightningDataModule

from data.cifar10 import CIFAR10Data
from data.digits import DigitsData
from data.errors import DataError
from data.imagenet import ImageNetData

DATA_SETS: dict[str, Callable[..., LightningDataModule]] = {
    "digits": DigitsData,
    "cifar10": CIFAR10Data,
    "imagenet": ImageNetData,
}


def make_data(name: str, **kwargs: Any) -> LightningDataModule:
    """The data module of this name, made with the keyword arguments.

    Raises:
        DataError: unknown name.
    """
    if name not in DATA_SETS:
        raise DataError(f"unknown data set {name!r}: choose one of {', '.join(DATA_SETS)}")
    return DATA_SETS[name](**kwargs)


__all__ = ["DATA_SETS", "CIFAR10Data", "DataError", "DigitsData", "ImageNetData", "make_data"]
