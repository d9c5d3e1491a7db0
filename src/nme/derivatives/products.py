"""Gradients of a batch's loss and products with its Hessian: the only module that computes them for training.

Formulas and costs: docs/theory.md, §2; batches in parts: docs/theory.md, §2.1.

Everything is exact (no finite differences), by ``torch.autograd.grad``. Costs are in forward passes F; one gradient is
3 F.

A batch may be the mean over several parts (``Division``), to save memory, and distributed over processes. Losses,
gradients and products are always those of the whole batch, in every process: L = (1/K) Σ L_k over its K parts, so ∇L
and Hv are means, too. Each part has its own batch-norm statistics, so the result does not depend on the number of
processes, except for rounding. A graph is kept between two passes only if the process has a single part; otherwise the
second pass computes the first one again, which costs 3 F. ``MicroBatches`` are parts of any sizes: L is the mean of
the L_k weighted by ``Loss.weight``, or their sum for a loss with reduction 'sum'.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nme.derivatives.any_loss import SeveralBatches
from nme.derivatives.batch import Batch, MicroBatches
from nme.derivatives.combining import AnyBatch, anywhere, mean, mean_over_parts, weighted_mean
from nme.derivatives.elementary import elementary_batch_norm
from nme.derivatives.running_statistics import RunningStatistics, frozen_statistics
from nme.derivatives.single_pass import Jacobian, Keep, is_wrong_at_third_order, pairing, single_pass
from nme.errors import NmeError


class Gradient(NamedTuple):
    """The clean pass of one batch.

    Attributes:
        loss: L of the whole batch, a scalar without graph; (1/B) Σ ℓ(z_i, y_i) for cross-entropy.
        logits: z of this process's examples, shape (b, C), without graph; one tensor per part for ``MicroBatches``.
        parameters: the parameters with a gradient, in the model's order.
        gradient: g = ∇L of the whole batch, one tensor per parameter, without graph.
        kept_logits: z with its graph, if requested and the process has a single part.
        kept_gradient: this part's g with its graph, if requested and the process has a single part.
        kept_jacobian: this part's J, where g = Jᵀ∂L/∂z, if requested and the process has a single part.
        targets: of this process's parts.
        used: for each parameter, True if the loss depends on it.
        shares: of this process's parts in L; None: parts of equal size.
        weight: number of examples of the whole batch, if the loss is their mean; with ``keep_logits`` or in pieces.
    """

    loss: Tensor
    logits: Tensor | list[Tensor]
    parameters: list[nn.Parameter]
    gradient: list[Tensor]
    kept_logits: Tensor | None = None
    kept_gradient: list[Tensor] | None = None
    kept_jacobian: Jacobian | None = None
    targets: list[Any] = []  # noqa: RUF012
    used: list[bool] | None = None
    shares: list[float] | None = None
    weight: float = 1


def batch_gradient(
    model: nn.Module,
    batch: AnyBatch,
    keep_graph: bool = False,
    keep_logits: bool = False,
    keep_jacobian: bool = False,
    logits: Tensor | None = None,
) -> Gradient:
    """Loss and gradient of the batch. Cost: 3 F.

    Args:
        model: maps inputs to logits (B, C), or to outputs that the loss takes. Batch norm follows the model's mode. In
            train mode, this pass and nothing else updates its running statistics: once, by the mean over the parts.
        batch: inputs, targets and loss.
        keep_graph: keep the graph of g, for ``hessian_product``.
        keep_logits: keep the graph of the logits, for a pass with different labels.
        keep_jacobian: keep J, for products with the Gauss-Newton matrix.
        logits: ``kept_logits`` of an earlier pass with different labels, so that z is computed only once.

    Raises:
        NmeError: the loss does not depend on the parameters, or with ``keep_jacobian`` not only by the output; losses
            of several parts do not combine (``SeveralBatches``).
    """
    parts = batch.parts()
    evaluation = parts[0].evaluation
    if evaluation is None:
        parameters = [p for p in model.parameters() if p.requires_grad]
    else:  # found once per step
        parameters = evaluation.facts.parameters
    keep = Keep(keep_graph, keep_logits, keep_jacobian) if len(parts) == 1 else Keep()
    if isinstance(batch, Batch) and batch.split is None:
        one = single_pass(model, batch, parameters, keep, logits)
        # Reads the labels of a loss that may ignore some.
        count = batch.loss.divisor if evaluation else (lambda *_: batch.size)
        weight = float(count(one.output, one.target)) if keep_logits else 1
        records = {"targets": [one.target], "used": one.used, "weight": weight, **one.kept}
        return Gradient(one.loss, one.output, parameters, one.gradient, **records)
    weighted = isinstance(batch, MicroBatches)
    statistics = RunningStatistics(model)
    several = None
    if isinstance(batch, MicroBatches) and (len(parts) > 1 or batch.group is not None):
        several = SeveralBatches(parts[0].loss, sure=batch.group is not None)
    outputs, targets, weights, sums = [], [], [], None
    kept: dict[str, Any] = {}
    used = [False] * len(parameters)
    for part in parts:
        statistics.begin()
        one = single_pass(model, part, parameters, keep, logits)
        if several is not None:
            several.add(one.output, one.target)
        kept = dict(one.kept)
        used = [before or now for before, now in zip(used, one.used, strict=True)]
        terms = [one.loss, *one.gradient, *statistics.end()]
        if weighted:
            weights.append(float(part.loss.weight(one.output, one.target)))
            # A part without any label that counts has a loss of 0/0, and no share.
            own = [t * weights[-1] if weights[-1] else torch.zeros_like(t) for t in terms[: len(parameters) + 1]]
            terms = [*own, *terms[len(parameters) + 1 :]]
        sums = terms if sums is None else list(torch._foreach_add(sums, terms))
        outputs.append(one.output)
        targets.append(one.target)
    assert sums is not None
    if isinstance(batch, MicroBatches):
        used = anywhere(batch, used, sums[0].device)
        loss, *means, total = weighted_mean(batch, sums, weights, len(parameters) + 1)
        weight = float(total)
        share = 1 if batch.items[0].loss.reduction == "sum" else weight
        kept |= {"shares": [w / share for w in weights], "weight": share}
    else:
        loss, *means = mean(batch, sums)
        if keep_logits:
            kept["weight"] = batch.size
    statistics.replace(means[len(parameters) :])
    joined = outputs if weighted else outputs[0] if len(parts) == 1 else torch.cat(outputs)
    return Gradient(loss, joined, parameters, means[: len(parameters)], targets=targets, used=used, **kept)


def hessian_product(
    model: nn.Module, batch: AnyBatch, clean: Gradient, vector: list[Tensor], keep_graph: bool = False
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
        assert gradient is not None
        # A gradient that does not depend on the parameters (the last bias of a linear model) has no graph: Hv is 0.
        pairs = [(g, v) for g, v in zip(gradient, vector, strict=True) if g.requires_grad]
        if not pairs:
            return [torch.zeros_like(p) for p in clean.parameters]
        outputs, vectors = zip(*pairs, strict=True)
        form = pairing(outputs, vectors)
        return list(torch.autograd.grad(form, clean.parameters, retain_graph=keep_graph, materialize_grads=True))

    return mean_over_parts(batch, of_part, clean.gradient, clean.shares)


def gauss_newton_product(model: nn.Module, batch: AnyBatch, clean: Gradient, vector: list[Tensor]) -> list[Tensor]:
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
        _refuse_linear(part, jacobian)
        pulled = part.loss.hessian_product(jacobian.logits.detach(), jacobian.target, jv)
        return list(torch.autograd.grad((jacobian.logits * pulled).sum(), clean.parameters, materialize_grads=True))

    return mean_over_parts(batch, of_part, clean.gradient, clean.shares)


def gauss_newton_form_gradient(
    model: nn.Module, batch: AnyBatch, clean: Gradient, vector: list[Tensor]
) -> list[Tensor]:
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
        z, target, loss = jacobian.logits, jacobian.target, part.loss
        ju = jacobian.along(vector, keep_graph=True)
        _refuse_linear(part, jacobian)
        form = (ju * loss.summed_hessian_product(z, target, ju)).sum() / loss.divisor(z, target)
        return list(torch.autograd.grad(form, clean.parameters, retain_graph=True, materialize_grads=True))

    return mean_over_parts(batch, of_part, clean.gradient, clean.shares)


def _jacobian(model: nn.Module, part: Batch, clean: Gradient) -> Jacobian:
    """The part's J, right to the method's highest derivative."""
    if clean.kept_jacobian is not None:
        return clean.kept_jacobian
    elementary = elementary_batch_norm(model if is_wrong_at_third_order(model, part) else None)
    with frozen_statistics(model), elementary:
        jacobian = batch_gradient(model, part, keep_jacobian=True).kept_jacobian
    assert jacobian is not None
    return jacobian


def _refuse_linear(part: Batch, jacobian: Jacobian) -> None:
    loss = part.loss
    if part.evaluation is not None:
        part.evaluation.refuse_unrepeatable_loss()
        if not part.evaluation.inspect:
            return
    if loss.is_linear(jacobian.logits, jacobian.target):
        raise NmeError(
            "the loss is linear in the model's output, so G is 0 (log_softmax? return logits; CrossEntropyLoss)"
        )
