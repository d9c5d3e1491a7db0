"""Batch norm in train mode with second derivatives in a few passes over memory (docs/theory.md, §4.3).

PyTorch's own batch norm takes about 20 passes for the second derivative, a fifth of a gradient penalty's step in a wide
residual network, and its third derivatives are wrong. Here each derivative is a closed form around PyTorch's fused
kernels.

For one channel with n entries x, x̂ = (x − mean) r, r = 1/√(variance + ε), and y = w x̂ + b. With P(t) = r (t − mean t −
x̂ mean(t x̂)), the derivative of x̂ along t, which is symmetric:

- back from ȳ:         x̄ = w P(ȳ),  w̄ = Σ ȳ x̂,  b̄ = Σ ȳ                       (``_Backward``)
- along ẋ, ẇ, ḃ:       ẏ = w P(ẋ) + ẇ x̂ + ḃ                                   (``_Tangent``)

Both maps are linear and adjoint to each other, and both are differentiated in x and w through the same form
⟨ȳ, ẏ⟩ = ⟨ȳ, w P(ẋ)⟩ + ẇ Σ ȳ x̂ + ḃ Σ ȳ (``_Curved``). Double backward and the gradient of Jv need nothing more.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd import Function

from nme.derivatives.elementary import batch_norm
from nme.derivatives.modes import custom_derivatives_disabled, needed_gradients

native_batch_norm_backward = torch.ops.aten.native_batch_norm_backward


class _BatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm, with (B, C, ...) inputs; in train mode exact up to second derivatives, in reverse mode.

    Made with running statistics and a momentum; ``frozen_statistics`` only stops their updates.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return _unrolled(super().forward(_rows(x)), x)
        if custom_derivatives_disabled():
            return self._elementary(x)
        statistics = (self.running_mean, self.running_var) if self.track_running_stats else (None, None)
        if x.numel() == x.shape[1]:  # PyTorch's error
            raise ValueError(f"Expected more than 1 value per channel when training, got input size {x.shape}")
        if self.track_running_stats:
            self.num_batches_tracked.add_(1)
        y: Tensor = _Forward.apply(x, self.weight, self.bias, *statistics, self.momentum, self.eps)
        return y

    def _elementary(self, x: Tensor) -> Tensor:
        """Compute with operations that a compiler can fuse, and that have derivatives of every order and mode."""
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        y, mean, variance = batch_norm(wide, self.weight, self.bias, self.eps)
        if self.track_running_stats:
            with torch.no_grad():
                n = x.numel() / x.shape[1]
                self.num_batches_tracked.add_(1)
                self.running_mean.lerp_(mean.flatten(), self.momentum)
                self.running_var.lerp_(variance.flatten() * n / (n - 1), self.momentum)
        return y.to(x.dtype)


class BatchNorm1d(_BatchNorm, nn.BatchNorm1d):
    """``torch.nn.BatchNorm1d``, differentiated as above."""


class BatchNorm2d(_BatchNorm, nn.BatchNorm2d):
    """``torch.nn.BatchNorm2d``, differentiated as above."""


class _Forward(Function):
    """y of x (B, C, ...), w (C,) and b (C,); updates the running statistics."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        momentum: float,
        eps: float,
    ) -> Tensor:
        options = True, momentum, eps
        y, mean, scale = torch.native_batch_norm(_rows(x), weight, bias, running_mean, running_var, *options)
        ctx.save_for_backward(x, weight, mean, scale)
        return _unrolled(y, x)

    @staticmethod
    def backward(ctx: Any, y: Tensor) -> tuple[Tensor | None, ...]:
        pull = _Backward.apply if torch.is_grad_enabled() else _pull
        return *pull(y, *ctx.saved_tensors), None, None, None, None


class _Backward(Function):
    """x̄, w̄ and b̄ of ȳ."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        found = _pull(y, x, weight, mean, scale)
        ctx.save_for_backward(y, x, weight, mean, scale, *found[1:])
        return found

    @staticmethod
    def backward(ctx: Any, x1: Tensor, w1: Tensor, b1: Tensor) -> tuple[Tensor | None, ...]:
        y, x, weight, mean, scale, *sums = ctx.saved_tensors
        needed = needed_gradients(ctx.needs_input_grad)
        if torch.is_grad_enabled():
            to_y = _Tangent.apply(x1, w1, b1, x, weight, mean, scale) if needed[0] else None
            curved: Callable[..., Any] = _Curved.apply
        else:  # both take the same sums
            pulled = _pull(x1, x, weight, mean, scale)
            to_y = _along(pulled[0], w1, b1, x, mean, scale) if needed[0] else None
            curved = partial(_curved, x1_sums=pulled[1:])
        if not any(needed[1:3]):
            return to_y, None, None, None, None
        return to_y, *curved(y, sums[0], sums[1], x1, w1, x, weight, mean, scale), None, None


class _Tangent(Function):
    """ẏ of ẋ, ẇ and ḃ."""

    @staticmethod
    def forward(
        ctx: Any, x1: Tensor, w1: Tensor, b1: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x1, w1, x, weight, mean, scale)
        return _tangent(x1, w1, b1, x, weight, mean, scale)

    @staticmethod
    def backward(ctx: Any, y: Tensor) -> tuple[Tensor | None, ...]:
        x1, w1, x, weight, mean, scale = ctx.saved_tensors
        pull, curved = (_Backward.apply, _Curved.apply) if torch.is_grad_enabled() else (_pull, _curved)
        to_x1, to_w1, to_b1 = pull(y, x, weight, mean, scale)
        if not any(ctx.needs_input_grad[3:5]):
            return to_x1, to_w1, to_b1, None, None, None, None
        to_x, to_weight = curved(y, to_w1, to_b1, x1, w1, x, weight, mean, scale)
        return to_x1, to_w1, to_b1, to_x, to_weight, None, None


class _Curved(Function):
    """Derivative of ⟨ȳ, w P(ẋ)⟩ + ẇ Σ ȳ x̂ in x and in w; not differentiable again."""

    @staticmethod
    def forward(ctx: Any, *tensors: Any) -> tuple[Tensor, Tensor]:
        return _curved(*tensors)

    @staticmethod
    def backward(ctx: Any, *_: Tensor) -> NoReturn:
        raise NotImplementedError("batch norm in train mode has no derivatives of third order here")


# What the Functions compute, without their overhead: for a backward pass that is not differentiated again.


def _tangent(x1: Tensor, w1: Tensor, b1: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """ẏ of ẋ, ẇ and ḃ."""
    moved, *_ = _pull(x1, x, weight, mean, scale)
    return _along(moved, w1, b1, x, mean, scale)


def _along(moved: Tensor, w1: Tensor, b1: Tensor, x: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    """ẏ of w P(ẋ), ẇ and ḃ."""
    return per_channel_sum(x, (moved, None), (x, w1 * scale), (None, b1 - w1 * scale * mean))


def _curved(
    y: Tensor,
    y_times_normal: Tensor,
    y_sum: Tensor,
    x1: Tensor,
    w1: Tensor,
    x: Tensor,
    weight: Tensor,
    mean: Tensor,
    scale: Tensor,
    x1_sums: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Derivative of ⟨ȳ, w P(ẋ)⟩ + ẇ Σ ȳ x̂ in x and in w; ``x1_sums`` are Σ ẋ x̂ and Σ ẋ, if known.

    With means m over the channel, a = mean(ȳ x̂), a' = mean(ẋ x̂) and C = mean(ȳ ẋ) − m(ȳ) m(ẋ):

        in x:  −w r² [x̂ (C − 3 a a') + (ȳ − m(ȳ)) a' + (ẋ − m(ẋ)) a] + ẇ P(ȳ)
        in w:  n r (C − a a')
    """
    n = x.numel() / x.shape[1]
    a, y_mean = y_times_normal / n, y_sum / n
    x1_times_normal, x1_sum = centred_sums(x1, x, weight, mean, scale) if x1_sums is None else x1_sums
    a1, x1_mean = x1_times_normal / n, x1_sum / n
    # The kernel's Σ ȳ (x − mean) r, with ẋ for x, mean 0 and r = 1: a product and its sums in one pass.
    products, _ = centred_sums(y, x1, weight, torch.zeros_like(mean), torch.ones_like(mean))
    c = products / n - y_mean * x1_mean
    bend = -weight * scale * scale
    slope = w1 * scale
    of_normal = bend * (c - 3 * a * a1) - slope * a
    of_y, of_x1 = bend * a1 + slope, bend * a
    constant = -bend * (y_mean * a1 + x1_mean * a) - slope * y_mean - of_normal * scale * mean
    to_x = per_channel_sum(x, (x, of_normal * scale), (y, of_y), (x1, of_x1), (None, constant))
    return to_x, n * scale * (c - a * a1)


def _pull(y: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """x̄ = w P(ȳ), Σ ȳ x̂ and Σ ȳ."""
    moved, *sums = _kernel(y, x, weight, mean, scale, to_x=True)
    return _unrolled(moved, x), *sums


def centred_sums(y: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Σ ȳ x̂ and Σ ȳ, (C,); ``weight`` has no part in them."""
    _, times_normal, total = _kernel(y, x, weight, mean, scale, to_x=False)
    return times_normal, total


def _kernel(y: Tensor, x: Tensor, weight: Tensor, mean: Tensor, scale: Tensor, to_x: bool) -> Any:
    """PyTorch's kernel: x̄, in rows (``_rows``), or None, and the sums."""
    rows = _rows(x)
    if rows is not x:
        y = y.transpose(1, 2).reshape(-1, y.shape[1])
    return native_batch_norm_backward(y, rows, weight, None, None, mean, scale, True, 0.0, [to_x, True, True])


def _rows(x: Tensor) -> Tensor:
    """View a channels-last signal as (B·L, C): kernels take a third of the time. Return any other x unchanged."""
    if x.dim() != 3 or custom_derivatives_disabled():
        return x
    last = x.transpose(1, 2)
    return last.reshape(-1, x.shape[1]) if last.is_contiguous() else x


def _unrolled(rows: Tensor, like: Tensor) -> Tensor:
    """Inverse of ``_rows``."""
    if rows.dim() == like.dim():
        return rows
    batch, channels, length = like.shape
    return rows.view(batch, length, channels).transpose(1, 2)


def per_channel_sum(like: Tensor, start: tuple[Tensor, Tensor | None], *terms: tuple[Tensor | None, Tensor]) -> Tensor:
    """Σ tensor · factor, (B, C, ...), with one factor per channel; None is 1.

    Summed in float32 or wider, since terms may cancel, and returned in the dtype of ``like``.
    """
    column = (-1, *(1 for _ in like.shape[2:]))
    first = start[0].to(torch.promote_types(like.dtype, torch.float32))
    total = first if start[1] is None else first * start[1].view(column)
    for tensor, factor in terms:
        if tensor is None:
            total.add_(factor.view(column))
        else:
            total.addcmul_(tensor.to(total.dtype), factor.view(column))
    return total.to(like.dtype)
