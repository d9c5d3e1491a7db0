"""A batch, and its division into parts, which are distributed over processes."""

from typing import NamedTuple

from torch import Tensor


class Division(NamedTuple):
    """Division of a batch into parts; each process has whole parts.

    Attributes:
        micro_batch: examples per part; divides ``total``.
        first: index of this process's first example in the whole batch.
        total: examples in the whole batch.
    """

    micro_batch: int
    first: int
    total: int

    @property
    def parts(self) -> int:
        """Number of parts of the whole batch."""
        return self.total // self.micro_batch


class Batch(NamedTuple):
    """Inputs (b, ...) and class labels (b,) of this process, on the model's device.

    If inputs are bfloat16, forward passes are computed in bfloat16.

    Attributes:
        split: division of the whole batch; None: the batch is whole, and a single part.
    """

    inputs: Tensor
    labels: Tensor
    split: Division | None = None

    @property
    def size(self) -> int:
        """Number of examples in the whole batch."""
        return self.split.total if self.split else len(self.labels)

    def parts(self) -> list["Batch"]:
        """This process's parts, each as a separate batch."""
        if self.split is None:
            return [self]
        size = self.split.micro_batch
        return [Batch(x, y) for x, y in zip(self.inputs.split(size), self.labels.split(size), strict=True)]

    def own(self, drawn: Tensor) -> Tensor:
        """This process's rows of a tensor with one row per example of the whole batch."""
        first = self.split.first if self.split else 0
        return drawn[first : first + len(self.labels)]
