"""Batch norm's running statistics: updated once a step, frozen while curvature is computed."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


class RunningStatistics:
    """Batch norm's running statistics over the parts of a batch: the mean of what each part alone would leave.

    See docs/theory.md, §4.2.
    """

    def __init__(self, model: nn.Module | None):
        """None: the batch is one part, and leaves what it leaves."""
        modules = model.modules() if model else ()
        layers = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        layers = [m for m in layers if m.training and m.track_running_stats]
        self.counts = [m.num_batches_tracked for m in layers]
        self.buffers = [buffer for m in layers for buffer in (m.running_mean, m.running_var)]
        self.before = [buffer.clone() for buffer in (*self.counts, *self.buffers)]

    def begin(self) -> None:
        """Before a part."""
        for buffer, before in zip((*self.counts, *self.buffers), self.before, strict=True):
            buffer.copy_(before)

    def end(self) -> list[Tensor]:
        """After it: what it has left."""
        return [buffer.clone() for buffer in self.buffers]

    def replace(self, means: list[Tensor]) -> None:
        """After all of them."""
        for buffer, mean in zip(self.buffers, means, strict=True):
            buffer.copy_(mean)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norm in train mode normalises with the batch's statistics, and updates no running ones.

    See docs/theory.md, §4.2.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True
