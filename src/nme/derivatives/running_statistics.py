"""Batch norm's running statistics: updated once per step, frozen during curvature computations."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from nme.derivatives.network_parts import modules_of


class RunningStatistics:
    """Batch norm's running statistics over the parts of a batch: the mean of the updates by each part alone.

    See docs/theory.md, §4.2.
    """

    def __init__(self, model: nn.Module | None):
        """Save the current statistics; model None: the batch is a single part, and nothing is averaged."""
        modules = model.modules() if model else ()
        layers = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        layers = [m for m in layers if m.training and m.track_running_stats]
        self.counts = [m.num_batches_tracked for m in layers]
        self.buffers = [buffer for m in layers for buffer in (m.running_mean, m.running_var)]
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
