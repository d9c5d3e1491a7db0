"""Prepare stage for streamed datasets: converts verified images into shards, described by a manifest.

The images of a split are shuffled over its shards, so that each shard is a mixture of classes. Shards are written in
parallel into ``shards.partial``, an undeclared folder; a resumed job keeps complete shards of the same settings and
images. The folder is renamed when all shards exist. The manifest is written last.
"""

import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from hashlib import sha256
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import Any

import numpy as np

from nme.data.prepared import SHARDED_FILES, class_balanced
from nme.data.shards import Shard, Written, write_shard
from nme.datasets.base import Places
from nme.datasets.image_folders import Found, ImageFolders
from nme.datasets.listing import Listing
from nme.errors import NmeError
from nme.outputs.files import atomic, clear_partial
from nme.outputs.locks import lock_of, one_at_a_time

ROWS = 1000  # approximate number of images per shard
SHUFFLE_SEED = 0


@dataclass(frozen=True)
class Subset:
    """The part of a dataset that is taken, and how its images are stored.

    Attributes:
        dataset: its name in the scale, for messages.
        sizes: examples of ``train`` and ``test``, class-balanced; None: all.
        short_side: px; larger images are stored with their shorter side reduced to it.
        quality: of the stored JPEGs, 1 to 95.
    """

    dataset: str
    sizes: dict[str, int | None]
    short_side: int
    quality: int


def prepare_shards(
    dataset: ImageFolders,
    subset: Subset,
    settings: dict[str, Any],
    places: Places,
    folder: Path,
    threads: int = 1,
    log: Callable[[str], None] = print,
) -> None:
    """Find, verify and convert a streamed dataset, or a subset of it; run it again to continue.

    Every image of the subset is decoded.

    Args:
        dataset: the dataset.
        subset: the part of it that is taken, and how images are stored.
        settings: what the manifest records, from which all of this follows.
        places: folders to search.
        folder: output folder for shards/ and manifest.json.
        threads: processes that decode and encode; the result does not depend on their number.
        log: called with a sentence for each shard.

    Raises:
        NmeError: the dataset is missing or damaged (the message names the file), or has too few examples for the
            subset.
    """
    final, manifest = (folder / SHARDED_FILES[name] for name in ("shards", "manifest"))
    partial = final.with_name(f"{final.name}.partial")
    try:
        found = dataset.find(places)
    except NmeError as error:
        raise NmeError(f"{dataset.name}: {error}") from None
    with one_at_a_time(lock_of(manifest), log) as waited:
        if waited and manifest.exists():
            return
        manifest.unlink(missing_ok=True)  # an older manifest must not describe new data
        clear_partial(partial)
        planned = {name: _plan(dataset, getattr(found, name), subset, name, partial) for name in ("train", "test")}
        shards = [shard for split in planned.values() for shard in split]
        partial.mkdir(parents=True, exist_ok=True)
        written = {}
        for done in _write_all(shards, threads):
            written[done.file] = done
            log(f"{done.file}: {done.rows} images{', kept' if done.kept else ''} ({len(written)}/{len(shards)})")
        for path in partial.iterdir():
            if path.name not in written:  # left by different settings
                path.unlink()
        splits = {name: [written[shard.path.name] for shard in split] for name, split in planned.items()}
        contents = _manifest(dataset, settings, found, planned, splits)
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)
        with atomic(manifest) as path:
            path.write_text(json.dumps(contents, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _plan(dataset: ImageFolders, listing: Listing, subset: Subset, name: str, folder: Path) -> list[Shard]:
    """Plan the shards of a split: its subset, shuffled."""
    chosen = class_balanced(
        listing.labels, subset.sizes[name], len(dataset.classes), f"datasets.{subset.dataset}.{name}"
    )
    order = np.random.Generator(np.random.PCG64(SHUFFLE_SEED)).permutation(chosen)
    return [
        Shard(
            folder / f"{name}-{number:05}.arrow",
            listing.folder,
            [listing.images[i] for i in rows],
            listing.labels[rows].tolist(),
            subset.short_side,
            subset.quality,
        )
        for number, rows in enumerate(np.array_split(order, math.ceil(len(order) / ROWS)))
    ]


def _write_all(shards: list[Shard], threads: int) -> Iterator[Written]:
    """Write the shards in parallel and yield each as soon as it is complete."""
    if threads == 1:
        yield from map(write_shard, shards)
        return
    # Spawned, not forked: the workers import only what shards.py does, and share no lock with threads of pyarrow.
    pool = ProcessPoolExecutor(min(threads, len(shards)), get_context("spawn"), initializer=_end_with_parent)
    try:
        for future in as_completed([pool.submit(write_shard, shard) for shard in shards]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """End this worker when its parent is killed; otherwise it would wait forever."""
    parent = parent_process()
    assert parent, "this is a worker"

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _manifest(
    dataset: ImageFolders,
    settings: dict[str, Any],
    found: Found,
    planned: dict[str, list[Shard]],
    splits: dict[str, list[Written]],
) -> dict:
    """Compose the manifest. Mean and standard deviation are over all pixels of the training images."""
    pixels, total, squares = np.array([shard.sums for shard in splits["train"]], dtype=np.int64).sum(0).T
    mean = total / pixels
    manifest: dict[str, Any] = {"spec": settings, "source": found.source, "classes": dataset.classes}
    manifest |= {"mean": mean.tolist(), "std": np.sqrt(squares / pixels - mean**2).tolist(), "splits": {}, "shards": {}}
    for name, shards in splits.items():
        labels = np.concatenate([shard.labels for shard in planned[name]])
        manifest["splits"][name] = {
            "examples": len(labels),
            "per_class": np.bincount(labels, minlength=len(dataset.classes)).tolist(),
            "sha256": sha256("".join(shard.sha256 for shard in shards).encode()).hexdigest(),
        }
        manifest["shards"][name] = [{"file": s.file, "rows": s.rows, "sha256": s.sha256} for s in shards]
    return manifest
