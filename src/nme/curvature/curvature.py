"""The Hessian H, the Gauss-Newton G and the nonlinear modeling error N of a loss over data (docs/theory.md, §1.2).

Nothing forms a matrix, and N is never a difference (docs/theory.md, §2.4); H = G + N holds to the last bit of
``Curvature.products``. Counted in forward passes F of a network of convolutions: 3 F for the linearisation, once for
all vectors, then 6 F a vector for N, 2 + 2 F for G, 8 F for the three together; H alone is 6 F a vector.

A long file, since it is one class, most of whose lines document its methods.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from copy import copy
from functools import wraps
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from nme.curvature import checks, rounding
from nme.curvature.batches import Batches, arguments, cast, constant, has_independent_examples
from nme.curvature.finite_differences import derivative_of_gradient
from nme.curvature.linearised import Linearised
from nme.curvature.network import Forward, Network
from nme.curvature.state import undisturbed
from nme.curvature.surroundings import steady
from nme.derivatives.any_loss import AnyLoss, SeveralBatches
from nme.derivatives.graphs import dtypes, refuse_once_differentiable
from nme.derivatives.losses import Loss, loss_of
from nme.errors import NmeError

T = TypeVar("T")


def steadily(function: Callable[..., T]) -> Callable[..., T]:
    """Decorator of a method that computes: autocast, inference mode and TF32 have no effect on it."""

    @wraps(function)
    def computed(self: Curvature, *arguments: Any, **options: Any) -> T:
        with steady(self.device):
            return function(self, *arguments, **options)

    return computed


class Products(NamedTuple):
    """Products with the three operators; ``hessian`` is ``gauss_newton + nme``."""

    hessian: Tensor
    gauss_newton: Tensor
    nme: Tensor


class Curvature:
    """H, G and N of a model's loss over data, of the parameters as they are now.

    Several batches have the loss Σ w L / Σ w, with the weights of ``Loss.weight`` (numbers of examples, say), or Σ L
    for reduction 'sum'. The first pass over them sees whether a loss without closed form is such a mean.

    Args:
        model: any module. Nothing of it is changed: parameters and buffers are copied, the mode is set only while
            computing.
        loss: PyTorch's cross-entropy, mean squared error and binary cross-entropy with logits have closed forms; any
            other callable of output and target is differentiated by autograd (``nme.curvature.loss_of``).
        data: batches (inputs, target), iterated anew for every product. Inputs may be a tuple or dict of tensors, the
            model's arguments; a list counts as a tuple, as ``DataLoader`` turns tuples into lists. A single batch may
            be given as a pair of tensors; its graph is then kept between products.
        parameters: names, patterns (``conv*.weight``), tensors or modules: the parameters the operators act on, in the
            model's order.
        dtype: to compute in, float32 or float64; None: that of the parameters, and at least float32.
        batch_norm: ``eval``: running statistics; ``train``: each batch's own, which makes its examples depend on each
            other, so that how the data are cut into batches matters. All else, dropout say, is in eval mode.
        micro_batch: most examples at once (two in the check); results are the same up to rounding. Only with
            ``batch_norm='eval'``, pairs of inputs and target, a loss with a closed form, and inputs that have a row for
            each example.
        forward: called as ``forward(model, batch)``, gives the output and the target of a batch of any kind. A single
            batch may then be given as a tuple or dict; a list is a list of batches.
        check: check the operator at its first use (``checks``); costs two products and a gradient.

    Raises:
        NmeError: a loss, a name, a dtype or data that cannot be used.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Callable[..., Any] | Loss,
        data: Any,
        parameters: Any = "*",
        dtype: torch.dtype | None = None,
        batch_norm: str = "eval",
        micro_batch: int | None = None,
        forward: Forward | None = None,
        check: bool = True,
    ):
        if batch_norm not in ("eval", "train"):
            raise NmeError(f"batch_norm is '{batch_norm}' (allowed: eval, train)")
        if micro_batch is not None and (not isinstance(micro_batch, int) or micro_batch < 1 or batch_norm == "train"):
            raise NmeError(f"micro_batch is {micro_batch} (allowed: 1 or more, an integer, with batch_norm='eval')")
        if dtype not in (None, torch.float32, torch.float64):
            raise NmeError(f"dtype is {dtype} (allowed: torch.float32, torch.float64)")
        self.loss = loss_of(loss)
        if isinstance(self.loss, AnyLoss):
            self.loss = copy(self.loss)
            self.loss.function = undisturbed(self.loss.function)
        if micro_batch is not None and (forward is not None or isinstance(self.loss, AnyLoss)):
            raise NmeError(f"micro_batch is {micro_batch} (allowed: without forward=, for losses with a closed form)")
        self.network = Network(model, parameters, dtype, batch_norm, forward)
        self.batches = Batches(data, self.network.model, micro_batch, whole=forward is not None)
        if micro_batch is not None:
            has_independent_examples(self.network.model)
        self.names, self.parameters = self.network.names, self.network.parameters
        self.dtype, self.device = self.network.dtype, self.network.device
        self.micro_batch, self.size = micro_batch, sum(p.numel() for p in self.parameters)
        self._given, self._unchecked = loss, check
        self._kept: Linearised | None = None
        self._combines = self.batches.is_one  # or a pass over all of them has shown it

    @steadily
    def products(self, vectors: Tensor) -> Products:
        """Hv, Gv and Nv of one vector (P,) or of the columns of (P, K), sharing all forward work."""
        columns = self._columns(vectors)
        g, n = torch.zeros_like(columns), torch.zeros_like(columns)
        for scale, linearised in self._batches(g, n):
            for k in range(columns.shape[1]):
                nv, jv = linearised.nme_and_derivative(self.split(columns[:, k]))
                n[:, k].add_(_flat(nv), alpha=scale)
                g[:, k].add_(_flat(linearised.gauss_newton(jv)), alpha=scale)
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

    @steadily
    def nme_block_products(self, vectors: Tensor, masks: list[Tensor]) -> Tensor:
        """N_ll v_l of each block l and each column of (P, K), in one pass over the data; shape (P, K).

        Args:
            vectors: v, shape (P, K).
            masks: which entries belong to each block, shape (P,) each, bool; blocks do not overlap. Other entries of
                the result are 0.
        """
        columns = self._columns(vectors)
        total = torch.zeros_like(columns)
        for scale, linearised in self._batches(total):
            for mask in masks:
                for k in range(columns.shape[1]):
                    nv, _ = linearised.nme_and_derivative(self.split(columns[:, k] * mask))
                    total[:, k].add_(_flat(nv) * mask, alpha=scale)
        return total

    @steadily
    def quadratic_forms(self, probes: Iterable[Tensor]) -> Products:
        """uᵀHu, uᵀGu and uᵀNu of each probe (P,), shape (K,) each, in float64; memory does not grow with K.

        ``probes`` is iterated once for each batch, so give something that yields the same probes again (a list, or
        ``estimators.Probes``). Cost a probe: 6 F, since uᵀGu needs Ju alone.
        """
        probes = list(probes) if isinstance(probes, Iterator) else probes
        total: Tensor | None = None
        pooled = 0.0  # Σ w over w of the first batch
        for scale, linearised in self._batches():
            forms = []  # numbers, since small tensors that stay keep malloc from reusing the space between them
            for probe in probes:
                vector = self._columns(probe)[:, 0]
                nv, jv = linearised.nme_and_derivative(self.split(vector))
                gauss_newton = linearised.gauss_newton_form(jv)
                nme = torch.dot(vector.double(), _flat(nv).double())
                forms.append(torch.stack([gauss_newton, nme]).tolist())
            if not forms:
                raise NmeError("no probes (give one or more)")
            found = scale * torch.tensor(forms, dtype=torch.float64, device=self.device)
            total = found if total is None else total + found
            pooled += scale
        assert total is not None
        g, n = (total / pooled if self.loss.reduction == "mean" else total).T
        return Products(g + n, g, n)

    @steadily
    def gradient(self) -> Tensor:
        """∇L, shape (P,), with the stable residual."""
        total = torch.zeros(self.size, dtype=self.dtype, device=self.device)
        for scale, linearised in self._batches(total):
            total.add_(_flat([w.detach() for w in linearised.w]), alpha=scale)
        return total

    @steadily
    def logits(self, inputs: Any) -> Tensor:
        """Output of the model f_θ(x), in the operators' dtype."""
        return self.network((arguments(inputs, self.network.model), None))[0]

    def check(self, thorough: bool = True) -> float:
        """Check that the numbers can be trusted: docs/is-my-number-right.md.

        Loss and gradient of the first batch are compared with plain differentiation of the model; two products, in two
        passes over the data, with each other and for symmetry; and, if ``thorough``, Hv in float64 with a central
        difference of gradients (in float32 if model or loss cannot be computed in float64), and gradient and Hv in
        float32 with those in float64. With ``micro_batch``, outputs of two examples must not depend on the others.

        Returns:
            How large a relative error of Hv may be: 10⁻⁴, or more where kinks or float32 in the model hide it from the
            difference of gradients, or where rounding errors are larger; infinity if no gradients were compared.

        Raises:
            NmeError: says what is wrong.
        """
        precision = self.dtype

        def inspect(batch: Any, linearised: Linearised) -> None:
            nonlocal precision
            if torch.float32 in dtypes(linearised.z):  # in parts of a model that is in float64, too
                precision = torch.float32
            checks.loss_of_output_alone(self.network, self.loss, linearised)
            checks.same_as_plain(
                self.network, self.loss, self._given, batch, linearised, lambda dtype: self._gradients_in(dtype, batch)
            )
            refuse_once_differentiable(linearised.w)

        before, self._unchecked = self._unchecked, False
        try:
            if self.micro_batch is not None:
                self._check_parts()
            u, v = checks.vectors(self.size, self.device)
            first, second = self._pass(u, inspect), self._pass(v)
            checks.repeatable_and_symmetric(first, second, u, v, precision, self._uncancelled)
            if not thorough:
                return math.inf
            twin = self._in_float64()
            rounded = 0.0
            if twin is not None and self.dtype == torch.float32:
                rounding.of_gradient(first.gradient, twin.gradient(), self._uncancelled)
                rounded = rounding.of_products(first.hessian, twin.hessian_product(u))
            return max(rounded, derivative_of_gradient(twin or self))
        except BaseException:
            self._unchecked, self._kept = before, None
            raise

    @steadily
    def _check_parts(self) -> None:
        self.batches.check_parts(lambda batch: self.network(batch)[0])

    @steadily
    def _pass(self, vector: Tensor, inspect: Callable[[Any, Linearised], None] | None = None) -> checks.Pass:
        """Products with a vector, gradient and loss, with every batch computed anew."""
        self._kept = None
        v = self._columns(vector)[:, 0]
        g, n, gradient = (torch.zeros_like(v) for _ in range(3))
        loss = torch.zeros((), dtype=torch.float64, device=self.device)
        for scale, linearised in self._batches(g, n, gradient, loss, inspect=inspect):
            nv, jv = linearised.nme_and_derivative(self.split(v))
            n.add_(_flat(nv), alpha=scale)
            g.add_(_flat(linearised.gauss_newton(jv)), alpha=scale)
            gradient.add_(_flat([w.detach() for w in linearised.w]), alpha=scale)
            loss.add_(self.loss.value(linearised.z.detach(), linearised.target).double().detach(), alpha=scale)
        return checks.Pass(g + n, g, n, gradient, loss)

    @steadily
    def _uncancelled(self) -> tuple[float, float]:
        """Means over batches of the size of what their gradients add up, and of ⟨z, ∇²_z ℓ · z⟩."""
        total, curved = (torch.zeros((), dtype=torch.float64, device=self.device) for _ in range(2))
        for scale, linearised in self._batches(total, curved):
            total.add_(_flat(linearised.uncancelled(other_output=True)).norm().double(), alpha=scale)
            curved.add_(linearised.output_form().abs(), alpha=scale)
        return float(total), float(curved)

    def _in(self, dtype: torch.dtype) -> Curvature:
        twin = copy(self)
        twin.network, twin.dtype, twin._kept = self.network.copied(dtype), dtype, None
        twin.parameters = twin.network.parameters
        return twin

    def _gradients_in(self, dtype: torch.dtype, batch: Any) -> list[Tensor] | None:
        """Gradients of a batch computed in a dtype; None if the model or loss cannot be."""
        try:
            linearised = self._in(dtype)._linearised(batch)[1]
            return None if linearised is None else [w.detach() for w in linearised.w]
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever the user's functions raise
            return None

    def _in_float64(self) -> Curvature | None:
        """The operator in float64; None if the model or loss computes in its own dtype only."""
        twin = self._in(torch.float64)
        try:
            twin.gradient()
        except Exception:  # whatever the user's functions raise
            if self.dtype == torch.float64:
                raise
            return None
        return twin

    def move(self, parameters: list[Tensor]) -> None:
        """Set the parameters, one tensor each; the model keeps its own."""
        self._kept = None
        for own, tensor in zip(self.parameters, parameters, strict=True):
            own.data = tensor.detach().to(own)

    def split(self, vector: Tensor) -> list[Tensor]:
        """A vector (P,) as one tensor per parameter."""
        # Contiguous: products with a strided vector may be rounded differently.
        parts = vector.contiguous().split_with_sizes([p.numel() for p in self.parameters])
        return [part.view_as(p) for part, p in zip(parts, self.parameters, strict=True)]

    # ------------------------------------------------------------ batches

    @steadily
    def _accumulated(self, vectors: Tensor, product: Callable[[Linearised, list[Tensor]], list[Tensor]]) -> Tensor:
        columns = self._columns(vectors)
        total = torch.zeros_like(columns)
        for scale, linearised in self._batches(total):
            for k in range(columns.shape[1]):
                total[:, k].add_(_flat(product(linearised, self.split(columns[:, k]))), alpha=scale)
        return total.view_as(vectors)

    def _columns(self, vectors: Tensor) -> Tensor:
        if not isinstance(vectors, Tensor):
            raise NmeError(f"the vector is {type(vectors).__name__} (allowed: a tensor)")
        if vectors.dim() not in (1, 2) or vectors.shape[0] != self.size or not vectors.numel():
            raise NmeError(f"the vector has shape {tuple(vectors.shape)} (allowed: ({self.size},), ({self.size}, K))")
        vectors = vectors.detach().to(self.device, self.dtype)
        return (vectors.clone() if vectors.is_inference() else vectors).reshape(self.size, -1)

    def _batches(
        self, *totals: Tensor, inspect: Callable[[Any, Linearised], None] | None = None
    ) -> Iterator[tuple[float, Linearised]]:
        """Each batch, linearised, with its weight over that of the first batch.

        After the last one, ``totals`` are divided by the sum of these weights, unless losses add up.
        """
        if self._unchecked and inspect is None and self.device.type != "meta":
            self.check(thorough=False)
        if self._kept is not None:
            yield 1.0, self._kept
            return
        first, pooled, count, seen = 0.0, 0.0, 0, False
        kept: Linearised | None = None
        several = None if self._combines else SeveralBatches(self.loss)
        for batch in self.batches:
            weight, linearised = self._linearised(batch)
            seen = True
            if linearised is None:
                continue
            if several is not None:
                several.add(linearised.z, linearised.target)
            if inspect is not None and not count:
                inspect(batch, linearised)
            first, count = first or weight, count + 1
            pooled += weight / first
            kept = linearised if count == 1 and self.batches.in_memory else None
            yield weight / first, linearised
        if not count:
            empty = "examples (an iterator that is used up?)"
            raise NmeError(f"data has no {'labels that count' if seen else empty}")
        self._combines = True
        if kept is not None:
            self._kept = kept
        elif self.loss.reduction == "mean":
            for total in totals:
                total.div_(pooled)

    def _linearised(self, batch: Any) -> tuple[float, Linearised | None]:
        """A batch's weight, and the batch; None if it has no examples, or no labels that count."""
        output, target = self.network(batch)
        constant(target)
        with torch.enable_grad():
            self.loss.check(output.detach(), target)
            weight, divisor = float(self.loss.weight(output, target)), self.loss.divisor(output, target)
            if weight == 0 or not output.numel():
                return 0.0, None
            passing = self.network.again if self.network.recomputes else nullcontext
            found = Linearised(self.parameters, self.loss, output, self._moved(target), divisor, passing)
        return weight, found

    def _moved(self, target: Any) -> Any:
        return cast(target, self.device, self.dtype)


def _flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([t.reshape(-1) for t in tensors])
