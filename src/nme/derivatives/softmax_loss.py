"""Cross-entropy of PyTorch's settings as a ``Loss``, stable near interpolation (docs/theory.md, §3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from nme.derivatives.cross_entropy import cross_entropy, cross_entropy_and_slope, softmax_hessian_product
from nme.derivatives.loss import Loss, Number, known_reduction
from nme.derivatives.modes import custom_derivatives_disabled
from nme.errors import NmeError


class CrossEntropy(Loss):
    """ℓ = −Σ_c w_c t_c log p_c with p = softmax(z), as ``torch.nn.CrossEntropyLoss``.

    Outputs have shape (B, C), (B, C, d...) or (C,). Targets are class indices, (B,) or (B, d...), with
    t = (1 − ε)·onehot(y) + ε/C, or probabilities in the shape of the output, with t = (1 − ε)·target + ε/C.

    Args:
        label_smoothing: ε, 0 ≤ ε ≤ 1.
        class_weights: w, shape (C,); None: 1.
        ignore_index: label of examples that do not count; None: there are none, so that labels need not be read.
        reduction: 'mean' (over labels that count, weighted by w_y; over examples for probabilities) or 'sum'.
    """

    def __init__(
        self,
        label_smoothing: float = 0.0,
        class_weights: Tensor | None = None,
        ignore_index: int | None = -100,
        reduction: str = "mean",
    ):
        self.label_smoothing, self.ignore_index = label_smoothing, ignore_index
        self.class_weights = None if class_weights is None else class_weights.detach()
        self.reduction = known_reduction(reduction)

    def value(self, output: Tensor, target: Tensor) -> Tensor:
        """L, a scalar, whose gradient by autograd is the stable residual."""
        z, y = self._rows(output, target)
        if y.is_floating_point():
            if y.requires_grad:
                raise NmeError("the target depends on parameters (expected a constant: target.detach())")
            total: Tensor = _SoftCrossEntropy.apply(z, self._mass(z, y))
            return total / self.divisor(output, target)
        y, counted = self._counted(y)
        if self._is_plain() and (counted is None or bool(counted.all())):
            return cross_entropy(z, y)
        label = y[:, None]
        others = z.scatter(1, label, -torch.inf).logsumexp(1)
        at_label = functional.softplus(others - z.gather(1, label)[:, 0], threshold=80)
        weights = self._weights(z)
        rows = at_label if weights is None else weights[y] * at_label
        smoothing = self.label_smoothing
        if smoothing:
            each = z.logsumexp(1, keepdim=True) - z
            uniform = (each if weights is None else weights * each).sum(1) / z.shape[1]
            rows = (1 - smoothing) * rows + smoothing * uniform
        rows = rows if counted is None else rows.masked_fill(~counted, 0)
        return rows.sum() / self.divisor(output, target)

    def value_and_slope(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
        """L and ∂L/∂z where each label counts once; otherwise None."""
        indices = isinstance(target, Tensor) and target.dtype == torch.int64 and output.dim() == 2
        if not indices or target.shape != output.shape[:1] or not len(target) or not self._is_plain():
            return None
        if custom_derivatives_disabled() or output.dtype not in (torch.float32, torch.float64):
            return None
        ignored = self.ignore_index
        # On a CPU the kernels check each label, and none is negative: a look for ignored ones is not needed.
        if ignored is not None and (ignored >= 0 or output.device.type != "cpu") and int(target.min()) <= ignored:
            return None
        try:
            return cross_entropy_and_slope(output, target)
        except (RuntimeError, IndexError):  # a label is ignored or out of range; if out of range, it is raised again
            return None

    def _is_plain(self) -> bool:
        return not self.label_smoothing and self.class_weights is None and self.reduction == "mean"

    def summed_residual(self, output: Tensor, target: Tensor) -> Tensor:
        """∂S/∂z: w_y (p_c − t_c) for each example, stable where p_y − 1 cancels (docs/theory.md, §3.2).

        The label's entry of a class index is ε(1 − 1/C) − Σ_{c≠y} p_c.
        """
        z, y = self._rows(output, target)
        if y.is_floating_point():
            return _unrolled(_soft_residual(z, self._mass(z, y)), output)
        y, counted = self._counted(y)
        classes, smoothing = z.shape[1], self.label_smoothing
        label = functional.one_hot(y, classes).bool()
        p = z.softmax(1)
        others = p.masked_fill(label, 0)
        weights = self._weights(z)
        if weights is None:
            at_label = smoothing * (1 - 1 / classes) - others.sum(1, keepdim=True)
            r = torch.where(label, at_label, others - smoothing / classes)
        else:
            r = weights[y][:, None] * (1 - smoothing) * torch.where(label, -others.sum(1, keepdim=True), others)
            r = r + smoothing / classes * (weights.sum() * p - weights)
        return _unrolled(r if counted is None else r.masked_fill(~counted[:, None], 0), output)

    def summed_hessian_product(self, output: Tensor, target: Tensor, vector: Tensor) -> Tensor:
        """(∇²_z S) v: Σ_c w_c t_c times p ⊙ (v − ⟨p, v⟩) for each example (docs/theory.md, §3.3)."""
        z, y = self._rows(output, target)
        product = softmax_hessian_product(z, _class_last(vector))
        if y.is_floating_point():
            return _unrolled(self._mass(z, y).sum(1, keepdim=True) * product, output)
        y, counted = self._counted(y)
        weights = self._weights(z)
        if weights is not None:
            smoothing = self.label_smoothing
            product = ((1 - smoothing) * weights[y] + smoothing * weights.mean())[:, None] * product
        return _unrolled(product if counted is None else product.masked_fill(~counted[:, None], 0), output)

    def curved(self, output: Tensor, target: Tensor, divisor: Number) -> Callable[[Tensor], Tensor]:
        """The map v ↦ (∇²_z S) v; where every label counts once, without looking at labels again."""
        hard = self.class_weights is None and output.dim() == 2 and target.dim() == 1
        if hard and self.reduction == "mean" and divisor == len(output):
            return partial(softmax_hessian_product, output)
        return super().curved(output, target, divisor)

    def divisor(self, output: Tensor, target: Tensor) -> Number:
        """Number of labels that count, or the sum of their class weights; 1 for reduction 'sum'."""
        if self.reduction == "sum":
            return 1
        y = self._labels(output, target)
        if y.is_floating_point():
            return y.numel() // y.shape[1] if y.dim() > 1 else 1
        if self.ignore_index is None and self.class_weights is None:
            return y.numel()
        y, counted = self._counted(y)
        if self.class_weights is None:
            return y.numel() if counted is None else int(counted.sum())
        own = self.class_weights.to(y.device, torch.float64)[y]
        return float((own if counted is None else own * counted).sum())

    def target(self, output: Tensor, target: Tensor) -> Tensor:
        """Class indices, int64, or probabilities in the output's dtype."""
        y = self._labels(output, target)
        return y.to(output.dtype) if y.is_floating_point() else y

    def check(self, output: Tensor, target: Tensor) -> None:
        """Raise unless the target fits the output.

        Raises:
            NmeError: wrong shape or dtype, a label out of range, or integers that are no class indices.
        """
        y, classes = self._labels(output, target), _classes(output)
        if self.class_weights is not None and len(self.class_weights) != classes:
            raise NmeError(f"the loss has {len(self.class_weights)} class weights (expected {classes}, the outputs)")
        if y.is_floating_point():
            if not target.is_floating_point() and not bool(((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all()):
                raise NmeError("the target has the output's shape, but its integers are not one-hot labels")
            return
        y, _ = self._counted(y)
        if y.numel() and (int(y.min()) < 0 or int(y.max()) >= classes):
            found = int(y.min()) if int(y.min()) < 0 else int(y.max())
            raise NmeError(f"a label is {found} (allowed: 0 to {classes - 1}, the model has {classes} outputs)")

    def _labels(self, output: Tensor, target: Tensor) -> Tensor:
        """Class indices (B, d...), int64, or probabilities in the shape of the output."""
        if not isinstance(target, Tensor):
            raise NmeError(f"the target is {type(target).__name__} (allowed: a tensor)")
        classes = _classes(output)
        positions = output.shape[:1] + output.shape[2:] if output.dim() > 1 else torch.Size()
        if target.shape == output.shape and (target.is_floating_point() or (output.dim() > 1 and classes > 1)):
            return target if target.is_floating_point() else target.to(output.dtype)
        if target.is_floating_point() or target.is_complex():
            allowed = f"class indices of an integer dtype, or probabilities of shape {tuple(output.shape)}"
            raise NmeError(f"the target has dtype {target.dtype} and shape {tuple(target.shape)} (allowed: {allowed})")
        if target.dim() == len(positions) + 1 and target.shape[1:2] == (1,):
            target = target.squeeze(1)  # (B, 1)
        if target.shape != positions:
            found, out = tuple(target.shape), tuple(output.shape)
            tokens = target.dim() > 1 and target.shape == output.shape[:-1]
            hint = "; flatten tokens: output.flatten(0, -2) and target.flatten()" if tokens else ""
            raise NmeError(f"the target has shape {found} (allowed: {tuple(positions)} for outputs {out}{hint})")
        return target.long()

    def _rows(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs (M, C) with class indices (M,) or probabilities (M, C)."""
        y = self._labels(output, target)
        return _class_last(output), _class_last(y) if y.is_floating_point() else y.reshape(-1)

    def _counted(self, y: Tensor) -> tuple[Tensor, Tensor | None]:
        """Labels with a valid class in place of ignored ones, and which labels count; None: all."""
        if self.ignore_index is None:
            return y, None
        counted = y != self.ignore_index
        return torch.where(counted, y, 0), counted

    def _weights(self, z: Tensor) -> Tensor | None:
        return None if self.class_weights is None else self.class_weights.to(z.device, z.dtype)

    def _mass(self, z: Tensor, probabilities: Tensor) -> Tensor:
        """w_c t_c of each example and class, (M, C)."""
        t, smoothing = probabilities.to(z.dtype), self.label_smoothing
        t = t * (1 - smoothing) + smoothing / z.shape[1] if smoothing else t
        weights = self._weights(z)
        return t if weights is None else weights * t


def _classes(output: Tensor) -> int:
    if not output.dim():
        raise NmeError("the model's output has shape () (allowed: (batch, classes) or (batch, classes, ...))")
    return output.shape[1] if output.dim() > 1 else output.shape[0]


def _class_last(z: Tensor) -> Tensor:
    """Rows (M, C) of a tensor (B, C, d...) or (C,)."""
    if z.dim() == 2:
        return z
    return z.movedim(1, -1).reshape(-1, z.shape[1]) if z.dim() > 1 else z[None]


def _unrolled(rows: Tensor, like: Tensor) -> Tensor:
    """Inverse of ``_class_last``."""
    if like.dim() == 2:
        return rows
    return rows.reshape(like.movedim(1, -1).shape).movedim(-1, 1) if like.dim() > 1 else rows[0]


def _soft_residual(z: Tensor, mass: Tensor) -> Tensor:
    """∂/∂z of −Σ_c a_c log p_c: p_k Σ_{c≠k} a_c − a_k Σ_{c≠k} p_c, whose terms do not cancel at one-hot targets."""
    return z.softmax(1) * _others(mass, mass) - mass * _others(z.softmax(1), z)


def _others(t: Tensor, order: Tensor) -> Tensor:
    """Σ_{c≠k} t_c in column k, accurate for the largest entry, too."""
    largest = functional.one_hot(order.argmax(1), t.shape[1]).bool()
    rest = t.masked_fill(largest, 0)
    return torch.where(largest, rest.sum(1, keepdim=True), t.sum(1, keepdim=True) - t)


class _SoftCrossEntropy(torch.autograd.Function):
    """−Σ_c a_c log p_c summed over rows; its derivative is the stable residual, as often as it is taken."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, mass: Tensor) -> Tensor:
        ctx.save_for_backward(z, mass)
        return -(mass * z.log_softmax(1)).sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        z, mass = ctx.saved_tensors
        return gradient * _soft_residual(z, mass), None
