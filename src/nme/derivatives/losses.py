"""Losses of a batch: value, residual, and products with the Hessian in the output, stable near interpolation.

Formulas: docs/theory.md, §1.1 and docs/theory.md, §3.

``loss_of`` recognises PyTorch's losses by their exact types; a subclass with its own ``forward`` is not its parent. Any
other callable is differentiated in the output by autograd (``AnyLoss``).

To add a closed form: a subclass of ``Loss`` with ``value``, ``summed_residual``, ``summed_hessian_product`` and
``divisor``, and its line in ``loss_of``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import partial
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from nme.derivatives.any_loss import AnyLoss
from nme.derivatives.loss import Loss, Number, known_reduction
from nme.derivatives.softmax_loss import CrossEntropy
from nme.errors import NmeError

__all__ = ["AnyLoss", "BinaryCrossEntropy", "CrossEntropy", "Loss", "SquaredError", "loss_of"]


class _Entrywise(Loss):
    """A sum over entries of the output; the target has the output's shape."""

    def __init__(self, reduction: str = "mean"):
        self.reduction = known_reduction(reduction)

    def divisor(self, output: Tensor, target: Tensor) -> Number:
        """Number of entries; 1 for reduction 'sum'."""
        self._same_shape(output, target)
        return output.numel() if self.reduction == "mean" else 1

    def target(self, output: Tensor, target: Tensor) -> Tensor:
        """The target in the output's dtype."""
        return self._same_shape(output, target)

    def check(self, output: Tensor, target: Tensor) -> None:
        """Raise unless the target has the output's shape.

        Raises:
            NmeError: it has a different shape.
        """
        self._same_shape(output, target)

    def _same_shape(self, output: Tensor, target: Tensor) -> Tensor:
        if not isinstance(target, Tensor):
            raise NmeError(f"the target is {type(target).__name__} (allowed: a tensor)")
        if target.shape != output.shape:
            raise NmeError(f"the target has shape {tuple(target.shape)} (allowed: {tuple(output.shape)})")
        return target.to(output.dtype)


class SquaredError(_Entrywise):
    """ℓ = (z − y)² for each entry, as ``torch.nn.MSELoss``."""

    def value(self, output: Tensor, target: Tensor) -> Tensor:
        """L, a scalar."""
        square = (output - self._same_shape(output, target)).square()
        return square.sum() / self.divisor(output, target)

    def summed_residual(self, output: Tensor, target: Tensor) -> Tensor:
        """2(z − y)."""
        return 2 * (output - self._same_shape(output, target))

    def summed_hessian_product(self, output: Tensor, target: Tensor, vector: Tensor) -> Tensor:
        """2v."""
        return 2 * vector


class BinaryCrossEntropy(_Entrywise):
    """ℓ = w (q y softplus(−z) + (1 − y) softplus(z)) for each entry, as ``torch.nn.BCEWithLogitsLoss``.

    Args:
        weight: w, in a shape that broadcasts to the output's; None: 1.
        pos_weight: q, in such a shape; None: 1.
        reduction: 'mean' or 'sum'.
    """

    def __init__(self, weight: Tensor | None = None, pos_weight: Tensor | None = None, reduction: str = "mean"):
        super().__init__(reduction)
        self.rescale, self.pos_weight = weight, pos_weight

    def check(self, output: Tensor, target: Tensor) -> None:
        """Raise unless target and weights fit the output.

        Raises:
            NmeError: one has a shape that does not.
        """
        self._same_shape(output, target)
        self._masses(output, target)

    def value(self, output: Tensor, target: Tensor) -> Tensor:
        """L, a scalar, whose gradient by autograd is the stable residual."""
        positive, negative = self._masses(output, target)
        # Beyond its threshold softplus is linear; at PyTorch's 20 that is off by 2·10⁻⁹.
        each = positive * functional.softplus(-output, threshold=80)
        each = each + negative * functional.softplus(output, threshold=80)
        return each.sum() / self.divisor(output, target)

    def summed_residual(self, output: Tensor, target: Tensor) -> Tensor:
        """Residual w ((1 − y) σ(z) − q y σ(−z)): σ(z) − y would cancel near interpolation."""
        positive, negative = self._masses(output, target)
        return negative * output.sigmoid() - positive * (-output).sigmoid()

    def summed_hessian_product(self, output: Tensor, target: Tensor, vector: Tensor) -> Tensor:
        """Product w (q y + 1 − y) σ(z) σ(−z) v."""
        positive, negative = self._masses(output, target)
        return (positive + negative) * output.sigmoid() * (-output).sigmoid() * vector

    def _masses(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        y = self._same_shape(output, target)
        positive, negative = y, 1 - y
        if self.pos_weight is not None:
            positive = positive * _fitting("pos_weight", self.pos_weight, output)
        if self.rescale is not None:
            own = _fitting("weight", self.rescale, output)
            positive, negative = positive * own, negative * own
        return positive, negative


def _fitting(name: str, weight: Tensor, output: Tensor) -> Tensor:
    """The weight in the output's dtype; broadcasting must not make the loss larger than the output."""
    shape = (1,) * (output.dim() - weight.dim()) + tuple(weight.shape)
    if len(shape) != output.dim() or any(n not in (1, size) for n, size in zip(shape, output.shape, strict=True)):
        found = tuple(weight.shape)
        raise NmeError(
            f"the loss has {name} of shape {found} (expected: broadcast to {tuple(output.shape)}, the output)"
        )
    return weight.detach().to(output)


FUNCTIONS: dict[Callable[..., Any], Callable[..., nn.Module]] = {
    functional.cross_entropy: nn.CrossEntropyLoss,
    functional.mse_loss: nn.MSELoss,
    functional.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss,
}


def loss_of(loss: Callable[..., Any] | Loss) -> Loss:
    """The loss that a module or function computes.

    Args:
        loss: ``torch.nn.CrossEntropyLoss``, ``MSELoss`` and ``BCEWithLogitsLoss`` and their functions in
            ``torch.nn.functional`` (also with keywords by ``functools.partial``) have closed forms. Any other
            callable, subclasses of these included, is differentiated by autograd. Compiled ones are not run compiled.

    Raises:
        NmeError: not callable, or a loss of PyTorch with reduction 'none'.
    """
    if isinstance(loss, Loss):
        return loss
    if not callable(loss):
        raise NmeError(f"loss is {type(loss).__name__} (allowed: a loss module, or a function of output and target)")
    # A compiled loss has wrong second derivatives, or none.
    loss = getattr(loss, "_orig_mod", getattr(loss, "_torchdynamo_orig_callable", loss))
    function, keywords = (loss.func, loss.keywords) if isinstance(loss, partial) and not loss.args else (loss, {})
    if isinstance(function, Hashable) and function in FUNCTIONS and not {"input", "target"} & keywords.keys():
        with suppress(TypeError):  # keywords of the function that its module does not have
            loss = FUNCTIONS[function](**keywords)
    reduction = getattr(loss, "reduction", "mean")
    if isinstance(loss, nn.Module) and "forward" not in vars(loss) and not _hooked(loss):
        if type(loss) is nn.CrossEntropyLoss:
            return CrossEntropy(loss.label_smoothing, loss.weight, loss.ignore_index, reduction)
        if type(loss) is nn.MSELoss and getattr(loss, "weight", None) is None:
            return SquaredError(reduction)
        if type(loss) is nn.BCEWithLogitsLoss:
            return BinaryCrossEntropy(loss.weight, loss.pos_weight, reduction)
    if type(loss).__module__ == nn.MSELoss.__module__ and reduction == "none":
        known_reduction(reduction)
    # A subclass may reduce by itself, and 'batchmean' is a mean over examples: ``SeveralBatches`` sees what it is.
    return AnyLoss(loss, "sum" if reduction == "sum" else "mean")


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
