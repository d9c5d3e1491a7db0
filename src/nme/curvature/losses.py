"""Losses that curvature is taken of: residual and Hessian of the loss in the logits, stable near interpolation.

Formulas: docs/theory.md, §1.1 and docs/theory.md, §3.
"""

import torch
from torch import Tensor, nn

from nme.derivatives.cross_entropy import softmax_hessian_product
from nme.errors import NmeError


class CrossEntropy:
    """ℓ = −Σ_c t_c log p_c with p = softmax(z) and t = (1 − ε)·onehot(y) + ε/C; mean over the batch.

    Args:
        label_smoothing: ε, 0 ≤ ε < 1.
    """

    def __init__(self, label_smoothing: float = 0.0):
        self.label_smoothing = label_smoothing

    def residual(self, logits: Tensor, labels: Tensor) -> Tensor:
        """∂ℓ_i/∂z_ic = p_c − t_c, shape (B, C), differentiable.

        Near interpolation p_y − 1 cancels, so the label's entry is ε(1 − 1/C) − Σ_{c≠y} p_c (docs/theory.md, §3.2).
        """
        classes = logits.shape[1]
        label = nn.functional.one_hot(labels, classes).bool()
        others = logits.softmax(1).masked_fill(label, 0)
        smoothing = self.label_smoothing
        at_label = smoothing * (1 - 1 / classes) - others.sum(1, keepdim=True)
        return torch.where(label, at_label, others - smoothing / classes)

    def hessian_product(self, logits: Tensor, vector: Tensor) -> Tensor:
        """(∇²_z ℓ_i) v_i, shapes (B, C); labels do not matter."""
        return softmax_hessian_product(logits, vector)


class SquaredError:
    """ℓ = (1/C) Σ_c (z_c − y_c)², as ``torch.nn.MSELoss``; mean over the batch. Targets have the logits' shape."""

    def residual(self, logits: Tensor, targets: Tensor) -> Tensor:
        """∂ℓ_i/∂z_ic = 2(z_c − y_c)/C, shape (B, C).

        Raises:
            NmeError: the targets have another shape.
        """
        if targets.shape != logits.shape:
            raise NmeError(f"the targets have shape {tuple(targets.shape)} (allowed: {tuple(logits.shape)})")
        return 2 * (logits - targets) / logits.shape[1]

    def hessian_product(self, logits: Tensor, vector: Tensor) -> Tensor:
        """(∇²_z ℓ_i) v_i = 2v/C."""
        return 2 * vector / logits.shape[1]


Loss = CrossEntropy | SquaredError


def loss_of(module: nn.Module | Loss) -> Loss:
    """The loss that a module of PyTorch computes.

    Args:
        module: ``torch.nn.CrossEntropyLoss`` (label smoothing allowed) or ``torch.nn.MSELoss``, with reduction 'mean'.

    Raises:
        NmeError: another loss, reduction, class weights or an ignored index.
    """
    if isinstance(module, Loss):
        return module
    if not isinstance(module, nn.CrossEntropyLoss | nn.MSELoss):
        name = getattr(module, "__name__", type(module).__name__)
        raise NmeError(f"loss is '{name}' (allowed: torch.nn.CrossEntropyLoss, torch.nn.MSELoss)")
    if module.reduction != "mean":
        raise NmeError(f"the loss has reduction '{module.reduction}' (allowed: mean)")
    if isinstance(module, nn.MSELoss):
        return SquaredError()
    if module.weight is not None or module.ignore_index != -100:
        raise NmeError("the loss has class weights or an ignored index (allowed: label_smoothing only)")
    return CrossEntropy(module.label_smoothing)
