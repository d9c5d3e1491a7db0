"""A split in the memory of the training device: order of an epoch, standardisation and augmentation in batches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nme.data.augment import crop_and_flip
from nme.data.examples import Examples, Split
from nme.derivatives.batch import Batch
from nme.runtime.transfer import send


@dataclass(frozen=True)
class Data(Split):
    """One split on a device.

    Attributes:
        inputs: (n, *shape), uint8 for images, float32 for signals.
        labels: (n,), int64.
        mean: mean of the training split per channel, shape (channels, 1, ...).
        std: standard deviation, likewise.
    """

    inputs: Tensor
    labels: Tensor
    mean: Tensor
    std: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input of the network."""
        return tuple(self.inputs.shape[1:])

    def order(self, stream: torch.Generator) -> Tensor:
        """Order of an epoch: a permutation of 0 … n − 1, on the CPU."""
        return torch.randperm(len(self.labels), generator=stream)

    def fetch(self, indices: Sequence[Tensor]) -> Iterator[Examples]:
        """Yield the examples of each batch in turn."""
        for chosen in indices:
            chosen = send(chosen, self.labels.device)
            yield Examples(self.inputs.index_select(0, chosen), self.labels.index_select(0, chosen))

    def augmented(
        self, examples: Examples, augment: str, stream: torch.Generator, of: tuple[int, int] | None = None
    ) -> Tensor:
        """Inputs of the network: augmented and standardised, float32, (b, *shape).

        Args:
            examples: from ``fetch``.
            augment: the recipe's setting.
            stream: random stream of the batch, on the CPU.
            of: ``(total, first)``: the examples start at position ``first`` of a batch of ``total``, whose random
                choices are drawn together; None: the examples are the whole batch.
        """
        inputs = examples.inputs
        if augment == "crop_flip":
            inputs = crop_and_flip(inputs, stream, of)
        return (inputs - self.mean).div_(self.std)

    def batch(self, indices: Tensor, augment: str, stream: torch.Generator) -> Batch:
        """The examples at ``indices``, augmented and standardised."""
        (examples,) = self.fetch([indices])
        return Batch(self.augmented(examples, augment, stream), examples.labels)
