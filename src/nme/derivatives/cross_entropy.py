"""Cross-entropy: the loss with the stable residual, the Hessian in the logits, and labels drawn from the model."""

import torch
from torch import Tensor
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


def cross_entropy_and_slope(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """``cross_entropy`` and its derivative in the logits, (b, C), with autograd's bits in a third of its time.

    Autograd runs the same operations in the same order, each in its own node, and sums with zeros.

    Args:
        logits: z, (b, C), float32 or wider, without graph.
        labels: y, (b,), int64.

    Raises:
        RuntimeError: on the CPU, a label is not a class.
    """
    label = labels.unsqueeze(1)
    masked = logits.scatter(1, label, -torch.inf)
    others = _logsumexp(masked)
    margin = others - logits.gather(1, label)
    loss = functional.softplus(margin, threshold=THRESHOLD).mean()
    at_label = softplus_backward(margin.new_full((), 1 / len(margin)), margin, 1, THRESHOLD)
    # Written at the labels, where all other logits may be −∞ and p not a number; from 0, so that it is never −0.
    slope = (masked - others).exp_().mul_(at_label).scatter_(1, label, 0.0 - at_label)
    return loss, slope


def _logsumexp(x: Tensor) -> Tensor:
    """``x.logsumexp(1, keepdim=True)`` with its bits, in six operations instead of ten; shape (b, 1)."""
    finite = torch.finfo(x.dtype)
    largest = x.amax(1, keepdim=True).clamp_(finite.min, finite.max)  # ±∞ − ±∞ would be no number
    return (x - largest).exp_().sum(1, keepdim=True).log_().add_(largest)


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
