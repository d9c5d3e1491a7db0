"""Listing and counting of JPEG images in one folder per class (the layout of torchvision's ``ImageFolder``)."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nme.errors import NmeError


@dataclass(frozen=True)
class Listing:
    """The images of one split, class by class and sorted by name.

    Attributes:
        folder: folder of the split.
        images: ``<class>/<name>``, relative to the folder.
        labels: (n,), int64: class indices.
    """

    folder: Path
    images: list[str]
    labels: np.ndarray


def list_images(folder: Path, classes: tuple[str, ...], official: int) -> Listing:
    """List the images of ``<folder>/<class>/*.JPEG``.

    Args:
        folder: folder of a split.
        classes: names of exactly the class folders, in the order of the labels.
        official: number of images in the whole split. A folder with a different number must be a sample, with equally
            many images in every class.

    Raises:
        NmeError: a class folder is missing, is not one of the classes or has the wrong number of images, or a file is
            not a ``*.JPEG``; the message names the folder or the file.
    """
    if not folder.is_dir():
        raise NmeError(f"{folder}: no such folder (expected: one with {len(classes)} class folders)")
    found = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    for name in classes:
        if name not in found:
            raise NmeError(f"{folder / name}: this class folder is missing (expected: {len(classes)} classes)")
    if more := found - set(classes):
        raise NmeError(f"{folder / min(more)}: not one of the {len(classes)} expected classes. Remove this folder.")
    images: list[str] = []
    counts = []
    for name in classes:
        files = sorted(os.listdir(folder / name))
        for file in files:
            if not file.endswith(".JPEG"):
                raise NmeError(f"{folder / name / file}: not a *.JPEG. Remove it: class folders hold only images.")
        images += [f"{name}/{file}" for file in files]
        counts.append(len(files))
    _check_counts(folder, classes, counts, official)
    return Listing(folder, images, np.repeat(np.arange(len(classes), dtype=np.int64), counts))


def _check_counts(folder: Path, classes: tuple[str, ...], counts: list[int], official: int) -> None:
    if sum(counts) == official and min(counts) > 0:
        return
    usual, classes_with_it = max(Counter(counts).items(), key=lambda item: (item[1], item[0]))
    if classes_with_it < len(classes) / 2 and min(counts) > 0:  # not a sample: any class may be incomplete
        raise NmeError(f"{folder}: has {sum(counts):,} images, expected {official:,}")
    for name, count in zip(classes, counts, strict=True):
        if count != usual or count == 0:
            raise NmeError(
                f"{folder / name}: has {count} images, expected {max(usual, 1)} as in most classes here (a sample has"
                f" equally many in every class; the whole set has {official:,} images, this one {sum(counts):,})"
            )
