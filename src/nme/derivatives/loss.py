"""Interface of the losses: value, residual, and products with the Hessian in the model's output."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from nme.errors import NmeError

Number = float | Tensor


class Loss:
    """The loss L of a batch, a scalar function of the model's output z and the target.

    L = S/d with a sum S over the batch and ``divisor`` d: for reduction 'mean' the number of examples (of labels that
    are not ignored, of entries, the sum of class weights), for 'sum' 1. Losses of several batches combine to
    Σ w L / Σ w with ``weight`` w for 'mean', and to Σ L for 'sum'.

    Attributes:
        reduction: 'mean' or 'sum'.
    """

    reduction: str = "mean"

    def value(self, output: Tensor, target: Tensor) -> Tensor:
        """L, a scalar, whose gradient by autograd is the stable residual."""
        raise NotImplementedError

    def value_and_slope(self, output: Tensor, target: Tensor) -> tuple[Tensor, Tensor] | None:
        """L and ∂L/∂z without graph, of the same bits as by autograd but faster; None: take ``value`` and autograd."""
        return None

    def is_linear(self, output: Tensor, target: Tensor) -> bool:
        """True if L is linear in z, so that G = 0."""
        return False

    def residual(self, output: Tensor, target: Tensor) -> Tensor:
        """∂L/∂z in the shape of z, differentiable in z."""
        return self.summed_residual(output, target) / self.divisor(output, target)

    def hessian_product(self, output: Tensor, target: Tensor, vector: Tensor) -> Tensor:
        """(∇²_z L) v in the shape of z, differentiable in z and v."""
        return self.summed_hessian_product(output, target, vector) / self.divisor(output, target)

    def weight(self, output: Tensor, target: Tensor) -> Number:
        """Weight of this batch's L where the losses of several batches are combined; 1 for reduction 'sum'."""
        return self.divisor(output, target)

    def divisor(self, output: Tensor, target: Tensor) -> Number:
        """Number d in L = S/d."""
        raise NotImplementedError

    def summed_residual(self, output: Tensor, target: Tensor) -> Tensor:
        """∂S/∂z in the shape of z."""
        raise NotImplementedError

    def summed_hessian_product(self, output: Tensor, target: Tensor, vector: Tensor) -> Tensor:
        """(∇²_z S) v in the shape of z."""
        raise NotImplementedError

    def curved(self, output: Tensor, target: Tensor, divisor: Number) -> Callable[[Tensor], Tensor]:
        """The map v ↦ (∇²_z S) v, for many vectors.

        Args:
            output: z.
            target: of the batch.
            divisor: d, known already.
        """
        return lambda vector: self.summed_hessian_product(output, target, vector)

    def target(self, output: Tensor, target: Tensor) -> Tensor:
        """The target in the form that PyTorch's loss takes: class indices as int64, the rest in the output's dtype."""
        return target

    def check(self, output: Tensor, target: Tensor) -> None:
        """Raise unless the target fits the output; reads the target's values, unlike the other functions.

        Raises:
            NmeError: wrong shape or dtype, or a label out of range.
        """


def known_reduction(name: str) -> str:
    """The name of a reduction, if losses of several batches can be combined with it.

    Raises:
        NmeError: it is not 'mean' or 'sum'.
    """
    if name not in ("mean", "sum"):
        raise NmeError(f"the loss has reduction '{name}' (allowed: mean, sum)")
    return name
