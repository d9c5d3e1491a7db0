"""Result of a training method's step."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Update(NamedTuple):
    """Direction of a step, and the values that the step records.

    Attributes:
        direction: used in place of g, one tensor per parameter with ``requires_grad``, without graph. After
            ``Method.backward`` it may be the memory of ``.grad``: clone it before you clip.
        loss: L of the batch, a scalar.
        output: the model's output for this process's examples, without graph; logits (b, C) for cross-entropy. A list
            with one entry per micro-batch from ``Method.accumulate`` and from models in DistributedDataParallel.
        gradient_norm: ‖g‖, a scalar.
        used: for each parameter, True if the loss depends on it.
    """

    direction: list[Tensor]
    loss: Tensor
    output: Tensor | list[Tensor]
    gradient_norm: Tensor
    used: list[bool] | None = None
