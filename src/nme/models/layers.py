"""Building blocks that models share."""

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
