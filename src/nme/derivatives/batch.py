"""A batch, and its parts, which may be distributed over processes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor

from nme.derivatives.evaluation import Evaluation
from nme.derivatives.loss import Loss
from nme.derivatives.softmax_loss import CrossEntropy

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

CROSS_ENTROPY = CrossEntropy(ignore_index=None)


class Division(NamedTuple):
    """Division of a batch into parts of equal size; each process has whole parts.

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
    """Inputs (b, ...) and targets of this process, on the model's device; class labels (b,) for cross-entropy.

    If inputs are bfloat16 and there is no ``evaluation``, forward passes are computed in bfloat16.

    Attributes:
        split: division of the whole batch; None: the batch is whole, and a single part.
        loss: of outputs and targets.
        evaluation: computes outputs and targets in its own way, and repeats passes exactly; None: outputs are
            ``model(inputs)``, which has no random numbers.
    """

    inputs: Any
    labels: Any
    split: Division | None = None
    loss: Loss = CROSS_ENTROPY
    evaluation: Evaluation | None = None

    @property
    def size(self) -> int:
        """Number of examples in the whole batch."""
        return self.split.total if self.split else len(self.labels)

    def parts(self) -> list[Batch]:
        """This process's parts, each as a separate batch."""
        if self.split is None:
            return [self]
        size = self.split.micro_batch
        pairs = zip(self.inputs.split(size), self.labels.split(size), strict=True)
        return [Batch(x, y, None, self.loss) for x, y in pairs]

    def own(self, drawn: Tensor) -> Tensor:
        """This process's rows of a tensor with one row per example of the whole batch."""
        first = self.split.first if self.split else 0
        return drawn[first : first + len(self.labels)]


class MicroBatches(NamedTuple):
    """A batch given in parts of any sizes; losses are combined by their weights (``Loss.weight``).

    Attributes:
        items: this process's parts, each a batch of one part with an ``evaluation``.
        group: processes that share the batch; None: this process has all of it.
    """

    items: list[Batch]
    group: ProcessGroup | None = None

    def parts(self) -> list[Batch]:
        """This process's parts."""
        return self.items
