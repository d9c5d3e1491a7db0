"""Small trees of JPEG images, laid out as ImageNet's, and a dataset that is made of them."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from nme.datasets.image_folders import ImageFolders
from nme.grid.specs import PrepareSpec

CLASSES = ("n01", "n02", "n03")


class Small(ImageFolders):
    """Three classes; the trees are samples of it."""

    name = "small"
    counts = (100, 50)
    classes = CLASSES
    folders = ("small", "small_sample")


def spec_of(**changes: object) -> PrepareSpec:
    """The spec that ``grid.specs.dataset_spec`` would make, for ``Small`` once it is in ``DATASETS``."""
    subset = {"train": None, "test": None, "label_noise": 0.0}
    stored = {"short_side": 24, "quality": 90}
    return PrepareSpec(**{"dataset": "small", "source": "small", **subset, **stored, "version": 1, **changes})


def picture(random: np.random.Generator, height: int, width: int) -> Image.Image:
    """A smooth one, so that JPEG loses little of it."""
    coarse = Image.fromarray(random.integers(0, 256, (3, 3, 3), dtype=np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def write_tree(folder: Path, train: Sequence[int] = (4, 4, 4), test: Sequence[int] = (2, 2, 2), seed: int = 0) -> Path:
    """``small/{train,val}/<class>/*.JPEG``: so many of each class, with sides of 16 to 40 px; returns ``small``."""
    random = np.random.default_rng(seed)
    for split, counts in (("train", train), ("val", test)):
        for name, count in zip(CLASSES, counts, strict=True):
            place = folder / "small" / split / name
            place.mkdir(parents=True)
            for number in range(count):
                picture(random, *random.integers(16, 41, 2)).save(place / f"{name}_{number:03}.JPEG", quality=90)
    return folder / "small"
