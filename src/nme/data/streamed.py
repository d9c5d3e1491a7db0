"""A streamed dataset: shards of JPEG images, decoded by worker processes, augmented in batches on the device.

An epoch reads its shards one group after the other, each row once: within a group, rows come in any order. That order
is a function of a generator, so an epoch goes on in its middle by asking for the rest of its rows.
"""

import os
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from math import prod
from pathlib import Path

import pyarrow as pa
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info
from torchvision.io import ImageReadMode, decode_jpeg

from nme.data.augment import DRAWS, central_boxes, random_boxes, resized_crops
from nme.data.examples import Examples, InOrder
from nme.data.prepared import SHARDED_FILES, sha256
from nme.derivatives.batch import Batch
from nme.errors import NmeError
from nme.runtime import processes

BUFFER_SHARDS = 16
"""Shards whose rows are mixed: at 1,000 images of 30 kB, half a gigabyte that the system should be able to cache."""


@dataclass(frozen=True)
class Streamed(InOrder):
    """One split on disk.

    Attributes:
        shards: files, in the order of the rows.
        rows: images of each.
        labels: (n,), int64.
        mean: per channel, shape (3, 1, 1), of the training split.
        std: likewise.
        resolution: side of the square that the network sees, px.
        workers: processes that decode; 0: this one does.
    """

    shards: list[Path]
    rows: list[int]
    labels: Tensor
    mean: Tensor
    std: Tensor
    resolution: int
    workers: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input as the network sees it."""
        return (3, self.resolution, self.resolution)

    def order(self, generator: torch.Generator) -> Tensor:
        """The order of an epoch, (n,): the shards in a random order, in groups of ``BUFFER_SHARDS``, each mixed."""
        rows = torch.arange(len(self.labels)).split(self.rows)
        shards = torch.randperm(len(rows), generator=generator).split(BUFFER_SHARDS)
        groups = (torch.cat([rows[shard] for shard in group.tolist()]) for group in shards)
        return torch.cat([group[torch.randperm(len(group), generator=generator)] for group in groups])

    def fetch(self, indices: Sequence[Tensor]) -> Iterator[Examples]:
        """The raw examples of each of these batches in turn, on the device; decoded ahead by the workers."""
        device = self.labels.device
        loader = DataLoader(
            _Decoded(self.shards, self.rows, indices),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # its draw is of no use, and must not be of the global stream
        )
        for batch, (inputs, sizes) in zip(indices, loader, strict=True):
            inputs, sizes = (tensor.to(device, non_blocking=True) for tensor in (inputs, sizes))
            yield Examples(inputs, self.labels[batch.to(device)], sizes)

    def augmented(
        self, examples: Examples, augment: str, stream: torch.Generator, of: tuple[int, int] | None = None
    ) -> Tensor:
        """Standardised inputs (B, 3, resolution, resolution), float32: random or central crops, see ``resized_crop``.

        Args:
            examples: from ``fetch``.
            augment: ``resized_crop_flip``, or ``none`` for the central crop.
            stream: on the CPU; the choices do not depend on the device.
            of: (total, first): the examples are those from ``first`` on of a batch of ``total``, for all of which the
                choices are drawn, so that processes which share a batch share a stream.
        """
        n, device = len(examples.labels), examples.inputs.device
        if augment == "resized_crop_flip":
            total, first = of or (n, 0)
            draws = torch.rand(total, DRAWS, generator=stream, dtype=torch.float64)[first : first + n]
            boxes, flip = random_boxes(examples.sizes, draws.to(device))
        else:
            boxes, flip = central_boxes(examples.sizes), torch.zeros(n, dtype=torch.bool, device=device)
        return resized_crops(examples.inputs, boxes, flip, self.resolution, self.mean, self.std)

    def batch(self, indices: Tensor, augment: str, stream: torch.Generator) -> Batch:
        """The examples at ``indices``, decoded by this process, augmented and standardised."""
        device = self.labels.device
        inputs, sizes = (t.to(device) for t in _Decoded(self.shards, self.rows, [indices])[0])
        examples = Examples(inputs, self.labels[indices.to(device)], sizes)
        return Batch(self.augmented(examples, augment, stream), examples.labels)


class _Decoded(Dataset):
    """Of each batch of row numbers the decoded images (B, 3, H, W), uint8, and their heights and widths (B, 2).

    Images lie in the upper left of what is 0 elsewhere; in memory, (B, W, 3, H), as ``resized_crops`` likes it.
    """

    def __init__(self, shards: list[Path], rows: list[int], batches: Sequence[Tensor]):
        self.shards = shards
        self.ends = torch.tensor(rows).cumsum(0)
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        rows = self.batches[number].cpu()
        shards = torch.bucketize(rows, self.ends, right=True)
        rows = rows - torch.cat([torch.zeros(1, dtype=torch.int64), self.ends])[shards]
        with warnings.catch_warnings():  # the memory maps are read-only, and only read
            warnings.filterwarnings("ignore", message=".*not writable.*")
            images = [self._image(shard, row) for shard, row in zip(shards.tolist(), rows.tolist(), strict=True)]
        sizes = torch.tensor([image.shape[1:] for image in images])
        height, width = sizes.amax(0).tolist()
        canvas = _shared(len(images), width, 3, height).permute(0, 2, 3, 1)
        for place, image, (h, w) in zip(canvas, images, sizes.tolist(), strict=True):
            place[:, :h, :w] = image
        return canvas, sizes

    def _image(self, shard: int, row: int) -> Tensor:
        jpeg = _opened(self.shards[shard])["jpeg"][row].as_buffer()
        return decode_jpeg(torch.frombuffer(jpeg, dtype=torch.uint8), mode=ImageReadMode.RGB)


def _shared(*shape: int) -> Tensor:
    """Bytes 0 in memory that a worker shares with the main process, so that they are not copied on the way."""
    if get_worker_info() is None:
        return torch.zeros(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


@lru_cache(maxsize=2 * BUFFER_SHARDS)
def _opened(path: Path) -> pa.RecordBatch:
    """The mapped shard; the system is asked to read all of it now, since all of it is wanted soon, in any order."""
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def load(
    manifest: Path, described: dict, device: torch.device, resolution: int | None, workers: int
) -> tuple[Streamed, Streamed]:
    """The training and the test split of a prepared dataset, every shard being read once to be verified.

    Of several processes each verifies its share of them.

    Args:
        manifest: its path.
        described: its content.
        device: where batches are wanted.
        resolution: side of the square that the network sees, px.
        workers: processes that decode.

    Raises:
        NmeError: a shard is missing or is not what the manifest says; or ``resolution`` is None.
    """
    if resolution is None:
        raise NmeError(f"{manifest}: is of images of any size (resolution must be a number of px)")
    mean, std = (torch.tensor(described[key], device=device).view(3, 1, 1) for key in ("mean", "std"))
    splits = []
    for name in ("train", "test"):
        folder, shards = manifest.with_name(SHARDED_FILES["shards"]), described["shards"][name]
        paths = [folder / shard["file"] for shard in shards]
        with ThreadPoolExecutor(max(1, workers)) as pool:
            mine = processes.share(len(shards))
            sums = [shard["sha256"] if i in mine else None for i, shard in enumerate(shards)]
            labels = list(pool.map(_verified_labels, paths, sums))
        rows = [shard["rows"] for shard in shards]
        splits.append(Streamed(paths, rows, torch.cat(labels).to(device), mean, std, resolution, workers))
    return splits[0], splits[1]


def _verified_labels(path: Path, expected: str | None) -> Tensor:
    """The shard's labels; without a checksum it is not verified."""
    try:
        found = sha256(path) if expected else None
        labels = torch.tensor(pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)["label"].to_numpy())
    except (OSError, pa.ArrowInvalid) as error:
        raise NmeError(f"{path}: cannot be read ({error}); prepare the dataset again") from None
    if found != expected:
        raise NmeError(f"{path}: is not the file that the manifest describes; prepare the dataset again")
    return labels
