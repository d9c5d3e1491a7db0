"""Activations for autodiff and networks, with prescribed second derivatives (docs/theory.md, §5.2)."""

from typing import Any

from torch import Tensor, nn
from torch.autograd import Function

from nme.activations import Activation


def activate(x: Tensor, activation: Activation) -> Tensor:
    """φ(x), differentiable at least twice with exactly ``activation.first`` and ``activation.second``."""
    return activation.value(x) if activation.genuine else Prescribed.apply(x, activation)


class Activate(nn.Module):
    """Applies a registered activation, never in place, so that double backward works."""

    def __init__(self, activation: Activation):
        super().__init__()
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return activate(x, self.activation)

    def extra_repr(self) -> str:
        return str(self.activation)


class _Elementwise(Function):
    """y = f(x) elementwise with dy/dx = ``slope(x)``, in reverse mode, forward mode and under ``vmap``.

    Exact for double backward, forward-over-reverse (``jvp`` of ``grad``), reverse-over-forward and third derivatives.
    Not for forward-over-forward (nested ``jvp``): PyTorch does not differentiate a ``jvp`` rule in forward mode.
    """

    generate_vmap_rule = True

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Activation], output: Tensor) -> None:
        x, activation = inputs
        ctx.save_for_backward(x)
        ctx.save_for_forward(x)
        ctx.activation = activation


class _Slope(_Elementwise):
    """φ'(x), with derivative φ''(x)."""

    @staticmethod
    def forward(x: Tensor, activation: Activation) -> Tensor:
        return activation.first(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * ctx.activation.second(x), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (x,) = ctx.saved_tensors
        bend: Tensor = ctx.activation.second(x)
        return tangent * bend


class Prescribed(_Elementwise):
    """φ(x) with derivative φ'(x), whose own derivative is the prescribed φ''(x)."""

    @staticmethod
    def forward(x: Tensor, activation: Activation) -> Tensor:
        return activation.value(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return grad * _Slope.apply(x, ctx.activation), None

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, _: None) -> Tensor:
        (x,) = ctx.saved_tensors
        slope: Tensor = _Slope.apply(x, ctx.activation)
        return tangent * slope
