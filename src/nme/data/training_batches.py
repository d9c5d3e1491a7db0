"""Random batches of the training data, in the form that training uses, for measurement."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from nme.data.examples import Split
from nme.derivatives.batch import Batch, Division
from nme.errors import NmeError
from nme.runtime.random_streams import stream


@dataclass(frozen=True)
class TrainingBatches:
    """Random whole batches of the training data, augmented and cut into parts as in training.

    A function of the data, the recipe and the seed: each iteration gives the same batches. They are the first batches
    of an epoch in random order, continued with further epochs if one has too few.

    Attributes:
        data: the training split (``in_memory.Data`` or ``streamed.Streamed``).
        batch_size: examples per batch.
        micro_batch: examples per part of a batch; None: a single part.
        augment: the recipe's setting.
        seed: decides the batches, which are the same for every activation.
        number: number of batches.
    """

    data: Split
    batch_size: int
    micro_batch: int | None
    augment: str
    seed: int
    number: int

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches.

        Raises:
            NmeError: the training data has fewer examples than a batch.
        """
        split = Division(self.micro_batch, 0, self.batch_size) if self.micro_batch else None
        for number, examples in enumerate(self.data.fetch(self._indices())):
            augment = self._stream("augment", number)
            inputs = self.data.augmented(examples, self.augment, augment)
            yield Batch(inputs, examples.labels, split)

    def _indices(self) -> list[Tensor]:
        size, examples = self.batch_size, len(self.data.labels)
        if size > examples:
            raise NmeError(f"batch_size is {size} (allowed: up to {examples}, the training examples)")
        found: list[Tensor] = []
        for epoch in range(math.ceil(self.number / (examples // size))):
            found += self.data.order(self._stream("order", epoch))[: examples // size * size].split(size)
        return found[: self.number]

    def _stream(self, purpose: str, position: int) -> torch.Generator:
        return stream(self.seed, f"update_shares {purpose}", position)
