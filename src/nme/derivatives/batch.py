"""A batch, and how it is cut into parts and shared out to processes."""

from typing import NamedTuple

from torch import Tensor


class Split(NamedTuple):
    """How a batch is cut into parts and shared out.

    Attributes:
        micro_batch: examples of a part; divides ``total``.
        first: index of this process's first example in the whole batch; it has whole parts.
        total: examples of the whole batch.
    """

    micro_batch: int
    first: int
    total: int

    @property
    def parts(self) -> int:
        """Of the whole batch."""
        return self.total // self.micro_batch


class Batch(NamedTuple):
    """Inputs (b, ...) and class labels (b,) of this process, on the model's device.

    Inputs in bfloat16 say that forward passes are to be computed in it.

    Attributes:
        split: None: the batch is whole, and one part.
    """

    inputs: Tensor
    labels: Tensor
    split: Split | None = None

    @property
    def size(self) -> int:
        """Examples of the whole batch."""
        return self.split.total if self.split else len(self.labels)

    def parts(self) -> list["Batch"]:
        """This process's parts, each as a batch of its own."""
        if self.split is None:
            return [self]
        size = self.split.micro_batch
        return [Batch(x, y) for x, y in zip(self.inputs.split(size), self.labels.split(size), strict=True)]

    def own(self, drawn: Tensor) -> Tensor:
        """This process's rows of something with a row for each example of the whole batch."""
        first = self.split.first if self.split else 0
        return drawn[first : first + len(self.labels)]
