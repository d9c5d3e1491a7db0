"""Names of prepared files, their checksums, class-balanced subsets and label noise."""

import hashlib
from pathlib import Path

import numpy as np

from nme.errors import NmeError

DATASET_FILES = {"train": "train.arrow", "test": "test.arrow", "manifest": "manifest.json"}
SHARDED_FILES = {"shards": "shards", "manifest": "manifest.json"}  # for streamed datasets


SUBSET_SEED = 0
LABEL_NOISE_SEED = 1


def sha256(path: Path) -> str:
    """SHA-256 of a file, for the manifest."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def class_balanced(labels: np.ndarray, size: int | None, classes: int, key: str) -> np.ndarray:
    """Indices of a class-balanced subset in a fixed random order; size None: everything, in the original order.

    Class sizes differ by at most one. In every class, a larger subset contains the smaller ones.

    Raises:
        NmeError: a class has too few examples; the message names ``key``.
    """
    if size is None:
        return np.arange(len(labels))
    smallest = int(np.bincount(labels, minlength=classes).min())
    if size > smallest * classes:
        raise NmeError(f"{key} is {size} (allowed: up to {smallest * classes}, {smallest} per class; or null for all)")
    random = np.random.Generator(np.random.PCG64(SUBSET_SEED))
    order = random.permutation(len(labels))
    quota = [size // classes + (c < size % classes) for c in range(classes)]
    return np.concatenate([order[labels[order] == c][: quota[c]] for c in range(classes)])


def with_label_noise(labels: np.ndarray, fraction: float, classes: int) -> np.ndarray:
    """Replace a fraction of the labels by labels drawn uniformly from all classes, including the correct one.

    Both the choice and the new label depend only on the example's position in the whole training split: every subset
    has the same labels, and a larger fraction also replaces all labels that a smaller one replaces.

    Args:
        labels: labels of the whole training split, (n,).
        fraction: probability of replacing a label, 0 to 1.
        classes: number of classes.
    """
    random = np.random.Generator(np.random.PCG64(LABEL_NOISE_SEED))
    replaced, drawn = random.random(len(labels)) < fraction, random.integers(classes, size=len(labels))
    return np.where(replaced, drawn, labels)
