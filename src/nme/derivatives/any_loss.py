"""Losses without a closed form: differentiated in the output by autograd."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from nme.derivatives.loss import Loss, Number, known_reduction
from nme.derivatives.nested import mapped, tensors_of
from nme.errors import NmeError


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
            NmeError: the function fails, or does not return one number.
        """
        parts = tensors_of(target)
        versions = [part._version for part in parts if not part.is_inference()]
        try:
            loss = self.function(output, target)
        except (NmeError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            raise NmeError(f"the loss fails: {_first_line(error)}") from error
        if versions != [part._version for part in parts if not part.is_inference()]:
            raise NmeError("the loss writes into the target (expected: that it writes into copies)")
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
        """True if ∂L/∂z is the same everywhere, as for ``NLLLoss``, which takes log-probabilities."""
        if isinstance(self.function, nn.NLLLoss) or self.function is functional.nll_loss:
            return True
        here = self.residual(output.detach(), target)
        if not here.requires_grad:
            return True
        try:
            # Far away on both sides: a loss that is linear in places, or saturates, is not so on the other side.
            far = [self.residual(output.detach() * times, target) for times in (2**20, -(2**20))]
        except NmeError:  # a loss of positive numbers
            return False
        return bool(output.any()) and all(torch.equal(here, there) for there in far)

    def hessian_product(self, output: Tensor, target: Tensor, vector: Tensor) -> Tensor:
        """(∇²_z L) v in the shape of z; by autograd, differentiable in z and v if z or v requires a gradient."""
        further = torch.is_grad_enabled() and (output.requires_grad or vector.requires_grad)
        with torch.enable_grad():
            # A view: ``vector`` may depend on the output itself, by a last layer that has saved it.
            z = output.view_as(output) if output.requires_grad else output.detach().requires_grad_()
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


class SeveralBatches:
    """Batches whose losses are combined by ``Loss.weight``: for ``AnyLoss`` it is seen whether that is right.

    A mean over n examples has 1/n of an example's own residual, a sum all of it, whatever the other examples are. So
    the residual of one example is compared with its residual in a batch of this example twice, at outputs that are
    scaled to 1, where no residual cancels; and in a batch of two with an example of another batch, which may weigh
    more or less. Cost: a loss of the batch, and a few of one or two examples; no pass of the model.

    Args:
        loss: of each batch.
        sure: there are several, though one may come here; otherwise one batch alone may have any loss.
    """

    def __init__(self, loss: Loss, sure: bool = False):
        self.loss, self.count, self.problem = loss, int(sure), ""
        self.shape: torch.Size | None = None
        self.examples: list[Example] = []

    def add(self, output: Tensor, target: Any) -> None:
        """Take a further batch: z and its target.

        Raises:
            NmeError: there are several batches, and the losses of one of them do not combine.
        """
        if not isinstance(self.loss, AnyLoss) or output.is_meta:
            return
        self.count += 1
        shape = output.shape[1:]
        self.problem = self.problem or _problem(self.loss, output.detach(), target, self.examples)
        if self.loss.reduction == "mean" and output.dim() and output.numel():
            first = torch.zeros(1, dtype=torch.int64, device=output.device)
            self.examples = [*self.examples, _example(output.detach(), target, first)][:2]
        if self.shape is not None and shape != self.shape and self.loss.reduction == "mean":
            self.problem = (
                f"outputs of an example have shapes {tuple(self.shape)} and {tuple(shape)}, so it is not known how the"
                " loss weighs batches (give one batch, or CrossEntropyLoss, MSELoss, BCEWithLogitsLoss)"
            )
        self.shape = shape
        if self.count > 1 and self.problem:
            raise NmeError(self.problem)


def _apart(loss: AnyLoss) -> AnyLoss:
    """The loss, or with a copy of a module that has buffers, which a further call may change."""
    function = loss.function
    stateful = isinstance(function, nn.Module) and next(function.buffers(), None) is not None
    return AnyLoss(deepcopy(function), loss.reduction) if stateful else loss


class Example(NamedTuple):
    """An example of a batch as a batch of its own; ``own`` says which parts of the target have a row for each."""

    output: Tensor
    target: Any
    own: list[bool]


def _example(output: Tensor, target: Any, row: Tensor) -> Example:
    leaves: list[Any] = []
    mapped(target, leaves.append)
    count = len(output)
    own = [_has_rows(leaf, count) for leaf in leaves]
    return Example(output[row], mapped(target, lambda leaf: _chosen(leaf, row, count)), own)


def _joined(one: Example, other: Example) -> tuple[Tensor, Any] | None:
    """A batch of two examples; None: they do not fit together."""
    leaves: list[Any] = []
    mapped(other.target, leaves.append)
    if len(leaves) != len(one.own):
        return None
    beside = iter(zip(leaves, one.own, other.own, strict=True))

    def join(leaf: Any) -> Any:
        following, mine, its = next(beside)
        return torch.cat([leaf, following]) if mine and its else leaf

    try:
        return torch.cat([one.output, other.output]), mapped(one.target, join)
    except (RuntimeError, TypeError):
        return None


def _problem(loss: AnyLoss, output: Tensor, target: Any, others: list[Example]) -> str:
    """The reason why this is no mean (or sum) over examples, which the first dimension of the output counts.

    ``others`` are examples of batches before, which may weigh more or less, as a text with fewer tokens.
    """
    mean = loss.reduction == "mean"
    if not output.dim():
        number = (
            "the model's output is one number, so it is not known how many examples each batch has (give one batch)"
        )
        return number if mean else ""
    if not output.numel():
        return ""
    count = len(output)
    output = output / output.masked_fill(output.isinf(), 0).abs().amax().clamp(min=1)
    hint = "give one batch, AnyLoss(loss, 'sum') for a sum, or CrossEntropyLoss, MSELoss, BCEWithLogitsLoss"
    reason = (
        f"the loss is not a {loss.reduction} over examples, the output's first dimension, so losses of several batches"
        f" do not combine ({hint})"
    )
    try:
        among = _apart(loss).residual(output, target).detach()
        if not bool(torch.isfinite(among).all()):
            return ""  # NaN are found elsewhere
        largest = among.reshape(count, -1).abs().amax(1).argmax()
        twice = largest.expand(2)
        alone = _apart(loss).residual(output[twice], mapped(target, lambda leaf: _chosen(leaf, twice, count))).detach()
        own = _example(output, target, largest[None])
        for other in others:
            pair = _joined(own, other)
            beside = alone if pair is None else _apart(loss).residual(*pair).detach()
            if bool(torch.isfinite(beside).all()) and not _same(beside[0], alone[0]):
                return reason
    except NmeError:
        return reason
    among, alone = (among[twice] * count, alone * 2) if mean else (among[twice], alone)
    return "" if _same(alone, among) else reason


def _same(found: Tensor, expected: Tensor) -> bool:
    return bool(((found - expected).abs() <= _limit(expected)).all())


def _limit(residual: Tensor) -> float:
    return (1e-4 if residual.dtype == torch.float32 else 1e-6) * float(residual.abs().max())


def _chosen(leaf: Any, rows: Tensor, count: int) -> Any:
    return leaf[rows.to(leaf.device)] if _has_rows(leaf, count) else leaf


def _has_rows(leaf: Any, count: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and len(leaf) == count


def _derivative(value: Tensor, z: Tensor, create_graph: bool) -> Tensor:
    try:
        return torch.autograd.grad(value, z, create_graph=create_graph, materialize_grads=True)[0]
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, NotImplementedError) as error:
        raise NmeError(f"the loss cannot be differentiated: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
