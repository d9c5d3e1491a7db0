"""Gradients of a batch's loss and products with its Hessian: the only module that computes them for training.

Formulas and costs: docs/theory.md, §2; batches in parts: docs/theory.md, §2.1.

Everything is exact (no finite differences), by ``torch.autograd.grad``. Costs are in forward passes F; one gradient is
3 F.

A batch may be the mean over several parts (``Division``), to save memory, and distributed over processes. Losses,
gradients and products are always those of the whole batch, in every process: L = (1/K) Σ L_k over its K parts, so ∇L
and Hv are means, too. Each part has its own batch-norm statistics, so the result does not depend on the number of
processes, except for rounding. A graph is kept between two passes only if the process has a single part; otherwise the
second pass computes the first one again, which costs 3 F.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.autograd import Function

from nme.derivatives.batch import Batch
from nme.derivatives.cross_entropy import cross_entropy, softmax_hessian_product
from nme.derivatives.modes import cotangents_only, differentiated_twice
from nme.derivatives.running_statistics import RunningStatistics, frozen_statistics


class _Pairing(Function):
    @staticmethod
    def forward(ctx, vectors, *outputs):
        ctx.vectors = vectors
        return torch.zeros((), device=outputs[0].device)

    @staticmethod
    def backward(ctx, _):
        return None, *ctx.vectors


def pairing(outputs: list[Tensor], vectors: list[Tensor]) -> Tensor:
    """A scalar with the derivative of ⟨outputs, vectors⟩ in the outputs, ``vectors``; its value is not computed.

    ``torch.autograd.grad`` accepts vectors, too, but then imports a computer algebra system: 0.3 s for every job.

    Raises:
        ValueError: the shapes of a vector and its output differ.
    """
    for vector, output in zip(vectors, outputs, strict=True):
        if vector.shape != output.shape:
            raise ValueError(f"a vector has shape {tuple(vector.shape)} (allowed: {tuple(output.shape)})")
    return _Pairing.apply(vectors, *outputs)


class Jacobian(NamedTuple):
    """J, the derivative of one part's logits in the parameters, as a graph for products with J and Jᵀ.

    Attributes:
        logits: z with its graph, (b, C).
        cotangent: w, (b, C), a leaf.
        pulled: Jᵀw with its graph, one tensor per parameter.
    """

    logits: Tensor
    cotangent: Tensor
    pulled: list[Tensor]

    def along(self, vector: list[Tensor], keep_graph: bool = False) -> Tensor:
        """Jv, (b, C): the derivative of ⟨Jᵀw, v⟩ in w, since this form is linear in w (docs/theory.md, §2.3).

        Cost: 2 F, for each layer one product forward and one with v's part, on the kept graph of g. Forward mode would
        compute z again.
        """
        # Always retained: the graph of the logits is still needed.
        options = {"retain_graph": True, "create_graph": keep_graph}
        with cotangents_only():
            return torch.autograd.grad(pairing(self.pulled, vector), self.cotangent, **options)[0]


class Gradient(NamedTuple):
    """The clean pass of one batch.

    Attributes:
        loss: L = (1/B) Σ ℓ(z_i, y_i) of the whole batch, a scalar without graph.
        logits: z of this process's examples, shape (b, C), without graph.
        parameters: the parameters with a gradient, in the model's order.
        gradient: g = ∇L of the whole batch, one tensor per parameter, without graph.
        kept_logits: z with its graph, if requested and the process has a single part.
        kept_gradient: this part's g with its graph, if requested and the process has a single part.
        kept_jacobian: this part's J, where g = Jᵀ∂L/∂z, if requested and the process has a single part.
    """

    loss: Tensor
    logits: Tensor
    parameters: list[nn.Parameter]
    gradient: list[Tensor]
    kept_logits: Tensor | None = None
    kept_gradient: list[Tensor] | None = None
    kept_jacobian: Jacobian | None = None


def logits_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """z, shape (b, C), in float32 or wider; bfloat16 inputs use ``torch.autocast``, which leaves parameters unchanged.

    The loss and all norms, computed from z, are then in float32 or wider, and so are gradients of parameters.
    """
    if inputs.dtype != torch.bfloat16:
        return model(inputs)
    with torch.autocast(inputs.device.type, torch.bfloat16):
        return model(inputs).float()


def batch_gradient(
    model: nn.Module,
    batch: Batch,
    keep_graph: bool = False,
    keep_logits: bool = False,
    keep_jacobian: bool = False,
    logits: Tensor | None = None,
) -> Gradient:
    """Loss and gradient of the batch (cross-entropy, mean over the batch). Cost: 3 F.

    Args:
        model: maps inputs to logits (B, C). Batch norm follows the model's mode. In train mode, this pass and nothing
            else updates its running statistics: once, by the mean over the parts.
        batch: inputs and labels.
        keep_graph: keep the graph of g, for ``hessian_product``.
        keep_logits: keep the graph of the logits, for a pass with different labels.
        keep_jacobian: keep J, for products with the Gauss-Newton matrix.
        logits: ``kept_logits`` of an earlier pass with different labels, so that z is computed only once.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    statistics = RunningStatistics(model if batch.split else None)
    parts = batch.parts()
    one = len(parts) == 1
    outputs, sums, kept = [], None, {}
    for part in parts:
        statistics.begin()
        with differentiated_twice(one and (keep_graph or keep_logits or keep_jacobian)):
            z = logits_of(model, part.inputs) if logits is None else logits
        loss = cross_entropy(z, part.labels)
        if keep_jacobian and one:
            (w,) = torch.autograd.grad(loss, z)
            found = list(torch.autograd.grad((z * w.requires_grad_()).sum(), parameters, create_graph=True))
            kept = {"kept_jacobian": Jacobian(z, w, found)}
        elif (keep_graph or keep_logits) and one:
            found = list(torch.autograd.grad(loss, parameters, retain_graph=True, create_graph=keep_graph))
            kept = {"kept_logits": z if keep_logits else None, "kept_gradient": found if keep_graph else None}
        else:
            found = torch.autograd.grad(loss, parameters)
        terms = [loss.detach(), *([g.detach() for g in found] if kept else found), *statistics.end()]
        sums = terms if sums is None else list(torch._foreach_add(sums, terms))
        outputs.append(z.detach())
    loss, *means = _mean(batch, sums)
    statistics.replace(means[len(parameters) :])
    joined = outputs[0] if one else torch.cat(outputs)
    return Gradient(loss, joined, parameters, means[: len(parameters)], **kept)


def mean_over_parts(batch: Batch, compute: Callable[[Batch], list[Tensor]]) -> list[Tensor]:
    """Mean of ``compute`` over the parts of the whole batch; the same in every process."""
    sums = None
    for part in batch.parts():
        found = compute(part)
        # Not in place: autograd may return the same tensor for two parameters.
        sums = found if sums is None else list(torch._foreach_add(sums, found))
    return _mean(batch, sums)


def _mean(batch: Batch, sums: list[Tensor]) -> list[Tensor]:
    if batch.split is None:
        return sums
    means = list(torch._foreach_div(sums, batch.split.parts))
    if not distributed.is_initialized():
        return means
    flat = torch.cat([m.reshape(-1) for m in means])
    distributed.all_reduce(flat)
    # Copied into the memory order of its parameter; otherwise later steps are slower.
    parts = flat.split([m.numel() for m in means])
    return [torch.empty_like(m).copy_(part.view_as(m)) for m, part in zip(means, parts, strict=True)]


def hessian_product(
    model: nn.Module, batch: Batch, clean: Gradient, vector: list[Tensor], keep_graph: bool = False
) -> list[Tensor]:
    """Hv, the derivative of g along ``vector`` held constant, by one backward pass (docs/theory.md, §2.2).

    Cost: 6 F beyond the gradient (3.0 gradients in total, in a convolutional network). Frees g's graph unless
    ``keep_graph``.

    Args:
        model: in the mode of the clean pass.
        batch: the batch of the clean pass.
        clean: made with ``keep_graph=True``.
        vector: one tensor per parameter.
        keep_graph: keep the graph, for further products.
    """

    def of_part(part: Batch) -> list[Tensor]:
        gradient = clean.kept_gradient
        if gradient is None:
            with frozen_statistics(model):
                gradient = batch_gradient(model, part, keep_graph=True).kept_gradient
        # A gradient that does not depend on the parameters (the last bias of a linear model) has no graph: Hv is 0.
        pairs = [(g, v) for g, v in zip(gradient, vector, strict=True) if g.requires_grad]
        if not pairs:
            return [torch.zeros_like(p) for p in clean.parameters]
        outputs, vectors = zip(*pairs, strict=True)
        options = {"retain_graph": keep_graph, "materialize_grads": True}
        return list(torch.autograd.grad(pairing(outputs, vectors), clean.parameters, **options))

    return mean_over_parts(batch, of_part)


def gauss_newton_product(model: nn.Module, batch: Batch, clean: Gradient, vector: list[Tensor]) -> list[Tensor]:
    """Gv = (1/B) Σ J_iᵀ (∇²_z ℓ_i) J_i v (docs/theory.md, §2.3): Jv, and one more pass back from the logits.

    Cost: 4 F beyond the gradient (2.33 gradients in total).

    Args:
        model: in the mode of the clean pass.
        batch: the batch of the clean pass.
        clean: made with ``keep_jacobian=True``.
        vector: one tensor per parameter.
    """

    def of_part(part: Batch) -> list[Tensor]:
        jacobian = _jacobian(model, part, clean)
        jv = jacobian.along(vector)
        pulled = softmax_hessian_product(jacobian.logits.detach(), jv) / len(jv)
        return list(torch.autograd.grad((jacobian.logits * pulled).sum(), clean.parameters, materialize_grads=True))

    return mean_over_parts(batch, of_part)


def gauss_newton_form_gradient(model: nn.Module, batch: Batch, clean: Gradient, vector: list[Tensor]) -> list[Tensor]:
    """∇(uᵀGu), uᵀGu = (1/B) Σ (J_i u)ᵀ (∇²_z ℓ_i) (J_i u), differentiated in full, ∇²_z ℓ included.

    Cost: 7 F beyond the gradient (3.33 gradients in total): Ju, and back through it to the weights, to the inputs of
    the layers and to their derivatives. See docs/theory.md, §2.5.

    Args:
        model: in the mode of the clean pass.
        batch: the batch of the clean pass.
        clean: made with ``keep_jacobian=True``; its graphs are kept.
        vector: u, one tensor per parameter.
    """

    def of_part(part: Batch) -> list[Tensor]:
        jacobian = _jacobian(model, part, clean)
        ju = jacobian.along(vector, keep_graph=True)
        form = (ju * softmax_hessian_product(jacobian.logits, ju)).sum() / len(ju)
        return list(torch.autograd.grad(form, clean.parameters, retain_graph=True, materialize_grads=True))

    return mean_over_parts(batch, of_part)


def _jacobian(model: nn.Module, part: Batch, clean: Gradient) -> Jacobian:
    if clean.kept_jacobian is not None:
        return clean.kept_jacobian
    with frozen_statistics(model):
        return batch_gradient(model, part, keep_jacobian=True).kept_jacobian
