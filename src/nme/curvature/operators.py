"""The Hessian H, the Gauss-Newton G and the nonlinear modeling error N of a loss, as operators (docs/theory.md, §1.2).

Nothing forms a matrix, and N is never a difference (docs/theory.md, §2.4). For one batch, with the residual r = ∂ℓ/∂z
as a variable of its own, w = Jᵀr/B is ∇_θ⟨r, f(θ)⟩/B. One backward pass through w's graph along v gives two derivatives
at once:

    ∂⟨w, v⟩/∂θ = Nv            r held constant
    ∂⟨w, v⟩/∂r = Jv/B          and then Gv = Jᵀ(∇²_z ℓ · Jv)/B, by a plain backward pass
    Hv = Gv + Nv

so H = G + N holds to the last bit. Counted in forward passes F of a network of convolutions: 3 F for w, once for all
vectors, then 6 F a vector for N, 2 + 2 F for G, 8 F for the three together; H alone is 6 F a vector, with r attached.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn
from torch.func import functional_call

from nme.derivatives.losses import Loss, loss_of
from nme.derivatives.modes import cotangents_only, differentiated_twice
from nme.derivatives.products import pairing
from nme.derivatives.running_statistics import frozen_statistics
from nme.errors import NmeError, unknown


class Products(NamedTuple):
    """Products with the three operators; ``hessian`` is ``gauss_newton + nme``."""

    hessian: Tensor
    gauss_newton: Tensor
    nme: Tensor


class Curvature:
    """H, G and N of a model's mean loss over data, of the parameters as they are now.

    Args:
        model: maps inputs to logits (B, C). Nothing of it is changed: parameters and buffers are copied, the mode is
            set only while computing.
        loss: ``torch.nn.CrossEntropyLoss`` (label smoothing allowed) or ``torch.nn.MSELoss``, with reduction 'mean'.
        data: batches (inputs, labels), iterated anew for every product; a batch counts by its size. A single batch may
            be given as a pair of tensors; its graph is then kept between products.
        parameters: names or patterns (``conv*.weight``) of the parameters the operators act on, in the model's order.
        dtype: to compute in, float32 or float64; None: that of the parameters, and at least float32.
        batch_norm: ``eval``: running statistics; ``train``: each batch's own, which makes its examples depend on each
            other, so that how the data are cut into batches matters. All else, dropout say, is in eval mode.
        micro_batch: most examples at once; results are the same up to rounding. Only with ``batch_norm='eval'``.

    Raises:
        NmeError: a loss, a name, a dtype or data that cannot be used.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: nn.Module | Loss,
        data: Iterable,
        parameters: str | Iterable[str] = "*",
        dtype: torch.dtype | None = None,
        batch_norm: str = "eval",
        micro_batch: int | None = None,
    ):
        if batch_norm not in ("eval", "train"):
            raise NmeError(f"batch_norm is '{batch_norm}' (allowed: eval, train)")
        if micro_batch is not None and (batch_norm == "train" or micro_batch < 1):
            raise NmeError(f"micro_batch is {micro_batch} (allowed: 1 or more, with batch_norm='eval')")
        if dtype not in (None, torch.float32, torch.float64):
            raise NmeError(f"dtype is {dtype} (allowed: torch.float32, torch.float64)")
        if isinstance(data, Iterator):
            raise NmeError("data can be iterated only once (give a list, a DataLoader, or a pair of tensors)")
        self.model = model
        self.loss = loss_of(loss)
        pair = isinstance(data, tuple | list) and len(data) == 2 and all(isinstance(part, Tensor) for part in data)
        self.data = [tuple(data)] if pair else data
        self.batch_norm = batch_norm
        self.micro_batch = micro_batch
        own = dict(model.named_parameters())
        self.names = _matching(own, [parameters] if isinstance(parameters, str) else list(parameters))
        self.dtype = dtype or torch.promote_types(own[self.names[0]].dtype, torch.float32)
        self.device = own[self.names[0]].device
        self._state = {n: _copy(t, self.dtype) for n, t in (*own.items(), *model.named_buffers())}
        self.parameters = [self._state[n].requires_grad_() for n in self.names]
        self.size = sum(p.numel() for p in self.parameters)
        self._kept: _Linearised | None = None

    def products(self, vectors: Tensor) -> Products:
        """Hv, Gv and Nv of one vector (P,) or of the columns of (P, K), sharing all forward work."""
        columns = self._columns(vectors)
        g, n = torch.zeros_like(columns), torch.zeros_like(columns)
        for weight, linearised in self._batches():
            for k in range(columns.shape[1]):
                nv, jv = linearised.nme_and_derivative(self._split(columns[:, k]))
                n[:, k].add_(_flat(nv), alpha=weight)
                g[:, k].add_(_flat(linearised.gauss_newton(jv)), alpha=weight)
        g, n = g.view_as(vectors), n.view_as(vectors)
        return Products(g + n, g, n)

    def hessian_product(self, vectors: Tensor) -> Tensor:
        """Hv of one vector (P,) or of the columns of (P, K)."""
        return self._accumulated(vectors, lambda batch, v: batch.hessian(v))

    def gauss_newton_product(self, vectors: Tensor) -> Tensor:
        """Gv of one vector (P,) or of the columns of (P, K)."""
        return self._accumulated(vectors, lambda batch, v: batch.gauss_newton(batch.derivative(v)))

    def nme_product(self, vectors: Tensor) -> Tensor:
        """Nv of one vector (P,) or of the columns of (P, K), with the stable residual."""
        return self._accumulated(vectors, lambda batch, v: batch.nme_and_derivative(v)[0])

    def quadratic_forms(self, probes: Iterable[Tensor]) -> Products:
        """uᵀHu, uᵀGu and uᵀNu of each probe (P,), shape (K,) each, in float64; memory does not grow with K.

        ``probes`` is iterated once for each batch, so give something that yields the same probes again (a list, or
        ``estimators.Probes``). Cost a probe: 6 F, since uᵀGu needs Ju alone.
        """
        probes = list(probes) if isinstance(probes, Iterator) else probes
        totals: list[Tensor] = []
        for weight, linearised in self._batches():
            forms = []  # numbers, since small tensors that stay keep malloc from reusing the space between them
            for probe in probes:
                vector = self._columns(probe)[:, 0]
                nv, jv = linearised.nme_and_derivative(self._split(vector))
                gauss_newton = linearised.gauss_newton_form(jv)
                nme = torch.dot(vector.double(), _flat(nv).double())
                forms.append(torch.stack([gauss_newton, nme]).tolist())
            if not forms:
                raise NmeError("no probes (give one or more)")
            totals.append(weight * torch.tensor(forms, dtype=torch.float64, device=self.device))
        g, n = torch.stack(totals).sum(0).T
        return Products(g + n, g, n)

    def gradient(self) -> Tensor:
        """∇L, shape (P,), with the stable residual."""
        total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        for weight, linearised in self._batches():
            total.add_(_flat([w.detach() for w in linearised.w]), alpha=weight)
        return total

    def _accumulated(self, vectors: Tensor, product) -> Tensor:
        columns = self._columns(vectors)
        total = torch.zeros_like(columns)
        for weight, linearised in self._batches():
            for k in range(columns.shape[1]):
                total[:, k].add_(_flat(product(linearised, self._split(columns[:, k]))), alpha=weight)
        return total.view_as(vectors)

    def _columns(self, vectors: Tensor) -> Tensor:
        if vectors.dim() not in (1, 2) or vectors.shape[0] != self.size:
            raise NmeError(f"the vector has shape {tuple(vectors.shape)} (allowed: ({self.size},), ({self.size}, K))")
        return vectors.detach().to(self.device, self.dtype).reshape(self.size, -1)

    def _split(self, vector: Tensor) -> list[Tensor]:
        # Contiguous: products with a strided vector may be rounded differently.
        parts = vector.contiguous().split([p.numel() for p in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]

    def _chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.data:
            inputs, labels = batch
            if not len(labels):
                continue
            size = self.micro_batch or len(inputs)
            yield from zip(inputs.split(size), labels.split(size), strict=True)

    def _batches(self) -> Iterator[tuple[float, "_Linearised"]]:
        """Each batch, linearised, with its weight in the mean over the data."""
        if self._kept:
            yield 1.0, self._kept
            return
        sizes = [len(labels) for _, labels in self._chunks()]
        if not sum(sizes):
            raise NmeError("data has no examples")
        for size, (inputs, labels) in zip(sizes, self._chunks(), strict=True):
            with self._prepared():
                linearised = _Linearised(self, inputs, labels)
            if len(sizes) == 1 and isinstance(self.data, list):
                self._kept = linearised
            yield size / sum(sizes), linearised

    @contextmanager
    def _prepared(self) -> Iterator[None]:
        """The model is in the mode asked for, and its own again outside."""
        modes = {module: module.training for module in self.model.modules()}
        self.model.eval()
        if self.batch_norm == "train":
            for module in modes:
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.train()
        try:
            with frozen_statistics(self.model), differentiated_twice():
                yield
        finally:
            for module, training in modes.items():
                module.training = training

    def logits(self, inputs: Tensor) -> Tensor:
        """f_θ(x), shape (B, C), in the operators' dtype."""
        inputs = inputs.to(self.device)
        inputs = inputs.to(self.dtype) if inputs.is_floating_point() else inputs
        return functional_call(self.model, self._state, (inputs,))


class _Linearised:
    """One batch: the logits' graph and that of w = Jᵀr/B, from which all products come."""

    @torch.enable_grad()
    def __init__(self, curvature: Curvature, inputs: Tensor, labels: Tensor):
        self.parameters, self.loss = curvature.parameters, curvature.loss
        self.z = curvature.logits(inputs)
        if self.z.dim() != 2:
            raise NmeError(f"the model's output has shape {tuple(self.z.shape)} (allowed: (batch, classes))")
        self.divisor = self.loss.divisor(self.z, labels)
        labels = labels.to(self.z.device)
        self.labels = labels.to(self.z.dtype) if labels.is_floating_point() else labels
        # Not divided yet, so that Jv comes by a multiplication, as the results that are kept were computed.
        self.r = self.loss.summed_residual(self.z.detach(), self.labels).requires_grad_()

    @cached_property
    @torch.enable_grad()
    def w(self) -> list[Tensor]:
        """Jᵀr/B with r a variable of its own; its value is the gradient."""
        return self._pulled_back(self.r)

    @cached_property
    @torch.enable_grad()
    def attached(self) -> list[Tensor]:
        """Jᵀr/B with r a function of the parameters."""
        return self._pulled_back(self.loss.summed_residual(self.z, self.labels))

    def _pulled_back(self, r: Tensor) -> list[Tensor]:
        options = {"create_graph": True, "materialize_grads": True}
        return list(torch.autograd.grad(pairing([self.z], [r / self.divisor]), self.parameters, **options))

    @torch.enable_grad()
    def _through(self, w: list[Tensor], inputs: list[Tensor], vector: list[Tensor]) -> list[Tensor]:
        """The derivative of ⟨w, vector⟩ in the inputs."""
        pairs = [(a, v) for a, v in zip(w, vector, strict=True) if a.requires_grad]
        if not pairs:
            return [torch.zeros_like(x) for x in inputs]
        outputs, vectors = zip(*pairs, strict=True)
        options = {"retain_graph": True, "materialize_grads": True}
        return list(torch.autograd.grad(pairing(outputs, vectors), inputs, **options))

    def nme_and_derivative(self, vector: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Nv, and Jv of shape (B, C), by one backward pass through w's graph."""
        *nv, jv = self._through(self.w, [*self.parameters, self.r], vector)
        return nv, jv * self.divisor

    def derivative(self, vector: list[Tensor]) -> Tensor:
        """Jv, shape (B, C)."""
        with cotangents_only():
            return self._through(self.w, [self.r], vector)[0] * self.divisor

    @torch.enable_grad()
    def gauss_newton(self, jv: Tensor) -> list[Tensor]:
        """Gv from Jv."""
        pulled = self.loss.summed_hessian_product(self.z.detach(), self.labels, jv) / self.divisor
        options = {"retain_graph": True, "materialize_grads": True}
        return list(torch.autograd.grad(pairing([self.z], [pulled]), self.parameters, **options))

    def gauss_newton_form(self, ju: Tensor) -> Tensor:
        """uᵀGu from Ju, a scalar in float64."""
        return (ju * self.loss.summed_hessian_product(self.z.detach(), self.labels, ju)).double().sum() / self.divisor

    def hessian(self, vector: list[Tensor]) -> list[Tensor]:
        """Hv: the residual stays attached to the parameters."""
        return self._through(self.attached, self.parameters, vector)


class _Operator:
    """A symmetric P × P operator: ``operator @ v`` for v of shape (P,) or (P, K)."""

    symbol: str

    def __init__(self, model: nn.Module | Curvature, *arguments, **options):
        self.curvature = model if isinstance(model, Curvature) else Curvature(model, *arguments, **options)
        self.shape = (self.curvature.size, self.curvature.size)
        self.dtype, self.device = self.curvature.dtype, self.curvature.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        raise NotImplementedError

    def to_scipy(self) -> LinearOperator:
        """A view for ``scipy.sparse.linalg``: eigsh and friends work; vectors go to the device and back."""

        def product(array: np.ndarray) -> np.ndarray:
            vectors = torch.as_tensor(np.ascontiguousarray(array), dtype=self.dtype)
            return (self @ vectors).cpu().numpy()

        dtype = np.float64 if self.dtype == torch.float64 else np.float32
        return LinearOperator(self.shape, matvec=product, rmatvec=product, matmat=product, dtype=dtype)


class Hessian(_Operator):
    """H = ∇²L. Arguments as ``Curvature``, or a ``Curvature``. Cost: 3 F once a batch, then 6 F a vector."""

    symbol = "H"

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.curvature.hessian_product(vectors)


class GaussNewton(_Operator):
    """G = (1/B) Σ Jᵀ(∇²_z ℓ)J. Arguments as ``Curvature``, or a ``Curvature``. Cost: 3 F a batch, then 4 F a vector."""

    symbol = "G"

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.curvature.gauss_newton_product(vectors)


class NME(_Operator):
    """N = H − G, computed directly. Arguments as ``Curvature``, or a ``Curvature``. Cost: 3 F a batch, then 6 F."""

    symbol = "N"

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.curvature.nme_product(vectors)


def layers(model: nn.Module) -> dict[str, list[str]]:
    """Names of the parameters of each layer (weights and biases of one module together), in the model's order."""
    found: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault(name.rpartition(".")[0], []).append(name)
    return found


def _matching(own: dict[str, nn.Parameter], patterns: list[str]) -> list[str]:
    trained = [name for name, p in own.items() if p.requires_grad]
    if not trained:
        raise NmeError("the model has no parameters that require a gradient")
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in trained):
            raise NmeError(unknown("parameter", pattern, trained))
    if not patterns:
        raise NmeError(f"no parameters are chosen (allowed: {', '.join(trained)})")
    return [name for name in trained if any(fnmatchcase(name, pattern) for pattern in patterns)]


def _copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to(dtype, copy=True) if tensor.is_floating_point() else tensor.detach().clone()


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])
