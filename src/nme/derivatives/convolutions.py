"""Convolutions with second derivatives at their minimal cost: one product each, by the kernels of training.

Formulas: docs/theory.md, §2.7.

These kernels are PyTorch's or, for signals on the CPU, those of ``nme.derivatives.signals``.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

from nme.derivatives.modes import custom_derivatives_disabled, expects_second_derivatives, needed_gradients
from nme.derivatives.signals import Products

convolution_backward = torch.ops.aten.convolution_backward


class _TwiceDifferentiable(nn.modules.conv._ConvNd):
    """A layer's ``_conv_forward`` with custom derivatives, used when second derivatives will follow.

    PyTorch's double backward always computes all four products, and computes products for weights as convolutions with
    images as kernels. Here each product is computed only if needed, by the kernels of a gradient. With W x for the
    convolution:

    - back from ȳ:         x̄ = Wᵀ ȳ,  W̄ = ȳ xᵀ,  b̄ = Σ ȳ     (``_Pull``)
    - along ẋ, Ẇ, ḃ:       ẏ = W ẋ + Ẇ x + ḃ                  (``_Push``)

    Both maps are linear and adjoint to each other; the derivatives of both in x and W are Ẇᵀ ȳ and ȳ ẋᵀ.
    """

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        kernels = None if custom_derivatives_disabled() else self._kernels(x, weight)
        if kernels is None:
            return super()._conv_forward(x, weight, bias)
        weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)  # same as autocast
        y: Tensor = _Convolution.apply(x, weight, bias, kernels)
        return y

    def _kernels(self, x: Tensor, weight: Tensor) -> "_Kernels | Products | None":
        """Kernels for the products; None: leave the layer to PyTorch."""
        padding = self.padding
        if self.padding_mode != "zeros" or isinstance(padding, str) or x.dim() != weight.dim():
            return None
        plain = self.groups == 1 and self.dilation == (1,) and padding < self.kernel_size  # only for signals
        wide = x.dtype == weight.dtype and x.dtype in (torch.float32, torch.float64)
        if plain and wide and x.device.type == "cpu" and not torch.is_autocast_enabled("cpu"):
            return Products(self.stride[0], padding[0])
        return _Kernels(self.stride, padding, self.dilation, self.groups) if expects_second_derivatives() else None


class Conv1d(_TwiceDifferentiable, nn.Conv1d):
    """``torch.nn.Conv1d``: same parameters, same initialisation."""


class Conv2d(_TwiceDifferentiable, nn.Conv2d):
    """``torch.nn.Conv2d``: same parameters, same initialisation."""


class _Kernels(NamedTuple):
    """PyTorch's kernels of one layer."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    @property
    def settings(self) -> tuple[Any, ...]:
        """Arguments of the kernels."""
        return self.stride, self.padding, self.dilation, False, (0,) * len(self.stride), self.groups

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """W x + b."""
        return torch.convolution(x, weight, bias, *self.settings)

    def pull(self, y: Tensor, x: Tensor, weight: Tensor, mask: tuple[bool, ...]) -> tuple[Tensor | None, ...]:
        """x̄, W̄ and b̄ of ȳ, if selected by the mask."""
        found: tuple[Tensor | None, ...] = convolution_backward(y, x, weight, [len(weight)], *self.settings, mask)
        return found


class _Convolution(Function):
    """y = W x + b; infinitely differentiable in reverse mode."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, kernels: _Kernels | Products) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.kernels = kernels
        return kernels.convolve(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, y: Tensor) -> tuple[Tensor | None, ...]:
        mask = ctx.needs_input_grad[:3]
        pull = _Pull.apply if torch.is_grad_enabled() else _pull
        x, weight = ctx.saved_tensors
        return *pull(y, x, weight, mask, ctx.kernels), None


class _Pull(Function):
    """x̄, W̄ and b̄ of ȳ, if selected by the mask; None otherwise."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, weight: Tensor, mask: tuple[bool, ...], kernels: _Kernels | Products
    ) -> tuple[Tensor | None, ...]:
        ctx.save_for_backward(y, x, weight)
        ctx.kernels = kernels
        ctx.set_materialize_grads(False)
        return kernels.pull(y, x, weight, mask)

    @staticmethod
    def backward(ctx: Any, x1: Tensor | None, w1: Tensor | None, b1: Tensor | None) -> tuple[Tensor | None, ...]:
        y, x, weight = ctx.saved_tensors
        needed = needed_gradients(ctx.needs_input_grad)
        push, pull = (_Push.apply, _Pull.apply) if torch.is_grad_enabled() else (_push, _pull)
        to_y = to_x = to_weight = None
        if needed[0] and (x1 is not None or w1 is not None):
            to_y = push(x1, w1, b1, x, weight, ctx.kernels)
        elif needed[0] and b1 is not None:
            to_y = b1.view(-1, *(1 for _ in y.shape[2:])).expand_as(y)
        if needed[1] and w1 is not None:
            to_x, _, _ = pull(y, x, w1, (True, False, False), ctx.kernels)
        if needed[2] and x1 is not None:
            _, to_weight, _ = pull(y, x1, weight, (False, True, False), ctx.kernels)
        return to_y, to_x, to_weight, None, None


class _Push(Function):
    """ẏ of ẋ, Ẇ and ḃ; each may be None, but not both ẋ and Ẇ."""

    @staticmethod
    def forward(
        ctx: Any,
        x1: Tensor | None,
        w1: Tensor | None,
        b1: Tensor | None,
        x: Tensor,
        weight: Tensor,
        kernels: _Kernels | Products,
    ) -> Tensor:
        ctx.save_for_backward(x1, w1, x, weight)
        ctx.kernels = kernels
        return _push(x1, w1, b1, x, weight, kernels)

    @staticmethod
    def backward(ctx: Any, y: Tensor) -> tuple[Tensor | None, ...]:
        x1, w1, x, weight = ctx.saved_tensors
        needed, to_x, to_weight = ctx.needs_input_grad, None, None
        pull = _Pull.apply if torch.is_grad_enabled() else _pull
        moved = pull(y, x, weight, needed[:3], ctx.kernels) if any(needed[:3]) else (None, None, None)
        if needed[3] and w1 is not None:
            to_x, _, _ = pull(y, x, w1, (True, False, False), ctx.kernels)
        if needed[4] and x1 is not None:
            _, to_weight, _ = pull(y, x1, weight, (False, True, False), ctx.kernels)
        return *moved, to_x, to_weight, None


# What the Functions compute, without their overhead: for a backward pass that is not differentiated again.


def _pull(
    y: Tensor, x: Tensor, weight: Tensor, mask: tuple[bool, ...], kernels: _Kernels | Products
) -> tuple[Tensor | None, ...]:
    return kernels.pull(y, x, weight, mask)


def _push(
    x1: Tensor | None, w1: Tensor | None, b1: Tensor | None, x: Tensor, weight: Tensor, kernels: _Kernels | Products
) -> Tensor:
    if x1 is None:
        return kernels.convolve(x, w1, b1)  # type: ignore[arg-type]  # not both are None
    y = kernels.convolve(x1, weight, b1)
    return y if w1 is None else y.add_(kernels.convolve(x, w1, None))
