"""A part of CIFAR-10 in one file that travels: bytes of the images and labels, in the order of the prepare stage."""

import tempfile
from pathlib import Path

import numpy as np
import torch

TRAIN, TEST = 10_000, 2_000
KEYS = ("train_images", "train_labels", "test_images", "test_labels")


def pack(folder: Path, output: Path, train: int = TRAIN, test: int = TEST) -> int:
    """Write a class-balanced part of the CIFAR-10 in ``folder`` (docs/data.md has the layouts); returns its bytes.

    Needs the packages of the pipeline. 12,000 images are 37 MB.
    """
    from nme.data.load import load
    from nme.datasets.base import Places
    from nme.grid.specs import STAGE_VERSION, PrepareSpec
    from nme.stages.prepare import prepare

    settings = {"dataset": "cifar10", "source": "cifar10", "train": train, "test": test, "label_noise": 0.0}
    with tempfile.TemporaryDirectory() as temporary:
        made = Path(temporary) / "cifar10"
        prepare(PrepareSpec(**settings, version=STAGE_VERSION["prepare"]), Places((folder,)), made, threads=1)
        splits = load(made / "manifest.json", torch.device("cpu"))[:2]
        arrays = [tensor.numpy() for split in splits for tensor in (split.inputs, split.labels.to(torch.uint8))]
        with output.open("wb") as file:
            np.savez(file, **dict(zip(KEYS, arrays, strict=True)))
    return output.stat().st_size
