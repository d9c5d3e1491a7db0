"""Batch norm's running statistics: updated once per step, frozen during curvature computations."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn


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
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


@contextmanager
def elementary_batch_norm(model: nn.Module | None) -> Iterator[None]:
    """Inside, batch norm in train mode computes with elementary operations: PyTorch's third derivatives are wrong.

    Running statistics are not updated. Model None: nothing changes.
    """
    layers = [] if model is None else [m for m in model.modules() if _in_train_mode(m) and _is_plain(m)]
    try:
        for layer in layers:
            layer.forward = partial(_normalised, layer)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            del layer.forward


def has_wrong_third_derivative(model: nn.Module) -> bool:
    """True if a batch norm of PyTorch's own is in train mode."""
    return any(_in_train_mode(m) and type(m).__module__ == "torch.nn.modules.batchnorm" for m in model.modules())


def _in_train_mode(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.batchnorm._BatchNorm) and (layer.training or layer.running_mean is None)


def _is_plain(layer: nn.Module) -> bool:
    own = type(layer).__module__ in ("torch.nn.modules.batchnorm", "nme.derivatives.batch_norm")
    return own and "forward" not in vars(layer)


def _normalised(layer: nn.Module, x: Tensor) -> Tensor:
    others, column = [d for d in range(x.dim()) if d != 1], (1, -1, *(1 for _ in x.shape[2:]))
    centred = x - x.mean(others, keepdim=True)
    normal = centred * (centred.square().mean(others, keepdim=True) + layer.eps).rsqrt()
    return normal if layer.weight is None else normal * layer.weight.view(column) + layer.bias.view(column)
