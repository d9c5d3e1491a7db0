"""Prepared examples, and the base class of splits in memory and on disk."""

from collections.abc import Iterator
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


class InOrder:
    """Base class of splits in memory (``Data``) and on disk (``streamed.Streamed``)."""

    def in_order(self, size: int, share: range | None = None) -> Iterator[Batch]:
        """Yield all examples, or only the range ``share``, once, in order, in batches of ``size``; for evaluation."""
        share = range(len(self.labels)) if share is None else share
        chosen = torch.arange(share.start, share.stop)
        for examples in self.fetch([some for some in chosen.split(size) if len(some)]):
            yield Batch(self.augmented(examples, "none", torch.Generator()), examples.labels)
