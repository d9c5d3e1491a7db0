"""Prepare stage: a verified dataset becomes one memory-mapped Arrow file per split, and a manifest.

Arrow schema: ``input``, a fixed-size list of prod(shape) uint8 or float32 values, and ``label``, int64; one record
batch, so that reading copies nothing. The manifest is written last and says what the other files hold.
"""

import hashlib
import json
from math import prod
from pathlib import Path

import numpy as np

from nme.datasets import DATASETS, Places, Split
from nme.errors import NmeError, unknown
from nme.files import atomic
from nme.grid import DATASET_FILES

SUBSET_SEED = 0
LABEL_NOISE_SEED = 1


def prepare(spec: dict, places: Places, folder: Path, threads: int = 1) -> None:
    """Find, verify, take the subset of, and convert a dataset.

    A streamed one becomes shards, see ``prepare_shards``.

    Args:
        spec: ``grid.dataset_spec``.
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
        from nme.prepare_shards import prepare_shards

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


def sha256(path: Path) -> str:
    """Checksum of a file, as in the manifest."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def class_balanced(labels: np.ndarray, size: int | None, classes: int, key: str) -> np.ndarray:
    """Indices of a class-balanced subset in a fixed random order of its own; None: everything, in its order.

    Class sizes differ by at most one. A larger subset contains the smaller ones of every class.

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
    """A fraction of the labels replaced by ones drawn uniformly from all classes, the right one included.

    Which ones, and by what, depends on an example's place in the whole training split only: any subset of it has the
    same labels, and a larger fraction replaces those of a smaller one too.

    Args:
        labels: of the whole training split, (n,).
        fraction: 0 to 1; each label is replaced with this probability.
        classes: how many there are.
    """
    random = np.random.Generator(np.random.PCG64(LABEL_NOISE_SEED))
    replaced, drawn = random.random(len(labels)) < fraction, random.integers(classes, size=len(labels))
    return np.where(replaced, drawn, labels)


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
