"""Prepare stage of streamed datasets: images that are verified become shards, and a manifest says what they hold.

The images of a split are shuffled over its shards, so that each is a mixture of classes. Shards are written in
parallel into ``shards.partial``, an undeclared folder; a job that goes on keeps those that are whole and of the same
settings and images. The folder is renamed when all are there. The manifest is written last.
"""

import json
import math
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from hashlib import sha256
from multiprocessing import get_context, parent_process
from pathlib import Path

import numpy as np

from nme.data.prepared import SHARDED_FILES, class_balanced
from nme.data.shards import Shard, Written, write_shard
from nme.datasets.base import Places
from nme.datasets.image_folders import Found, ImageFolders
from nme.datasets.listing import Listing
from nme.errors import NmeError
from nme.outputs.files import atomic, clear_partial
from nme.outputs.locks import lock_of, one_at_a_time

ROWS = 1000  # images of a shard, about
SHUFFLE_SEED = 0


def prepare_shards(
    dataset: ImageFolders,
    spec: dict,
    places: Places,
    folder: Path,
    threads: int = 1,
    log: Callable[[str], None] = print,
) -> None:
    """Find, verify, take the subset of, and convert a streamed dataset; run it again to continue.

    Args:
        dataset: which.
        spec: ``grid.specs.dataset_spec``.
        places: where to look for it.
        folder: gets shards/ and manifest.json.
        threads: processes that decode and encode; the result does not depend on it.
        log: told of each shard.

    Raises:
        NmeError: it is missing or damaged (the message names the file), or has too few examples for the subset. Every
            image that is taken is decoded.
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
        manifest.unlink(missing_ok=True)  # an older one must not describe new data
        clear_partial(partial)
        planned = {name: _planned(dataset, getattr(found, name), spec, name, partial) for name in ("train", "test")}
        shards = [shard for split in planned.values() for shard in split]
        partial.mkdir(parents=True, exist_ok=True)
        written = {}
        for done in _written(shards, threads):
            written[done.file] = done
            log(f"{done.file}: {done.rows} images{', was there' if done.kept else ''} ({len(written)}/{len(shards)})")
        for path in partial.iterdir():
            if path.name not in written:  # of other settings
                path.unlink()
        splits = {name: [written[shard.path.name] for shard in split] for name, split in planned.items()}
        described = _described(dataset, spec, found, planned, splits)
        shutil.rmtree(final, ignore_errors=True)
        partial.replace(final)
        with atomic(manifest) as path:
            path.write_text(json.dumps(described, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _planned(dataset: ImageFolders, listing: Listing, spec: dict, name: str, folder: Path) -> list[Shard]:
    """The shards of a split: its subset in an order of its own."""
    chosen = class_balanced(listing.labels, spec[name], len(dataset.classes), f"datasets.{spec['dataset']}.{name}")
    order = np.random.Generator(np.random.PCG64(SHUFFLE_SEED)).permutation(chosen)
    return [
        Shard(
            folder / f"{name}-{number:05}.arrow",
            listing.folder,
            [listing.images[i] for i in rows],
            listing.labels[rows].tolist(),
            spec["short_side"],
            spec["quality"],
        )
        for number, rows in enumerate(np.array_split(order, math.ceil(len(order) / ROWS)))
    ]


def _written(shards: list[Shard], threads: int) -> Iterator[Written]:
    """The shards, each as soon as it is there."""
    if threads == 1:
        yield from map(write_shard, shards)
        return
    # Started afresh, not forked: the workers import what shards.py does, and share no lock with threads of pyarrow.
    pool = ProcessPoolExecutor(min(threads, len(shards)), get_context("spawn"), initializer=_end_with_parent)
    try:
        for future in as_completed([pool.submit(write_shard, shard) for shard in shards]):
            yield future.result()
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Of a parent that was killed, the workers would wait for ever."""

    def watch() -> None:
        parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _described(
    dataset: ImageFolders, spec: dict, found: Found, planned: dict[str, list[Shard]], splits: dict[str, list[Written]]
) -> dict:
    """The manifest. Mean and standard deviation are over all pixels of the training images."""
    pixels, total, squares = np.sum([shard.sums for shard in splits["train"]], axis=0, dtype=np.int64).T
    mean = total / pixels
    manifest = {"spec": spec, "source": found.source, "classes": dataset.classes}
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
