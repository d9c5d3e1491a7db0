"""Gradients of a batch's loss and products with its Hessian: the one place that knows how they are computed.

Everything is exact (no finite differences), by ``torch.autograd.grad`` and its forward mode. Costs are in forward
passes F; one gradient is 3 F.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call
from torch.nn import functional


class Batch(NamedTuple):
    """Inputs (B, ...) and class labels (B,), on the model's device."""

    inputs: Tensor
    labels: Tensor


class Gradient(NamedTuple):
    """The clean pass of one batch.

    Attributes:
        loss: L = (1/B) Σ ℓ(z_i, y_i), a scalar without graph.
        logits: z, shape (B, C); with its graph if it was asked for.
        parameters: the parameters with a gradient, in the model's order.
        gradient: g = ∇L, one tensor per parameter; with its graph if it was asked for.
    """

    loss: Tensor
    logits: Tensor
    parameters: list[nn.Parameter]
    gradient: list[Tensor]


def batch_gradient(model: nn.Module, batch: Batch, keep_graph: bool = False, keep_logits: bool = False) -> Gradient:
    """Loss and gradient of the batch (cross-entropy, mean over the batch). Cost: 3 F.

    Args:
        model: maps inputs to logits (B, C). Batch norm follows the model's mode; its running statistics are
            updated by this pass, in train mode, and by nothing else.
        batch: inputs and labels.
        keep_graph: keep the graph of g, for ``hessian_product``.
        keep_logits: keep the graph of the logits, for ``gauss_newton_product``.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    logits = model(batch.inputs)
    loss = functional.cross_entropy(logits, batch.labels)
    keep = keep_graph or keep_logits
    gradient = list(torch.autograd.grad(loss, parameters, create_graph=keep_graph, retain_graph=keep))
    return Gradient(loss.detach(), logits if keep_logits else logits.detach(), parameters, gradient)


def hessian_product(clean: Gradient, vector: list[Tensor], keep_graph: bool = False) -> list[Tensor]:
    """Hv, the derivative of g along ``vector`` held constant (paper.md §1), by one backward pass through g's graph.

    Cost: 6 F beyond the gradient (3.0 gradients in all, in a network of convolutions). Frees g's graph unless told
    to keep it.

    Args:
        clean: made with ``keep_graph=True``.
        vector: one tensor per parameter.
        keep_graph: keep g's graph, for another product.
    """
    # A gradient that does not depend on the parameters (the last bias of a linear model, say) has no graph: Hv is 0.
    pairs = [(g, v) for g, v in zip(clean.gradient, vector, strict=True) if g.requires_grad]
    if not pairs:
        return [torch.zeros_like(p) for p in clean.parameters]
    outputs, vectors = zip(*pairs, strict=True)
    options = {"retain_graph": keep_graph, "materialize_grads": True}
    return list(torch.autograd.grad(outputs, clean.parameters, vectors, **options))


def gauss_newton_product(model: nn.Module, batch: Batch, clean: Gradient, vector: list[Tensor]) -> list[Tensor]:
    """Gv = (1/B) Σ J_iᵀ (∇²_z ℓ_i) J_i v (paper.md §1): one forward derivative and one backward pass.

    Cost: 3 F for Jv (forward mode, with z again), 2 F for Jᵀ through the clean pass's graph, which is freed (2.67
    gradients in all).

    Args:
        model: in the mode of the clean pass.
        batch: that of the clean pass.
        clean: made with ``keep_logits=True``.
        vector: one tensor per parameter.
    """
    z, jv = logits_and_derivative(model, batch, vector)
    pulled = softmax_hessian_product(z, jv) / len(z)
    return list(torch.autograd.grad(clean.logits, clean.parameters, pulled, materialize_grads=True))


def logits_and_derivative(model: nn.Module, batch: Batch, vector: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Logits z and J v, both (B, C), by forward mode; running statistics are not touched. Cost: 3 F."""
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    parameters = [p for p in model.parameters() if p.requires_grad]
    with forward_ad.dual_level(), frozen_statistics(model):
        duals = {n: forward_ad.make_dual(p, v) for n, p, v in zip(names, parameters, vector, strict=True)}
        return tuple(forward_ad.unpack_dual(functional_call(model, duals, batch.inputs)))


def softmax_hessian_product(logits: Tensor, vector: Tensor) -> Tensor:
    """(∇²_z ℓ_i) v_i for cross-entropy, row by row: p ⊙ (v − ⟨p, v⟩) with p = softmax(z). Shapes (B, C).

    Near interpolation v_c − ⟨p, v⟩ cancels for the likeliest class. A constant added to v changes nothing, so v is
    taken relative to its entry there.
    """
    p = logits.softmax(1)
    vector = vector - vector.gather(1, logits.argmax(1, keepdim=True))
    return p * (vector - (p * vector).sum(1, keepdim=True))


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norm in train mode normalises with the batch's statistics, and updates no running ones."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


@contextmanager
def displaced(parameters: list[nn.Parameter], displacement: list[Tensor]) -> Iterator[None]:
    """The parameters are θ + displacement inside, and θ again to the last bit outside, also after an exception."""
    before = [p.detach().clone() for p in parameters]
    try:
        with torch.no_grad():
            torch._foreach_add_(parameters, displacement)
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(parameters, before)


def rademacher(parameters: list[nn.Parameter], stream: torch.Generator) -> list[Tensor]:
    """A probe u with independent entries ±1 for each parameter; E u uᵀ = I."""
    return [_signs(p.shape, stream).to(p) for p in parameters]


def _signs(shape: torch.Size, stream: torch.Generator) -> Tensor:
    return 2 * torch.randint(2, shape, generator=stream, dtype=torch.int8) - 1


def normal(parameters: list[nn.Parameter], stream: torch.Generator) -> list[Tensor]:
    """A probe ε ~ N(0, I)."""
    return [torch.randn(p.shape, generator=stream).to(p) for p in parameters]


def norm(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of all entries together, accumulated in float64; a scalar in float32 or wider."""
    norms = torch._foreach_norm([t.detach() for t in tensors], dtype=torch.float64)
    return torch.linalg.vector_norm(torch.stack(norms)).to(torch.promote_types(tensors[0].dtype, torch.float32))
