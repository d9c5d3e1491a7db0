"""A streamed dataset: shards of JPEG images, decoded by worker processes, augmented in batches on the device.

An epoch reads its shards one group after the other, each row once; within a group, rows come in random order. The order
is a function of a generator, so an interrupted epoch continues by asking for its remaining rows.
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
from nme.data.examples import Examples, Split
from nme.data.prepared import SHARDED_FILES, sha256
from nme.derivatives.batch import Batch
from nme.errors import NmeError
from nme.runtime import processes
from nme.runtime.transfer import send

BUFFER_SHARDS = 16
"""Shards whose rows are mixed: with 1,000 images of 30 kB each, half a gigabyte for the system to cache."""


@dataclass(frozen=True)
class Streamed(Split):
    """One split on disk.

    Attributes:
        shards: files, in the order of the rows.
        rows: number of images in each file.
        labels: (n,), int64.
        mean: mean of the training split per channel, shape (3, 1, 1).
        std: standard deviation, likewise.
        resolution: side of the network's square input, px.
        workers: processes that decode; 0: this process decodes.
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
        """Shape of one input of the network."""
        return (3, self.resolution, self.resolution)

    def order(self, stream: torch.Generator) -> Tensor:
        """Order of an epoch, (n,): shards in random order; in each group of ``BUFFER_SHARDS``, rows in random order."""
        rows = torch.arange(len(self.labels)).split(self.rows)
        shards = torch.randperm(len(rows), generator=stream).split(BUFFER_SHARDS)
        groups = (torch.cat([rows[shard] for shard in group.tolist()]) for group in shards)
        return torch.cat([group[torch.randperm(len(group), generator=stream)] for group in groups])

    def fetch(self, indices: Sequence[Tensor]) -> Iterator[Examples]:
        """Yield the raw examples of each batch in turn, on the device; workers decode ahead."""
        device = self.labels.device
        loader = DataLoader(
            _Decoded(self.shards, self.rows, indices),
            batch_size=None,
            num_workers=self.workers,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # the loader draws one unused number, never from the global stream
        )
        for batch, (inputs, sizes) in zip(indices, loader, strict=True):
            inputs, sizes = (tensor.to(device, non_blocking=True) for tensor in (inputs, sizes))
            yield Examples(inputs, self.labels[send(batch, device)], sizes)

    def augmented(
        self, examples: Examples, augment: str, stream: torch.Generator, of: tuple[int, int] | None = None
    ) -> Tensor:
        """Standardised inputs (B, 3, resolution, resolution), float32: random or central crops, see ``resized_crops``.

        Args:
            examples: from ``fetch``.
            augment: ``resized_crop_flip``, or ``none`` for the central crop.
            stream: random stream on the CPU, so that choices do not depend on the device.
            of: ``(total, first)``: the examples start at position ``first`` of a batch of ``total``. Random choices are
                drawn for the whole batch, so that processes which share a batch share a stream.
        """
        n, device, sizes = len(examples.labels), examples.inputs.device, examples.sizes
        assert sizes is not None, "fetch gives them"
        if augment == "resized_crop_flip":
            total, first = of or (n, 0)
            draws = torch.rand(total, DRAWS, generator=stream, dtype=torch.float64)[first : first + n]
            boxes, flip = random_boxes(sizes, send(draws, device))
        else:
            boxes, flip = central_boxes(sizes), torch.zeros(n, dtype=torch.bool, device=device)
        return resized_crops(examples.inputs, boxes, flip, self.resolution, self.mean, self.std)

    def batch(self, indices: Tensor, augment: str, stream: torch.Generator) -> Batch:
        """The examples at ``indices``, decoded by this process, augmented and standardised."""
        device = self.labels.device
        inputs, sizes = (t.to(device) for t in _Decoded(self.shards, self.rows, [indices])[0])
        examples = Examples(inputs, self.labels[indices.to(device)], sizes)
        return Batch(self.augmented(examples, augment, stream), examples.labels)


class _Decoded(Dataset):
    """Decoded images (B, 3, H, W), uint8, and their heights and widths (B, 2), for each batch of row numbers.

    Each image is in the upper left corner, padded with 0; the memory order is (B, W, 3, H), the fastest for
    ``resized_crops``.
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
        with warnings.catch_warnings():  # the memory maps are read-only, and never written
            warnings.filterwarnings("ignore", message=".*not writable.*")
            images = [self._image(shard, row) for shard, row in zip(shards.tolist(), rows.tolist(), strict=True)]
        sizes = torch.tensor([image.shape[1:] for image in images])
        height, width = sizes.amax(0).tolist()
        canvas = _shared(len(images), width, 3, height).permute(0, 2, 3, 1)
        for place, image, (h, w) in zip(canvas, images, sizes.tolist(), strict=True):
            place[:, :h, :w] = image
        return canvas, sizes

    def _image(self, shard: int, row: int) -> Tensor:
        jpeg = _map_shard(self.shards[shard])["jpeg"][row].as_buffer()
        return decode_jpeg(torch.frombuffer(jpeg, dtype=torch.uint8), mode=ImageReadMode.RGB)


def _shared(*shape: int) -> Tensor:
    """Zeros in memory that a worker shares with the main process, so that no copy is needed."""
    if get_worker_info() is None:
        return torch.zeros(shape, dtype=torch.uint8)
    storage = torch.UntypedStorage._new_shared(prod(shape))
    return torch.empty(0, dtype=torch.uint8).set_(storage).view(shape)


@lru_cache(maxsize=2 * BUFFER_SHARDS)
def _map_shard(path: Path) -> pa.RecordBatch:
    """Map a shard, and ask the system to read all of it now: all rows are needed soon, in random order."""
    with path.open("rb") as file:
        if hasattr(os, "posix_fadvise"):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    return pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)


def load(
    manifest: Path, contents: dict, device: torch.device, resolution: int | None, workers: int
) -> tuple[Streamed, Streamed]:
    """Load the training and the test split of a prepared dataset; every shard is read once for verification.

    If there are several processes, each verifies its share of the shards.

    Args:
        manifest: path of the manifest.
        contents: content of the manifest.
        device: device of the batches.
        resolution: side of the network's square input, px.
        workers: processes that decode.

    Raises:
        NmeError: a shard is missing or differs from the manifest, or ``resolution`` is None.
    """
    if resolution is None:
        raise NmeError(f"{manifest}: holds images of any size, so resolution must be a number of px")
    mean, std = (torch.tensor(contents[key], device=device).view(3, 1, 1) for key in ("mean", "std"))
    splits = []
    for name in ("train", "test"):
        folder, shards = manifest.with_name(SHARDED_FILES["shards"]), contents["shards"][name]
        paths = [folder / shard["file"] for shard in shards]
        with ThreadPoolExecutor(max(1, workers)) as pool:
            mine = processes.share(len(shards))
            sums = [shard["sha256"] if i in mine else None for i, shard in enumerate(shards)]
            labels = list(pool.map(_verified_labels, paths, sums))
        rows = [shard["rows"] for shard in shards]
        splits.append(Streamed(paths, rows, torch.cat(labels).to(device), mean, std, resolution, workers))
    return splits[0], splits[1]


def _verified_labels(path: Path, expected: str | None) -> Tensor:
    """Read the shard's labels, and verify the shard if a checksum is given."""
    try:
        found = sha256(path) if expected else None
        labels = torch.tensor(pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)["label"].to_numpy())
    except (OSError, pa.ArrowInvalid) as error:
        raise NmeError(f"{path}: cannot be read ({error}). Prepare the dataset again.") from None
    if found != expected:
        raise NmeError(f"{path}: not the file that the manifest describes. Prepare the dataset again.")
    return labels
