"""Building blocks that models share."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from nme.activations import Activation


class Activate(nn.Module):
    """Applies an activation of the registry; never in place, so that double backward works."""

    def __init__(self, activation: Activation):
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(x)

    def extra_repr(self) -> str:
        return str(self.activation)


class Conv1d(nn.Conv1d):
    """``torch.nn.Conv1d`` (same parameters, same start) computed as windows times a matrix.

    PyTorch's own 1-d convolution reaches a fraction of a core's speed in its double backward; this one is a matrix
    product in every derivative. Measured on one core, 3 layers, batch 128: gradient 9 % faster, gradient penalty 21 %
    (GELU) and 27 % (ReLU). Tensors stay (B, C, L) to the outside and channels-last in memory, so that the windows
    are views.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        (kernel,), (stride,), (padding,) = self.kernel_size, self.stride, self.padding
        x = functional.pad(x.transpose(1, 2), (0, 0, padding, padding)).flatten(1)  # (B, L·C)
        windows = x.unfold(1, kernel * self.in_channels, stride * self.in_channels)  # (B, L', kernel·C)
        if not weight.requires_grad:  # else PyTorch copies them by itself; here it would multiply one by one
            windows = windows.contiguous()
        weight = weight.transpose(1, 2).flatten(1)  # (C', kernel·C)
        return functional.linear(windows, weight, bias).transpose(1, 2)


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm that can run in elementary operations, where PyTorch's own has no third derivatives."""

    elementary = False

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and self.elementary):
            return super().forward(x)
        dtype, others = x.dtype, [d for d in range(x.dim()) if d != 1]
        x = x.to(torch.promote_types(dtype, torch.float32))
        mean = x.mean(others, keepdim=True)
        centred = x - mean
        variance = centred.square().mean(others, keepdim=True)
        if self.track_running_stats:
            with torch.no_grad():
                n = x.numel() / x.shape[1]
                self.num_batches_tracked += 1
                self.running_mean.lerp_(mean.flatten(), self.momentum)
                self.running_var.lerp_(variance.flatten() * n / (n - 1), self.momentum)
        column = (-1, *(1 for _ in others[1:]))
        normal = centred * (variance + self.eps).rsqrt()
        return (normal * self.weight.view(column) + self.bias.view(column)).to(dtype)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d`` for ``elementary_batch_norm``."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d`` for ``elementary_batch_norm``."""


@contextmanager
def elementary_batch_norm(model: nn.Module) -> Iterator[None]:
    """Inside, the model's batch norm in train mode is differentiable any number of times."""
    layers = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    for layer in layers:
        layer.elementary = True
    try:
        yield
    finally:
        for layer in layers:
            layer.elementary = False
