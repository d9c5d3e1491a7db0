"""Cross-entropy: the loss with the stable residual, the Hessian in the logits, and labels drawn from the model."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function
from torch.nn import functional

softplus_backward = torch.ops.aten.softplus_backward.default
THRESHOLD = 80  # beyond it softplus is linear; at PyTorch's 20 that is off by 2·10⁻⁹


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch of ℓ_i = softplus(logsumexp_{c≠y}(z_c) − z_y), which is −log softmax(z)_y.

    In this form, the label's entry of ∂ℓ/∂z is −Σ_{c≠y} p_c, to full relative precision, and so are further
    derivatives (docs/theory.md, §3.1). ``functional.cross_entropy`` gives p_y − 1, which cancels near interpolation: at
    a loss of 10⁻⁶ in float32 its gradient is off by 2 %.

    Args:
        logits: z, (b, C), float32 or wider. Infinite logits are not detected: +∞ at the label gives a loss of 0.
        labels: y, (b,).
    """
    label = labels[:, None]
    others = logits.scatter(1, label, -torch.inf).logsumexp(1)
    return functional.softplus(others - logits.gather(1, label)[:, 0], threshold=THRESHOLD).mean()


class CrossEntropyOnce(Function):
    """``cross_entropy`` with the same bits of loss and gradient, in half the kernels; differentiable once.

    Autograd runs the same operations, but for sums with zeros, each by its own node.
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor) -> Tensor:
        """Compute the mean over the batch."""
        label = labels.unsqueeze(1)
        masked = logits.scatter(1, label, -torch.inf)
        others = masked.logsumexp(1, keepdim=True)
        margin = others - logits.gather(1, label)
        ctx.save_for_backward(masked, others, margin, label)
        return functional.softplus(margin, threshold=THRESHOLD).mean()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        """Compute the stable residual times the gradient."""
        if torch.is_grad_enabled():
            raise NotImplementedError("this cross-entropy has no double backward (use cross_entropy)")
        masked, others, margin, label = ctx.saved_tensors
        each = (gradient / len(margin)).expand_as(margin)
        probability = softplus_backward(each, margin, 1, THRESHOLD)
        # 0 - p, not -p: where p is 0, autograd's sum of both entries is +0.
        return (masked - others).exp_().mul_(probability).scatter_(1, label, 0 - probability), None


def softmax_hessian_product(logits: Tensor, vector: Tensor) -> Tensor:
    """(∇²_z ℓ_i) v_i for cross-entropy, row by row: p ⊙ (v − ⟨p, v⟩) with p = softmax(z). Shapes (B, C).

    Near interpolation v_c − ⟨p, v⟩ cancels for the most likely class. Adding a constant to v changes nothing, so the
    entry of v at this class is subtracted first (docs/theory.md, §3.3).
    """
    p = logits.softmax(1)
    vector = vector - vector.gather(1, logits.argmax(1, keepdim=True))
    return p * (vector - (p * vector).sum(1, keepdim=True))


def draw_labels(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Labels ŷ_i ~ Cat(softmax z_i), shape (b,), where the distribution function passes ``uniforms``, (b,) in [0, 1).

    If logits are NaN, the label is class 0; the loss is NaN anyway. Computed on the device of the logits, without
    waiting for it. See docs/theory.md, §6.8.
    """
    cumulative = logits.double().softmax(1).cumsum(1)  # the same bits in each run with deterministic algorithms
    uniforms = uniforms.to(logits.device, non_blocking=True)
    return (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(1)
