"""Base class of datasets: how to find, verify and read one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nme.errors import NmeError
from nme.registry import Registry

DATASETS: Registry[type[Dataset]] = Registry("dataset")


@dataclass(frozen=True)
class LabelledArrays:
    """Inputs (n, *shape), uint8 for images and float32 for signals, and labels (n,), int64."""

    inputs: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Raw:
    """A dataset as read, not yet checked.

    Attributes:
        source: description of the place where it was found.
        partial: True if it may be a balanced part of the official set (a folder of images).
    """

    train: LabelledArrays
    test: LabelledArrays
    source: str
    partial: bool = False


@dataclass(frozen=True)
class Places:
    """Folders to search: the user's folders, then a folder for downloads (None: do not download)."""

    folders: tuple[Path, ...] = ()
    downloads: Path | None = None


class Dataset:
    """Describes a dataset and reads it.

    Attributes:
        name: spelling in configurations and paths.
        shape: shape of one input, channels first; for a streamed dataset only (channels,), since the recipe sets the
            resolution.
        classes: names in the order of the labels.
        counts: numbers of training and test examples.
        streamed: True if it stays on disk, as shards of images; otherwise it is read into memory.
    """

    streamed = False
    counts: tuple[int, int]
    name: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]

    def read(self, places: Places) -> Raw:
        """Find, verify and read the dataset.

        Raises:
            NmeError: the dataset was not found (the message names the files, the folders and the remedy), or a file is
                damaged (the message names the file).
        """
        raise NotImplementedError

    def check(self, raw: Raw) -> None:
        """Check shapes, classes and counts; a partial set must have the same number of examples in every class.

        Raises:
            NmeError: one of them is wrong.
        """
        for split, data, expected in (("train", raw.train, self.counts[0]), ("test", raw.test, self.counts[1])):
            n = len(data.labels)
            if data.inputs.shape != (n, *self.shape):
                raise NmeError(f"{raw.source}: {split} inputs are {data.inputs.shape}, expected {(n, *self.shape)}")
            counts = np.bincount(data.labels, minlength=len(self.classes))
            if len(counts) != len(self.classes) or (counts == 0).any():
                found = int((counts > 0).sum())
                raise NmeError(f"{raw.source}: {split} has {found} classes, expected {len(self.classes)}")
            if n != expected and not raw.partial:
                raise NmeError(f"{raw.source}: {split} has {n} examples, expected {expected}")
            if raw.partial and len(set(counts)) > 1:
                sizes = ", ".join(f"{name} {count}" for name, count in zip(self.classes, counts, strict=True))
                raise NmeError(f"{raw.source}: {split} classes differ in size ({sizes}). Add the missing images.")


DIGITS = tuple("0123456789")
