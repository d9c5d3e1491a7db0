"""Prepared data on the training device: loading, the order of an epoch, standardising and augmenting in batches."""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from nme.errors import NmeError
from nme.grid import DATASET_FILES
from nme.prepare import sha256
from nme.products import Batch

if TYPE_CHECKING:
    from nme.streamed import Streamed


class Examples(NamedTuple):
    """Some examples as they were prepared, on the device.

    Attributes:
        inputs: (b, *shape), uint8 for images, float32 for signals.
        labels: (b,), int64.
        sizes: (b, 2), height and width where images differ in size and ``inputs`` pads them; else None.
    """

    inputs: Tensor
    labels: Tensor
    sizes: Tensor | None = None


class InOrder:
    """What splits in memory (``Data``) and on disk (``nme.streamed.Streamed``) share."""

    def in_order(self, size: int, share: range | None = None) -> Iterator[Batch]:
        """All examples, or those in ``share``, once, in their order, ``size`` at a time; for evaluation."""
        share = range(len(self.labels)) if share is None else share
        chosen = torch.arange(share.start, share.stop)
        for examples in self.fetch([some for some in chosen.split(size) if len(some)]):
            yield Batch(self.augmented(examples, "none", torch.Generator()), examples.labels)


@dataclass(frozen=True)
class Data(InOrder):
    """One split on a device.

    Attributes:
        inputs: (n, *shape), uint8 for images, float32 for signals.
        labels: (n,), int64.
        mean: per channel, shape (channels, 1, ...), of the training split.
        std: likewise.
    """

    inputs: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one input, as the network sees it."""
        return tuple(self.inputs.shape[1:])

    def order(self, stream: torch.Generator) -> Tensor:
        """The order of an epoch: a permutation of 0 … n − 1, on the CPU."""
        return torch.randperm(len(self.labels), generator=stream)

    def fetch(self, indices: Iterable[Tensor]) -> Iterator[Examples]:
        """The examples of each of these batches, one batch after the other."""
        for chosen in indices:
            chosen = chosen.to(self.labels.device)
            yield Examples(self.inputs.index_select(0, chosen), self.labels.index_select(0, chosen))

    def augmented(
        self, examples: Examples, augment: str, stream: torch.Generator, of: tuple[int, int] | None = None
    ) -> Tensor:
        """Inputs as the network sees them: augmented and standardised, float32, (b, *shape).

        Args:
            examples: from ``fetch``.
            augment: as in the recipe.
            stream: of the batch, on the CPU.
            of: ``(total, first)``: these are the examples from ``first`` on of a batch of ``total``, whose choices are
                drawn together; None: they are the batch.
        """
        inputs = examples.inputs
        if augment == "crop_flip":
            inputs = crop_and_flip(inputs, stream, of)
        return (inputs - self.mean).div_(self.std)

    def batch(self, indices: Tensor, augment: str, stream: torch.Generator) -> Batch:
        """The examples at ``indices``, augmented and standardised."""
        (examples,) = self.fetch([indices])
        return Batch(self.augmented(examples, augment, stream), examples.labels)


def crop_and_flip(images: Tensor, stream: torch.Generator, of: tuple[int, int] | None = None) -> Tensor:
    """Random crop after padding with zeros by 1/8 of the side, and random horizontal flip, image by image.

    Args:
        images: (B, C, H, W), any dtype.
        stream: on the CPU; the choices do not depend on the device.
        of: as in ``Data.augmented``.
    """
    n, channels, height, width = images.shape
    total, first = of or (n, 0)
    pad = height // 8
    choices = torch.randint(2 * pad + 1, (2, total), generator=stream), torch.rand(total, generator=stream) < 0.5
    (top, left), flip = (c[..., first : first + n].to(images.device) for c in choices)
    rows = top[:, None] + torch.arange(height, device=images.device)
    columns = left[:, None] + torch.arange(width, device=images.device)
    columns = torch.where(flip[:, None], columns.flip(1), columns)
    padded = functional.pad(images, (pad, pad, pad, pad)).flatten(2)
    pixels = rows[:, :, None] * (width + 2 * pad) + columns[:, None, :]
    return padded.gather(2, pixels.view(n, 1, -1).expand(-1, channels, -1)).view_as(images)


def load(
    manifest: Path, device: torch.device, resolution: int | None = None, workers: int = 0
) -> tuple["Data | Streamed", "Data | Streamed", dict]:
    """The training split, the test split and the manifest of a prepared dataset.

    Args:
        manifest: its path.
        device: where batches are wanted.
        resolution: of streamed images, as the network sees them: side of a square, px.
        workers: processes that decode streamed images.

    Raises:
        NmeError: a file is missing or is not what the manifest says.
    """
    import pyarrow as pa

    try:
        described = json.loads(manifest.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise NmeError(f"{manifest}: cannot be read ({error}); prepare the dataset again") from None
    if "shards" in described:
        from nme import streamed

        return *streamed.load(manifest, described, device, resolution, workers), described
    shape = tuple(described["shape"])
    column = (-1, *(1 for _ in shape[1:]))
    mean, std = (torch.tensor(described[k], dtype=torch.float32, device=device).view(column) for k in ("mean", "std"))
    splits = []
    for name, expected in described["splits"].items():
        path = manifest.with_name(DATASET_FILES[name])
        try:
            table = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        except (OSError, pa.ArrowInvalid) as error:
            raise NmeError(f"{path}: cannot be read ({error}); prepare the dataset again") from None
        if sha256(path) != expected["sha256"]:
            raise NmeError(f"{path}: is not the file that {manifest.name} describes; prepare the dataset again")
        # By DLPack: to_numpy() imports pandas. The tensors are the memory map, which is only read.
        inputs, labels = torch.from_dlpack(table["input"].flatten()), torch.from_dlpack(table["label"])
        splits.append(Data(inputs.view(-1, *shape).to(device), labels.to(device), mean, std))
    return splits[0], splits[1], described
