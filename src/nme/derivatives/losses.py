"""Losses of a batch: value, residual, and products with the Hessian in the output, stable near interpolation.

Formulas: docs/theory.md, §1.1 and docs/theory.md, §3.

``loss_of`` recognises PyTorch's losses by their exact types; a subclass with its own ``forward`` is not its parent. Any
other callable is differentiated in the output by autograd (``AnyLoss``).

To add a closed form: a subclass of ``Loss`` with ``value``, ``summed_residual``, ``summed_hessian_product`` and
``divisor``, and its line in ``loss_of``.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

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
            positive = positive * self.pos_weight.detach().to(output)
        if self.rescale is not None:
            positive, negative = (part * self.rescale.detach().to(output) for part in (positive, negative))
        return positive, negative


class AnyLoss(Loss):
    """Any function of output and target that returns a scalar, differentiated in the output by autograd.

    Less accurate near interpolation than the closed forms, and G is positive semidefinite only if the function is
    convex in the output.

    Args:
        function: called as ``function(output, target)``.
        reduction: 'mean': losses of several batches are averaged, weighted by their numbers of examples; 'sum': added.
    """

    def __init__(self, function: Callable[..., Any], reduction: str = "mean"):
        self.function, self.reduction = function, known_reduction(reduction)

    def value(self, output: Tensor, target: Tensor) -> Tensor:
        """L, a scalar.

        Raises:
            NmeError: the function does not return one number.
        """
        loss = self.function(output, target)
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            found = f"a tensor of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
            raise NmeError(f"the loss returns {found} (allowed: one number, the loss of the batch)")
        return loss.reshape(())

    def residual(self, output: Tensor, target: Tensor) -> Tensor:
        """∂L/∂z in the shape of z, differentiable in z; by autograd."""
        with torch.enable_grad():
            z = output if output.requires_grad else output.detach().requires_grad_()
            value = self.value(z, target)
            if not value.requires_grad:
                raise NmeError("the loss does not depend on the model's output by operations that autograd records")
            r = _derivative(value, z, create_graph=True)
        return r

    def is_linear(self, output: Tensor, target: Tensor) -> bool:
        """True for ``NLLLoss`` and its function, which take log-probabilities."""
        return isinstance(self.function, nn.NLLLoss) or self.function is functional.nll_loss

    def hessian_product(self, output: Tensor, target: Tensor, vector: Tensor) -> Tensor:
        """(∇²_z L) v in the shape of z; by autograd, differentiable in z and v if z or v requires a gradient."""
        further = torch.is_grad_enabled() and (output.requires_grad or vector.requires_grad)
        with torch.enable_grad():
            z = output if output.requires_grad else output.detach().requires_grad_()
            r = self.residual(z, target)
            if not r.requires_grad:
                return torch.zeros_like(vector)
            product = _derivative((r * vector).sum(), z, create_graph=further)
        return product

    def summed_residual(self, output: Tensor, target: Tensor) -> Tensor:
        """∂L/∂z: the function is not divided."""
        return self.residual(output, target)

    def summed_hessian_product(self, output: Tensor, target: Tensor, vector: Tensor) -> Tensor:
        """(∇²_z L) v: the function is not divided."""
        return self.hessian_product(output, target, vector)

    def divisor(self, output: Tensor, target: Tensor) -> Number:
        """1: the function is not divided."""
        return 1

    def weight(self, output: Tensor, target: Tensor) -> Number:
        """Number of examples; 1 for reduction 'sum'."""
        return len(output) if self.reduction == "mean" and output.dim() else 1


def _derivative(value: Tensor, z: Tensor, create_graph: bool) -> Tensor:
    try:
        return torch.autograd.grad(value, z, create_graph=create_graph, materialize_grads=True)[0]
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        raise NmeError(f"the loss cannot be differentiated: {str(error).strip().splitlines()[0]}") from error


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
            callable, subclasses of these included, is differentiated by autograd.

    Raises:
        NmeError: not callable, or reduction 'none'.
    """
    if isinstance(loss, Loss):
        return loss
    if not callable(loss):
        raise NmeError(f"loss is {type(loss).__name__} (allowed: a loss module, or a function of output and target)")
    function, keywords = (loss.func, loss.keywords) if isinstance(loss, partial) and not loss.args else (loss, {})
    if isinstance(function, Hashable) and function in FUNCTIONS and not {"input", "target"} & keywords.keys():
        loss = FUNCTIONS[function](**keywords)
    reduction = getattr(loss, "reduction", "mean")
    if isinstance(loss, nn.Module) and "forward" not in vars(loss) and not _hooked(loss):
        if type(loss) is nn.CrossEntropyLoss:
            return CrossEntropy(loss.label_smoothing, loss.weight, loss.ignore_index, reduction)
        if type(loss) is nn.MSELoss and getattr(loss, "weight", None) is None:
            return SquaredError(reduction)
        if type(loss) is nn.BCEWithLogitsLoss:
            return BinaryCrossEntropy(loss.weight, loss.pos_weight, reduction)
    return AnyLoss(loss, reduction if isinstance(reduction, str) else "mean")


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)
