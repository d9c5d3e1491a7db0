"""Folders of JPEG images by class, as torchvision's ``ImageFolder`` has them: listed and counted, not yet read."""

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
        folder: of the split.
        images: ``<class>/<name>``, below the folder.
        labels: (n,), int64: numbers of the classes.
    """

    folder: Path
    images: list[str]
    labels: np.ndarray


def list_images(folder: Path, classes: tuple[str, ...], official: int) -> Listing:
    """The images of ``<folder>/<class>/*.JPEG``.

    Args:
        folder: of a split.
        classes: names of its folders, in the order of the labels; no other and no fewer.
        official: images of the whole split. With another number it is a sample: as many images of every class.

    Raises:
        NmeError: a class folder is missing or is none of the classes, one has the wrong number of images, or there is
            a file that is no ``*.JPEG``; the message names the folder or the file.
    """
    if not folder.is_dir():
        raise NmeError(f"{folder}: no such folder; expected one with {len(classes)} class folders")
    found = {entry.name for entry in os.scandir(folder) if entry.is_dir()}
    for name in classes:
        if name not in found:
            raise NmeError(f"{folder / name}: this class folder is missing ({len(classes)} classes are expected)")
    if more := found - set(classes):
        raise NmeError(f"{folder / min(more)}: is none of the {len(classes)} classes that are expected")
    images: list[str] = []
    counts = []
    for name in classes:
        files = sorted(os.listdir(folder / name))
        for file in files:
            if not file.endswith(".JPEG"):
                raise NmeError(f"{folder / name / file}: is no *.JPEG; class folders hold nothing else")
        images += [f"{name}/{file}" for file in files]
        counts.append(len(files))
    _check_counts(folder, classes, counts, official)
    return Listing(folder, images, np.repeat(np.arange(len(classes), dtype=np.int64), counts))


def _check_counts(folder: Path, classes: tuple[str, ...], counts: list[int], official: int) -> None:
    if sum(counts) == official and min(counts) > 0:
        return
    usual, classes_with_it = max(Counter(counts).items(), key=lambda item: (item[1], item[0]))
    if classes_with_it < len(classes) / 2 and min(counts) > 0:  # no sample: which class lacks some cannot be told
        raise NmeError(f"{folder}: has {sum(counts):,} images, expected {official:,}")
    for name, count in zip(classes, counts, strict=True):
        if count != usual or count == 0:
            raise NmeError(
                f"{folder / name}: has {count} images, expected {max(usual, 1)} as most classes have here (a sample has"
                f" as many of every class; the whole set has {official:,} images, here are {sum(counts):,})"
            )
