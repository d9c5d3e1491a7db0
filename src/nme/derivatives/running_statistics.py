"""Batch norm's running statistics: updated once per step, frozen during curvature computations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from nme.derivatives.network_parts import modules_of
from nme.errors import NmeError

if TYPE_CHECKING:
    from nme.derivatives.evaluation import Facts


class RunningStatistics:
    """Batch norm's running statistics over the parts of a batch: the mean of the updates by each part alone.

    See docs/theory.md, §4.2.
    """

    def __init__(self, model: nn.Module | None):
        """Save the current statistics; model None: the batch is a single part, and nothing is averaged."""
        modules = model.modules() if model else ()
        layers = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        layers = [m for m in layers if m.training and m.track_running_stats]
        self.counts = [m.num_batches_tracked for m in layers if m.num_batches_tracked is not None]
        self.buffers = [b for m in layers for b in (m.running_mean, m.running_var) if b is not None]
        self.before = [buffer.clone() for buffer in (*self.counts, *self.buffers)]

    def begin(self) -> None:
        """Restore the saved statistics; called before each part."""
        for buffer, before in zip((*self.counts, *self.buffers), self.before, strict=True):
            buffer.copy_(before)

    def end(self) -> list[Tensor]:
        """Return the updated statistics; called after each part."""
        return [buffer.clone() for buffer in self.buffers]

    def replace(self, means: list[Tensor]) -> None:
        """Set the mean statistics; called after all parts."""
        for buffer, mean in zip(self.buffers, means, strict=True):
            buffer.copy_(mean)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Inside, batch norm in train mode normalises with the batch's statistics without updating running statistics.

    See docs/theory.md, §4.2.
    """
    modules = model.modules() if torch.compiler.is_compiling() else modules_of(model)
    layers = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


@contextmanager
def held_buffers(facts: Facts | None) -> Iterator[None]:
    """Inside, a backward pass that computes parts of the forward pass again (checkpointing) updates no statistics.

    With momentum 0 an update leaves running statistics as they are; batches are counted by a counter of its own.

    Args:
        facts: of the model; None: nothing is held.

    Raises:
        NmeError: other buffers were updated again; they have changed then.
    """
    layers = [] if facts is None else facts.batch_norms
    owners = [] if facts is None else [m for m in facts.owners if m not in facts.batch_norms]
    buffers = [(m, name, b, b._version) for m in owners for name, b in m._buffers.items() if b is not None]
    before = [(vars(layer), layer.momentum, layer._buffers, layer.num_batches_tracked) for layer in layers]
    try:
        for own, _, of_layer, count in before:
            own["momentum"] = 0.0
            of_layer["num_batches_tracked"] = None if count is None else torch.zeros_like(count)
        yield
    finally:
        for own, momentum, of_layer, count in before:
            own["momentum"], of_layer["num_batches_tracked"] = momentum, count
    for module, name, buffer, version in buffers:
        if module._buffers[name] is not buffer or buffer._version != version:
            place = f"buffer {name} of {type(module).__name__}"
            raise NmeError(f"the backward pass updates {place} again (expected: no checkpointing around it)")
