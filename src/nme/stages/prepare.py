"""Prepare stage: a verified dataset becomes one memory-mapped Arrow file per split, and a manifest.

Arrow schema: ``input``, a fixed-size list of prod(shape) uint8 or float32 values, and ``label``, int64; one record
batch, so that reading copies nothing. The manifest is written last and says what the other files hold.
"""

import json
from math import prod
from pathlib import Path

import numpy as np

from nme.data.prepared import DATASET_FILES, class_balanced, sha256, with_label_noise
from nme.datasets import DATASETS
from nme.datasets.base import Places, Split
from nme.errors import NmeError, unknown
from nme.outputs.files import atomic


def prepare(spec: dict, places: Places, folder: Path, threads: int = 1) -> None:
    """Find, verify, take the subset of, and convert a dataset.

    A streamed one becomes shards, see ``prepare_shards``.

    Args:
        spec: ``grid.specs.dataset_spec``.
        places: where to look for it.
        folder: gets train.arrow, test.arrow and manifest.json.
        threads: processes that convert a streamed dataset.

    Raises:
        NmeError: it is missing or damaged, or has too few examples for the subset.
    """
    if spec["source"] not in DATASETS:
        raise NmeError(unknown("dataset", spec["source"], DATASETS))
    dataset = DATASETS[spec["source"]]()
    if dataset.streamed:
        from nme.data.write_shards import prepare_shards

        return prepare_shards(dataset, spec, places, folder, threads)
    try:
        raw = dataset.read(places)
    except NmeError as error:
        raise NmeError(f"{dataset.name}: {error}") from None
    dataset.check(raw)
    manifest = {"spec": spec, "source": raw.source, "shape": dataset.shape, "classes": dataset.classes, "splits": {}}
    files = [folder / file for file in DATASET_FILES.values()]
    for file in files:  # an older manifest must not describe new data
        file.unlink(missing_ok=True)
    try:
        for name, split in (("train", raw.train), ("test", raw.test)):
            classes = len(dataset.classes)
            chosen = class_balanced(split.labels, spec[name], classes, f"datasets.{spec['dataset']}.{name}")
            labels = split.labels
            if name == "train":
                labels = with_label_noise(labels, spec["label_noise"], classes)
                manifest["wrong_labels"] = int((labels != split.labels)[chosen].sum())
                manifest |= _statistics(split.inputs[chosen])
            split = Split(split.inputs[chosen], labels[chosen])
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
    """Mean and standard deviation per channel of the training inputs, which training standardises with."""
    channels = inputs.astype(np.float64).swapaxes(0, 1).reshape(inputs.shape[1], -1)
    return {"mean": channels.mean(1).tolist(), "std": channels.std(1).tolist()}


def _write_arrow(split: Split, path: Path) -> None:
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
