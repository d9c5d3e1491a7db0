"""Prepared examples, and the base class of splits in memory and on disk."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nme.derivatives.batch import Batch


class Examples(NamedTuple):
    """Some prepared examples on the device, before augmentation.

    Attributes:
        inputs: (b, *shape), uint8 for images, float32 for signals.
        labels: (b,), int64.
        sizes: (b, 2), heights and widths if images differ in size and ``inputs`` pads them; otherwise None.
    """

    inputs: Tensor
    labels: Tensor
    sizes: Tensor | None = None


class Split:
    """One split of a dataset: in memory (``Data``) or on disk (``streamed.Streamed``).

    Attributes:
        labels: (n,), int64.
    """

    labels: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one input of the network."""
        raise NotImplementedError

    def order(self, stream: torch.Generator) -> Tensor:
        """Order of an epoch: a permutation of 0 … n − 1, on the CPU."""
        raise NotImplementedError

    def fetch(self, indices: Sequence[Tensor]) -> Iterator[Examples]:
        """Yield the examples of each batch in turn."""
        raise NotImplementedError

    def augmented(
        self, examples: Examples, augment: str, stream: torch.Generator, of: tuple[int, int] | None = None
    ) -> Tensor:
        """Inputs of the network: augmented and standardised, float32, (b, *shape).

        Args:
            examples: from ``fetch``.
            augment: the recipe's setting.
            stream: random stream of the batch, on the CPU, so that choices do not depend on the device.
            of: ``(total, first)``: the examples start at position ``first`` of a batch of ``total``, whose random
                choices are drawn together; None: the examples are the whole batch.
        """
        raise NotImplementedError

    def batch(self, indices: Tensor, augment: str, stream: torch.Generator) -> Batch:
        """The examples at ``indices``, augmented and standardised."""
        raise NotImplementedError

    def in_order(self, size: int, share: range | None = None) -> Iterator[Batch]:
        """Yield all examples, or only the range ``share``, once, in order, in batches of ``size``; for evaluation."""
        share = range(len(self.labels)) if share is None else share
        chosen = torch.arange(share.start, share.stop)
        for examples in self.fetch([some for some in chosen.split(size) if len(some)]):
            yield Batch(self.augmented(examples, "none", torch.Generator()), examples.labels)
