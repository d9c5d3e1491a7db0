"""Gradients of a batch's loss and products with its Hessian: the one place that knows how they are computed.

Formulas and costs: docs/theory.md, §2; batches in parts: docs/theory.md, §2.1.

Everything is exact (no finite differences), by ``torch.autograd.grad``. Costs are in forward passes F; one gradient is
3 F.

A batch may be the mean over several parts (``Split``), for memory, and shared out to processes. Losses, gradients and
products are then those of the whole batch, in every process: L = (1/K) Σ L_k over its K parts, so ∇L and Hv are means,
too. Each part has batch norm statistics of its own, whoever computes it, so the result does not depend on the number of
processes, but for rounding. A graph is kept between two passes where the process has one part only; else the second
pass computes the first one again, which costs 3 F.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.autograd import Function
from torch.nn import functional

from nme.models.differentiation import cotangents_only, differentiated_twice


class Split(NamedTuple):
    """How a batch is cut into parts and shared out.

    Attributes:
        micro_batch: examples of a part; divides ``total``.
        first: index of this process's first example in the whole batch; it has whole parts.
        total: examples of the whole batch.
    """

    micro_batch: int
    first: int
    total: int

    @property
    def parts(self) -> int:
        """Of the whole batch."""
        return self.total // self.micro_batch


class Batch(NamedTuple):
    """Inputs (b, ...) and class labels (b,) of this process, on the model's device.

    Inputs in bfloat16 say that forward passes are to be computed in it.

    Attributes:
        split: None: the batch is whole, and one part.
    """

    inputs: Tensor
    labels: Tensor
    split: Split | None = None

    @property
    def size(self) -> int:
        """Examples of the whole batch."""
        return self.split.total if self.split else len(self.labels)

    def parts(self) -> list["Batch"]:
        """This process's parts, each as a batch of its own."""
        if self.split is None:
            return [self]
        size = self.split.micro_batch
        return [Batch(x, y) for x, y in zip(self.inputs.split(size), self.labels.split(size), strict=True)]

    def own(self, drawn: Tensor) -> Tensor:
        """This process's rows of something with a row for each example of the whole batch."""
        first = self.split.first if self.split else 0
        return drawn[first : first + len(self.labels)]


class _Pairing(Function):
    @staticmethod
    def forward(ctx, vectors, *outputs):
        ctx.vectors = vectors
        return torch.zeros((), device=outputs[0].device)

    @staticmethod
    def backward(ctx, _):
        return None, *ctx.vectors


def pairing(outputs: list[Tensor], vectors: list[Tensor]) -> Tensor:
    """⟨outputs, vectors⟩ for the sake of its derivative in the outputs, ``vectors``; its value is not computed.

    ``torch.autograd.grad`` takes vectors, too, but imports a computer algebra for that: 0.3 s for every job.

    Raises:
        ValueError: a vector has another shape than its output.
    """
    for vector, output in zip(vectors, outputs, strict=True):
        if vector.shape != output.shape:
            raise ValueError(f"a vector has shape {tuple(vector.shape)} (allowed: {tuple(output.shape)})")
    return _Pairing.apply(vectors, *outputs)


class Jacobian(NamedTuple):
    """J, the derivative of the logits of one part in the parameters, as a graph that goes both ways.

    Attributes:
        logits: z with its graph, (b, C).
        cotangent: w, (b, C), a leaf.
        pulled: Jᵀw with its graph, one tensor per parameter.
    """

    logits: Tensor
    cotangent: Tensor
    pulled: list[Tensor]

    def along(self, vector: list[Tensor], keep_graph: bool = False) -> Tensor:
        """Jv, (b, C): the derivative of ⟨Jᵀw, v⟩ in w, since that is linear in w (docs/theory.md, §2.3).

        Cost: 2 F, a product forward and one through v for each layer, on what g's pass has left. Forward mode would
        compute z again.
        """
        # The graph is kept anyway: its part that leads to the logits is needed still.
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
        kept_logits: z with its graph, if it was asked for and the process has one part.
        kept_gradient: that part's g with its graph, if it was asked for and the process has one part.
        kept_jacobian: that part's J, where g = Jᵀ∂L/∂z, if it was asked for and the process has one part.
    """

    loss: Tensor
    logits: Tensor
    parameters: list[nn.Parameter]
    gradient: list[Tensor]
    kept_logits: Tensor | None = None
    kept_gradient: list[Tensor] | None = None
    kept_jacobian: Jacobian | None = None


def logits_of(model: nn.Module, inputs: Tensor) -> Tensor:
    """z, shape (b, C), in float32 or wider; of inputs in bfloat16 by ``torch.autocast``, parameters stay as they are.

    What follows z, the loss and all norms, is in float32 or wider then, as are gradients of parameters.
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
        model: maps inputs to logits (B, C). Batch norm follows the model's mode; its running statistics are
            updated by this pass, in train mode, and by nothing else: once, by the mean over the parts.
        batch: inputs and labels.
        keep_graph: keep the graph of g, for ``hessian_product``.
        keep_logits: keep the graph of the logits, for other labels.
        keep_jacobian: keep J, for products with the Gauss-Newton matrix.
        logits: z with its graph, ``kept_logits`` of an earlier pass with other labels, to compute it once.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    statistics = _RunningStatistics(model if batch.split else None)
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
    """The mean of what ``compute`` gives for each part of the whole batch; the same in every process."""
    sums = None
    for part in batch.parts():
        found = compute(part)
        # Not in place: autograd may give one tensor for two parameters.
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
    # Copied, so that each has the memory order of its parameter, without which later steps are slower.
    parts = flat.split([m.numel() for m in means])
    return [torch.empty_like(m).copy_(part.view_as(m)) for m, part in zip(means, parts, strict=True)]


class _RunningStatistics:
    """Batch norm's running statistics over the parts of a batch: the mean of what each part alone would leave.

    See docs/theory.md, §4.2.
    """

    def __init__(self, model: nn.Module | None):
        """None: the batch is one part, and leaves what it leaves."""
        modules = model.modules() if model else ()
        layers = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        layers = [m for m in layers if m.training and m.track_running_stats]
        self.counts = [m.num_batches_tracked for m in layers]
        self.buffers = [buffer for m in layers for buffer in (m.running_mean, m.running_var)]
        self.before = [buffer.clone() for buffer in (*self.counts, *self.buffers)]

    def begin(self) -> None:
        """Before a part."""
        for buffer, before in zip((*self.counts, *self.buffers), self.before, strict=True):
            buffer.copy_(before)

    def end(self) -> list[Tensor]:
        """After it: what it has left."""
        return [buffer.clone() for buffer in self.buffers]

    def replace(self, means: list[Tensor]) -> None:
        """After all of them."""
        for buffer, mean in zip(self.buffers, means, strict=True):
            buffer.copy_(mean)


def hessian_product(
    model: nn.Module, batch: Batch, clean: Gradient, vector: list[Tensor], keep_graph: bool = False
) -> list[Tensor]:
    """Hv, the derivative of g along ``vector`` held constant, by one backward pass (docs/theory.md, §2.2).

    Cost: 6 F beyond the gradient (3.0 gradients in all, in a network of convolutions). Frees g's graph unless told
    to keep it.

    Args:
        model: in the mode of the clean pass.
        batch: that of the clean pass.
        clean: made with ``keep_graph=True``.
        vector: one tensor per parameter.
        keep_graph: keep the graph, for another product.
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

    Cost: 4 F beyond the gradient (2.33 gradients in all).

    Args:
        model: in the mode of the clean pass.
        batch: that of the clean pass.
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
    """∇(uᵀGu), uᵀGu = (1/B) Σ (J_i u)ᵀ (∇²_z ℓ_i) (J_i u): differentiated as it stands, ∇²_z ℓ included.

    Cost: 7 F beyond the gradient (3.33 gradients in all): Ju, and back through it to the weights, to what enters the
    layers and to its derivative. See docs/theory.md, §2.5.

    Args:
        model: in the mode of the clean pass.
        batch: that of the clean pass.
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


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the batch of ℓ_i = softplus(logsumexp_{c≠y}(z_c) − z_y), which is −log softmax(z)_y.

    Written so, the label's entry of ∂ℓ/∂z comes out as −Σ_{c≠y} p_c, to full relative precision, and so do further
    derivatives (docs/theory.md, §3.1). ``functional.cross_entropy`` gives p_y − 1, which cancels near interpolation: at
    a loss of 10⁻⁶ in float32 its gradient is off by 2 %.

    Args:
        logits: z, (b, C), float32 or wider. Infinite ones are not seen: +∞ at the label gives a loss of 0.
        labels: y, (b,).
    """
    label = labels[:, None]
    others = logits.scatter(1, label, -torch.inf).logsumexp(1)
    # Beyond its threshold softplus is linear; at PyTorch's 20 that is off by 2·10⁻⁹.
    return functional.softplus(others - logits.gather(1, label)[:, 0], threshold=80).mean()


def softmax_hessian_product(logits: Tensor, vector: Tensor) -> Tensor:
    """(∇²_z ℓ_i) v_i for cross-entropy, row by row: p ⊙ (v − ⟨p, v⟩) with p = softmax(z). Shapes (B, C).

    Near interpolation v_c − ⟨p, v⟩ cancels for the likeliest class. A constant added to v changes nothing, so v is
    taken relative to its entry there (docs/theory.md, §3.3).
    """
    p = logits.softmax(1)
    vector = vector - vector.gather(1, logits.argmax(1, keepdim=True))
    return p * (vector - (p * vector).sum(1, keepdim=True))


def drawn_labels(logits: Tensor, uniforms: Tensor) -> Tensor:
    """Labels ŷ_i ~ Cat(softmax z_i), shape (b,), where the distribution function passes ``uniforms``, (b,) in [0, 1).

    Where logits are no numbers it is class 0; the loss is no number either then. See docs/theory.md, §6.8.
    """
    cumulative = logits.double().softmax(1).cpu().cumsum(1)  # on GPUs its last bits may differ from run to run
    return (cumulative <= uniforms[:, None] * cumulative[:, -1:]).sum(1).to(logits.device)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Batch norm in train mode normalises with the batch's statistics, and updates no running ones.

    See docs/theory.md, §4.2.
    """
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for layer in layers:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in layers:
            layer.track_running_stats = True


@contextmanager
def displaced(parameters: list[nn.Parameter], displacement: list[Tensor], times: float = 1) -> Iterator[None]:
    """The parameters are θ + times · displacement inside, and θ again outside, also after an exception.

    Autograd does not notice: what is built on one side is to be differentiated on that side.
    """
    before = [p.data for p in parameters]
    # Exchanged and not added in place: one pass over memory, where a copy, the sum and putting it back are three.
    moved = torch._foreach_add(before, displacement, alpha=times)
    try:
        for p, data in zip(parameters, moved, strict=True):
            p.data = data
        yield
    finally:
        for p, data in zip(parameters, before, strict=True):
            p.data = data


def rademacher(parameters: list[nn.Parameter], stream: torch.Generator) -> list[Tensor]:
    """A probe u with independent entries ±1 for each parameter; E u uᵀ = I. Each random bit is used."""
    count = sum(p.numel() for p in parameters)
    octets = torch.randint(256, (-(-count // 8),), generator=stream, dtype=torch.uint8)
    bits = torch.from_numpy(np.unpackbits(octets.numpy(), count=count))
    return _shaped(parameters, bits.float().mul_(2).sub_(1))


def normal(parameters: list[nn.Parameter], stream: torch.Generator) -> list[Tensor]:
    """A probe ε ~ N(0, I)."""
    return _shaped(parameters, torch.randn(sum(p.numel() for p in parameters), generator=stream))


def _shaped(parameters: list[nn.Parameter], entries: Tensor) -> list[Tensor]:
    parts = entries.to(parameters[0]).split([p.numel() for p in parameters])
    return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]


def uniform(shape: tuple[int, ...], stream: torch.Generator) -> Tensor:
    """Numbers from [0, 1), float64, on the CPU."""
    return torch.rand(shape, generator=stream, dtype=torch.float64)


@torch.no_grad()
def norm(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of all entries together, accumulated and returned in float32 or wider; without graph."""
    wide = torch.promote_types(tensors[0].dtype, torch.float32)
    # In pieces: on a CPU a sum of 10⁶ squares in float32 is off by 10⁻⁴.
    pieces = [piece for t in tensors for piece in ((t,) if t.numel() <= 2**16 else t.reshape(-1).split(2**16))]
    return torch.linalg.vector_norm(torch.stack(torch._foreach_norm(pieces, dtype=wide)))
