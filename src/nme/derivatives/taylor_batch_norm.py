"""Batch norm of images in Taylor arithmetic, in train mode, in a few passes over memory (docs/theory.md, §4.4).

For one channel with n entries let c, c₁ and c₂ be the parts of its input without their means, r = 1/√(variance + ε),
x̂ = r c, p = r mean(x̂ c₁) and q = r² mean(c₁²) + r mean(x̂ c₂). Then r(t) = r (1 + 2pt + qt²)^(−1/2), and y = w x̂ + b
has the parts

    y₁ = w r c₁ + s₁ x̂ + b₁              s₁ = w₁ − w p
    y₂ = w r c₂ + 2 s₁ r c₁ + s₂ x̂       s₂ = w (3p² − q) − 2 w₁ p
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from nme.derivatives.batch_norm import centred_sums, per_channel_sum


def taylor_batch_norm(
    x: Tensor, x1: Tensor, x2: Tensor, w: Tensor, w1: Tensor, b: Tensor, b1: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """y, y₁ and y₂ (B, C, H, W), differentiable once.

    Args:
        x: (B, C, H, W), as x₁ and x₂; all tensors in one dtype, float32 or wider.
        x1: first derivative of x in t.
        x2: second.
        w: weight, (C,), as w₁, b and b₁.
        w1: first derivative of w.
        b: bias.
        b1: first derivative of b.
        eps: ε.
    """
    parts: tuple[Tensor, Tensor, Tensor] = _TaylorBatchNorm.apply(x, x1, x2, w, w1, b, b1, eps)
    return parts


class _TaylorBatchNorm(Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
        x, x1, x2, w, w1, b, b1, eps = inputs
        n = x.numel() / x.shape[1]
        y, mean, r = torch.native_batch_norm(x, w, b, None, None, True, 0.0, eps)
        along1, sum1 = centred_sums(x1, x, w, mean, r)
        along2, sum2 = centred_sums(x2, x, w, mean, r)
        mean1, mean2 = sum1 / n, sum2 / n
        squares, _ = centred_sums(x1, x1, w, mean1, r)
        p, square = r * along1 / n, r * squares / n
        q = square + r * along2 / n
        s1, s2 = w1 - w * p, w * (3 * p * p - q) - 2 * w1 * p
        wr, s1r, s2r = w * r, s1 * r, s2 * r
        y1 = per_channel_sum(x, (x1, wr), (x, s1r), (None, b1 - wr * mean1 - s1r * mean))
        constant = -(wr * mean2 + 2 * s1r * mean1 + s2r * mean)
        y2 = per_channel_sum(x, (x2, wr), (x1, 2 * s1r), (x, s2r), (None, constant))
        ctx.save_for_backward(x, x1, x2, w, w1, mean, mean1, mean2, r, p, q, square, s1, s2)
        return y, y1, y2

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor, g1: Tensor, g2: Tensor) -> tuple[Tensor | None, ...]:
        x, x1, x2, w, w1, mean, mean1, mean2, r, p, q, square, s1, s2 = ctx.saved_tensors
        n = x.numel() / x.shape[1]
        (a, total), (a1, total1), (a2, total2) = (centred_sums(part, x, w, mean, r) for part in (g, g1, g2))
        # ȳ₁ with r c₁, ȳ₂ with r c₁ and with r c₂
        b1, _ = centred_sums(g1, x1, w, mean1, r)
        b2, _ = centred_sums(g2, x1, w, mean1, r)
        b3, _ = centred_sums(g2, x2, w, mean2, r)
        # In the scalars of a channel; in log r with x̂, c₁ and c₂ fixed.
        to_s1 = a1 + 2 * b2
        to_p, to_q = (6 * p * w - 2 * w1) * a2 - w * to_s1, -w * a2
        to_w, to_w1 = a + b1 + b3 - p * to_s1 + (3 * p * p - q) * a2, to_s1 - 2 * p * a2
        to_log_r = w * (b1 + b3) + 2 * s1 * b2 + to_p * p + to_q * (q + square)
        # In x: from x̂, without its parts along 1 and x̂, and from r.
        normal = w * a + s1 * a1 + s2 * a2 + to_p * p + to_q * (q - square)
        of_x1, of_x2 = r * r * to_p / n, r * r * to_q / n
        of_x = -r * r * (normal + to_log_r) / n
        wr, s1r, s2r = w * r, s1 * r, s2 * r
        constant = -(wr * total + s1r * total1 + s2r * total2) / n - of_x * mean - of_x1 * mean1 - of_x2 * mean2
        terms = (g1, s1r), (g2, s2r), (x, of_x), (x1, of_x1), (x2, of_x2), (None, constant)
        to_x = per_channel_sum(x, (g, wr), *terms)
        constant = -(wr * total1 + 2 * s1r * total2) / n - of_x1 * mean - 2 * of_x2 * mean1
        to_x1 = per_channel_sum(x, (g1, wr), (g2, 2 * s1r), (x, of_x1), (x1, 2 * of_x2), (None, constant))
        constant = -wr * total2 / n - of_x2 * mean
        to_x2 = per_channel_sum(x, (g2, wr), (x, of_x2), (None, constant))
        return to_x, to_x1, to_x2, to_w, to_w1, total, total1, None
