"""Gradients of a batch's loss and products with its Hessian: the one place that knows how they are computed.

Everything is exact (no finite differences) and uses ``torch.autograd.grad`` only. Costs are in forward passes F; one
gradient is 3 F.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Batch(NamedTuple):
    """Inputs (B, ...) and class labels (B,), on the model's device."""

    inputs: Tensor
    labels: Tensor


class Gradient(NamedTuple):
    """The clean pass of one batch.

    Attributes:
        loss: L = (1/B) Σ ℓ(z_i, y_i), a scalar without graph.
        logits: z, shape (B, C), without graph.
        parameters: the parameters with a gradient, in the model's order.
        gradient: g = ∇L, one tensor per parameter; with its graph if it was asked for.
    """

    loss: Tensor
    logits: Tensor
    parameters: list[nn.Parameter]
    gradient: list[Tensor]


def batch_gradient(model: nn.Module, batch: Batch, keep_graph: bool = False) -> Gradient:
    """Loss and gradient of the batch (cross-entropy, mean over the batch). Cost: 3 F.

    Args:
        model: maps inputs to logits (B, C). Batch norm follows the model's mode; its running statistics are
            updated by this pass, in train mode, and by nothing else.
        batch: inputs and labels.
        keep_graph: keep the graph of g, for ``hessian_product``.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    logits = model(batch.inputs)
    loss = functional.cross_entropy(logits, batch.labels)
    gradient = list(torch.autograd.grad(loss, parameters, create_graph=keep_graph))
    return Gradient(loss.detach(), logits.detach(), parameters, gradient)


def hessian_product(clean: Gradient, vector: list[Tensor]) -> list[Tensor]:
    """Hv, the derivative of g along ``vector`` held constant (paper.md §1), by one backward pass through g's graph.

    Cost: 6 F beyond the gradient (3.0 gradients in all, in a network of convolutions). Frees g's graph.

    Args:
        clean: made with ``keep_graph=True``.
        vector: one tensor per parameter.
    """
    # A gradient that does not depend on the parameters (the last bias of a linear model, say) has no graph: Hv is 0.
    pairs = [(g, v) for g, v in zip(clean.gradient, vector, strict=True) if g.requires_grad]
    if not pairs:
        return [torch.zeros_like(p) for p in clean.parameters]
    outputs, vectors = zip(*pairs, strict=True)
    return list(torch.autograd.grad(outputs, clean.parameters, vectors, materialize_grads=True))


def norm(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of all entries together, accumulated in float64; a scalar in float32 or wider."""
    norms = torch._foreach_norm([t.detach() for t in tensors], dtype=torch.float64)
    return torch.linalg.vector_norm(torch.stack(norms)).to(torch.promote_types(tensors[0].dtype, torch.float32))
