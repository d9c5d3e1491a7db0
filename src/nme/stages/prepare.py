"""Prepare stage: converts a verified dataset into one memory-mapped Arrow file per split, and a manifest.

Arrow schema: ``input``, a fixed-size list of prod(shape) uint8 or float32 values, and ``label``, int64; one record
batch, so that reading copies nothing. The manifest is written last and describes the other files.
"""

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from nme.data.prepared import DATASET_FILES, class_balanced, sha256, with_label_noise
from nme.datasets import DATASETS
from nme.datasets.base import LabelledArrays, Places
from nme.datasets.image_folders import ImageFolders
from nme.errors import NmeError
from nme.grid.specs import PrepareSpec
from nme.outputs.files import atomic


def prepare(spec: PrepareSpec, places: Places, folder: Path, threads: int = 1) -> None:
    """Find, verify and convert a dataset, or a subset of it.

    A streamed dataset becomes shards, see ``prepare_shards``.

    Args:
        spec: which dataset, and which part of it.
        places: folders to search.
        folder: output folder for train.arrow, test.arrow and manifest.json.
        threads: processes that convert a streamed dataset.

    Raises:
        NmeError: the dataset is missing or damaged, or has too few examples for the subset.
    """
    dataset = DATASETS[spec.source]()
    sizes = {"train": spec.train, "test": spec.test}
    if isinstance(dataset, ImageFolders):
        from nme.data.write_shards import Subset, prepare_shards

        assert spec.short_side, "PrepareSpec checks it"
        assert spec.quality, "PrepareSpec checks it"
        subset = Subset(spec.dataset, sizes, spec.short_side, spec.quality)
        return prepare_shards(dataset, subset, spec.as_json(), places, folder, threads)
    try:
        raw = dataset.read(places)
    except NmeError as error:
        raise NmeError(f"{dataset.name}: {error}") from None
    dataset.check(raw)
    manifest: dict[str, Any] = {"spec": spec.as_json(), "source": raw.source, "shape": dataset.shape}
    manifest |= {"classes": dataset.classes, "splits": {}}
    files = [folder / file for file in DATASET_FILES.values()]
    for file in files:  # an older manifest must not describe new data
        file.unlink(missing_ok=True)
    try:
        for name, split in (("train", raw.train), ("test", raw.test)):
            classes = len(dataset.classes)
            chosen = class_balanced(split.labels, sizes[name], classes, f"datasets.{spec.dataset}.{name}")
            labels = split.labels
            if name == "train":
                labels = with_label_noise(labels, spec.label_noise, classes)
                manifest["wrong_labels"] = int((labels != split.labels)[chosen].sum())
                manifest |= _statistics(split.inputs[chosen])
            split = LabelledArrays(split.inputs[chosen], labels[chosen])
            path = folder / DATASET_FILES[name]
            _write_arrow(split, path)
            manifest["splits"][name] = {
                "examples": len(split.labels),
                "per_class": np.bincount(split.labels, minlength=classes).tolist(),
                "sha256": sha256(path),
            }
        with atomic(folder / DATASET_FILES["manifest"]) as path:
            path.write_text(json.dumps(manifest, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except BaseException:
        for file in files:
            file.unlink(missing_ok=True)
        raise


def _statistics(inputs: np.ndarray) -> dict:
    """Mean and standard deviation per channel of the training inputs; training standardises inputs with them."""
    channels = inputs.astype(np.float64).swapaxes(0, 1).reshape(inputs.shape[1], -1)
    return {"mean": channels.mean(1).tolist(), "std": channels.std(1).tolist()}


def _write_arrow(split: LabelledArrays, path: Path) -> None:
    import pyarrow as pa

    size = prod(split.inputs.shape[1:])
    values = pa.array(np.ascontiguousarray(split.inputs).reshape(-1))
    batch = pa.record_batch({"input": pa.FixedSizeListArray.from_arrays(values, size), "label": pa.array(split.labels)})
    with (
        atomic(path) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, batch.schema) as out,
    ):
        out.write_batch(batch)
