"""One pass over one part of a batch: output, loss and gradient, and the graphs that products need."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function

from nme.derivatives.batch import Batch
from nme.derivatives.elementary import elementary_batch_norm, has_wrong_third_derivative
from nme.derivatives.graphs import refuse_foreign_parameters, refuse_once_differentiable, refuse_wrong_derivatives
from nme.derivatives.losses import AnyLoss, Loss
from nme.derivatives.modes import cotangents_only, differentiated_twice
from nme.derivatives.running_statistics import frozen_statistics, held_buffers
from nme.errors import NmeError


class _Pairing(Function):
    @staticmethod
    def forward(ctx: Any, vectors: Sequence[Tensor], *outputs: Tensor) -> Tensor:
        ctx.vectors = vectors
        return torch.zeros((), device=outputs[0].device)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.vectors


def pairing(outputs: Sequence[Tensor], vectors: Sequence[Tensor]) -> Tensor:
    """A scalar with the derivative of ⟨outputs, vectors⟩ in the outputs, ``vectors``; its value is not computed.

    ``torch.autograd.grad`` accepts vectors, too, but then imports a computer algebra system: 0.3 s for every job.

    Raises:
        ValueError: the shapes of a vector and its output differ.
    """
    for vector, output in zip(vectors, outputs, strict=True):
        if vector.shape != output.shape:
            raise ValueError(f"a vector has shape {tuple(vector.shape)} (allowed: {tuple(output.shape)})")
    scalar: Tensor = _Pairing.apply(vectors, *outputs)
    return scalar


class Jacobian(NamedTuple):
    """J, the derivative of one part's logits in the parameters, as a graph for products with J and Jᵀ.

    Attributes:
        logits: z with its graph, (b, C), or a model's output of any shape.
        target: of the loss.
        cotangent: w, in the shape of z, a leaf.
        pulled: Jᵀw with its graph, one tensor per parameter.
    """

    logits: Tensor
    target: Any
    cotangent: Tensor
    pulled: list[Tensor]

    def along(self, vector: list[Tensor], keep_graph: bool = False) -> Tensor:
        """Jv, in the shape of z: the derivative of ⟨Jᵀw, v⟩ in w, in which it is linear (docs/theory.md, §2.3).

        Cost: 2 F, for each layer one product forward and one with v's part, on the kept graph of g. Forward mode would
        compute z again.
        """
        form = pairing(self.pulled, vector)
        with cotangents_only():  # always retained: the graph of the logits is still needed
            (jv,) = torch.autograd.grad(form, self.cotangent, retain_graph=True, create_graph=keep_graph)
        return jv


def logits_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """z, shape (b, C), in float32 or wider; bfloat16 inputs use ``torch.autocast``, which leaves parameters unchanged.

    The loss and all norms, computed from z, are then in float32 or wider, and so are gradients of parameters.
    """
    z: Tensor
    if inputs.dtype != torch.bfloat16:
        z = model(inputs)
        return z
    with torch.autocast(inputs.device.type, torch.bfloat16):
        z = model(inputs).float()
    return z


def evaluated(model: nn.Module, part: Batch) -> tuple[Tensor, Any]:
    """Output with its graph, and target, of one part."""
    if part.evaluation is None:
        return logits_of(model, part.inputs), part.labels
    return part.evaluation(model, part.inputs, part.labels)


def loss_value(part: Batch, loss: Loss, z: Tensor, target: Any) -> Tensor:
    """L of one part, a scalar with its graph."""
    return loss.value(z, target) if part.evaluation is None else part.evaluation.loss(loss, z, target)


class Keep(NamedTuple):
    """Which graphs a pass keeps: that of g, that of the logits, J."""

    graph: bool = False
    logits: bool = False
    jacobian: bool = False


class Pass(NamedTuple):
    """Loss, output and gradient of one part, without graph.

    Attributes:
        loss: a scalar.
        output: of the model.
        target: of the loss.
        gradient: one tensor per parameter.
        used: for each parameter, True if the loss depends on it.
        kept: graphs by their names in ``Gradient``.
    """

    loss: Tensor
    output: Tensor
    target: Any
    gradient: list[Tensor]
    used: list[bool]
    kept: dict[str, Any]


def single_pass(
    model: nn.Module, part: Batch, parameters: list[nn.Parameter], keep: Keep, logits: Tensor | None = None
) -> Pass:
    """Loss and gradient of one part. Cost: 3 F, and 3 F more for J where PyTorch's own layers do not give it.

    Args:
        model: see ``batch_gradient``.
        part: a batch of one part.
        parameters: θ.
        keep: graphs to keep.
        logits: z with its graph, if known.

    Raises:
        NmeError: the loss does not depend on the parameters, or with ``keep.jacobian`` not only by the output.
    """
    jacobian_apart = keep.jacobian and is_wrong_at_third_order(model, part)
    plain = keep._replace(jacobian=False) if jacobian_apart else keep
    with differentiated_twice(any(plain)):
        z, target = evaluated(model, part) if logits is None else (logits, part.labels)
    output = z.detach()
    # Differentiated only once, a loss with a closed form needs no graph of its own.
    closed = part.loss.value_and_slope(output, target) if z.requires_grad and not plain.graph else None
    loss = loss_value(part, part.loss, z, target) if closed is None else closed[0]
    if closed is None and not loss.requires_grad:
        raise NmeError("the loss does not depend on a parameter with requires_grad=True")
    inspected = part.evaluation if part.evaluation is not None and part.evaluation.inspect else None
    if inspected is not None:
        refuse_foreign_parameters(z if closed else loss, inspected.facts.parameters)
        refuse_wrong_derivatives(z, inspected.order)
    kept: dict[str, Any] = {"kept_logits": z} if plain.logits else {}
    with held_buffers(None if part.evaluation is None else part.evaluation.facts):
        if plain.jacobian:
            w = _cotangent(part, z, target, loss, parameters) if closed is None else closed[1]
            scalar, slope = (z * w.requires_grad_()).sum(), None
        elif closed is None:
            scalar, slope = loss, None
        elif part.evaluation is None:
            scalar, slope = pairing([z], [closed[1]]), None
        else:  # slower to begin with (see ``pairing``), faster in each step
            scalar, slope = z, closed[1]
        create = plain.graph or plain.jacobian
        retain = plain.logits or None
        # By keywords: compilers take no notice of positions.
        found = torch.autograd.grad(
            scalar, parameters, grad_outputs=slope, retain_graph=retain, create_graph=create, allow_unused=True
        )
    if inspected is not None and create:
        refuse_once_differentiable([g for g in found if g is not None])
    used = [g is not None for g in found]
    gradient = list(found)
    if not all(used):
        gradient = [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
    if plain.jacobian:
        kept["kept_jacobian"] = Jacobian(z, target, w, gradient)
    if plain.graph:
        kept["kept_gradient"] = gradient
    if create:
        gradient = [g.detach() for g in gradient]
    if jacobian_apart:
        with frozen_statistics(model), elementary_batch_norm(model):
            kept |= single_pass(model, part, parameters, keep).kept
    return Pass(loss.detach(), output, target, gradient, used, kept)


def is_wrong_at_third_order(model: nn.Module, part: Batch) -> bool:
    """True if third derivatives are taken of PyTorch's own batch norm (docs/theory.md, §4.2).

    Networks of nme, whose batches have no ``evaluation``, have another one.
    """
    return part.evaluation is not None and part.evaluation.order > 2 and has_wrong_third_derivative(model)


def _cotangent(part: Batch, z: Tensor, target: Any, loss: Tensor, parameters: list[nn.Parameter]) -> Tensor:
    """W = ∂L/∂z."""
    if not isinstance(part.loss, AnyLoss):
        if isinstance(target, Tensor) and target.requires_grad:
            slopes = torch.autograd.grad(target.sum(), parameters, retain_graph=True, allow_unused=True)
            if any(slope is not None for slope in slopes):
                raise NmeError("the target depends on parameters (expected a constant: target.detach())")
        return torch.autograd.grad(loss, z)[0]
    if part.evaluation is not None:
        part.evaluation.refuse_unrepeatable_loss()
    leaf = z.detach().requires_grad_()
    w, *others = torch.autograd.grad(part.loss.value(leaf, target), [leaf, *parameters], allow_unused=True)
    if any(other is not None for other in others):
        raise NmeError("the loss depends on parameters directly (expected: only by the model's output)")
    return torch.zeros_like(z) if w is None else w
