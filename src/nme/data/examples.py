"""Examples as they were prepared, and what splits in memory and on disk share."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from nme.derivatives.batch import Batch


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
    """What splits in memory (``Data``) and on disk (``streamed.Streamed``) share."""

    def in_order(self, size: int, share: range | None = None) -> Iterator[Batch]:
        """All examples, or those in ``share``, once, in their order, ``size`` at a time; for evaluation."""
        share = range(len(self.labels)) if share is None else share
        chosen = torch.arange(share.start, share.stop)
        for examples in self.fetch([some for some in chosen.split(size) if len(some)]):
            yield Batch(self.augmented(examples, "none", torch.Generator()), examples.labels)
