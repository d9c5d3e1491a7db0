"""What a dataset is: where to find it, how to verify it, how to read it."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nme.errors import NmeError
from nme.registry import Registry

DATASETS = Registry("dataset")


@dataclass(frozen=True)
class Split:
    """Inputs (n, *shape), uint8 for images and float32 for signals, and labels (n,), int64."""

    inputs: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class Raw:
    """A dataset as it was found.

    Attributes:
        source: where.
        partial: whether it may be a balanced part of the official set (a folder of images), not all of it.
    """

    train: Split
    test: Split
    source: str
    partial: bool = False


@dataclass(frozen=True)
class Places:
    """Where to look: folders that a user has, then a folder to download to (None: do not download)."""

    folders: tuple[Path, ...] = ()
    downloads: Path | None = None


class Dataset:
    """Describes a dataset and reads it.

    Attributes:
        name: as in configurations and paths.
        shape: of one input, channels first; of a streamed dataset (channels,), the rest being the recipe's resolution.
        classes: names in the order of the labels.
        counts: training and test examples.
        streamed: whether it stays on disk, as shards of images; else it is read into memory.
    """

    streamed = False
    counts: tuple[int, int]
    name: str
    shape: tuple[int, ...]
    classes: tuple[str, ...]

    def read(self, places: Places) -> Raw:
        """Find, verify and read the dataset.

        Raises:
            NmeError: it is not there (the message says what was looked for, where, and how to get it), or a file is
                damaged (the message names the file).
        """
        raise NotImplementedError

    def check(self, raw: Raw) -> None:
        """Shapes, classes and counts are what they should be; a partial set has as many examples of every class.

        Raises:
            NmeError: they are not.
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
                raise NmeError(f"{raw.source}: {split} has classes of different sizes ({sizes}); an image is missing")


DIGITS = tuple("0123456789")
