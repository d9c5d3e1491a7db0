"""Lanczos: extreme eigenvalues and spectral densities from products alone.

See docs/theory.md, §7.6 and docs/theory.md, §7.7.
"""

from dataclasses import dataclass
from math import inf, isfinite, pi, sqrt

import torch
from torch import Tensor

from nme.curvature.estimators import Estimate, known_operator, probes_for
from nme.curvature.operators import Operator
from nme.errors import NmeError


@dataclass(frozen=True)
class Lanczos:
    """The result of m steps of Lanczos: A ≈ Q T Qᵀ on the Krylov space of the start vector.

    Attributes:
        values: Ritz values, ascending, shape (m,), float64.
        weights: squared first components of T's eigenvectors, the quadrature weights, summing to 1; shape (m,).
        residuals: ‖A q − value·q‖ of each Ritz pair, β_m |last component|; shape (m,).
        vectors: Ritz vectors as columns, shape (P, m); None unless asked for.
    """

    values: Tensor
    weights: Tensor
    residuals: Tensor
    vectors: Tensor | None


def lanczos(operator: Operator, steps: int, start: Tensor, keep_vectors: bool = False) -> Lanczos:
    """Lanczos with full reorthogonalisation (twice), which float32 needs (docs/theory.md, §7.6).

    Args:
        operator: A.
        steps: m; fewer are done if an invariant space is reached.
        start: (P,), not zero.
        keep_vectors: also return the Ritz vectors.

    Memory: m vectors.

    Raises:
        NmeError: the start vector is zero or has another shape, or a product is not finite.
    """
    run = _Run(operator, steps, start)
    while not run.done:
        run.step(operator @ run.last)
    return run.result(keep_vectors)


class _Run:
    """One run of Lanczos, step by step, so that several can share passes over the data."""

    def __init__(self, operator: Operator, steps: int, start: Tensor):
        known_operator(operator)
        if not isinstance(start, Tensor) or start.shape != operator.shape[:1]:
            found = f"shape {tuple(start.shape)}" if isinstance(start, Tensor) else f"type {type(start).__name__}"
            raise NmeError(f"the start vector of Lanczos has {found} (allowed: a tensor, ({operator.shape[0]},))")
        start = start.to(operator.device, operator.dtype)
        size = torch.linalg.vector_norm(start.double()).item()
        if not 0 < size < inf:
            raise NmeError("the start vector of Lanczos is zero or not finite")
        if steps < 1:
            raise NmeError(f"steps is {steps} (allowed: 1 or more)")
        self.steps = min(steps, operator.shape[0])
        self.basis = torch.empty(self.steps, operator.shape[0], dtype=operator.dtype, device=operator.device)
        self.basis[0] = start / size
        self.alphas: list[float] = []
        self.betas: list[float] = []
        self.beta, self.done = 0.0, False

    @property
    def last(self) -> Tensor:
        """The vector whose product is needed."""
        return self.basis[len(self.alphas)]

    def step(self, image: Tensor) -> None:
        """Take A times the last vector."""
        j = len(self.alphas)
        self.alphas.append(torch.dot(image.double(), self.basis[j].double()).item())
        for _ in range(2):
            image = image - self.basis[: j + 1].T @ (self.basis[: j + 1] @ image)
        self.beta = torch.linalg.vector_norm(image.double()).item()
        if not (isfinite(self.alphas[-1]) and isfinite(self.beta)):
            raise NmeError("a product is not finite: are there NaN in the data or the parameters?")
        scale = max(map(abs, [*self.alphas, *self.betas, 0.0]))
        self.done = j == self.steps - 1 or self.beta <= 30 * torch.finfo(self.basis.dtype).eps * scale
        if not self.done:
            self.betas.append(self.beta)
            self.basis[j + 1] = image / self.beta

    def result(self, keep_vectors: bool = False) -> Lanczos:
        """Eigenpairs of the tridiagonal matrix."""
        done = len(self.alphas)
        tridiagonal = torch.diag(torch.tensor(self.alphas, dtype=torch.float64, device="cpu"))
        if done > 1:
            off = torch.tensor(self.betas[: done - 1], dtype=torch.float64, device="cpu")
            tridiagonal += torch.diag(off, 1) + torch.diag(off, -1)
        values, inner = torch.linalg.eigh(tridiagonal)
        vectors = self.basis[:done].T @ inner.to(self.basis.dtype).to(self.basis.device) if keep_vectors else None
        return Lanczos(values, inner[0].square(), self.beta * inner[-1].abs(), vectors)


@dataclass(frozen=True)
class Eigenpairs:
    """Extreme eigenpairs, ascending.

    Attributes:
        values: shape (k,).
        vectors: columns, shape (P, k).
        residuals: ‖A v − value·v‖, computed with a further product each; an eigenvalue is within it. Shape (k,).
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor


def extreme_eigenpairs(
    operator: Operator, smallest: int, largest: int, generator: torch.Generator, steps: int = 60
) -> Eigenpairs:
    """The smallest and the largest (algebraic) eigenvalues with their vectors, by Lanczos.

    See docs/theory.md, §7.6.

    A multiple eigenvalue is found once, and where the start vector's Krylov space is exhausted early (N = 0, say) there
    are fewer pairs than asked for.

    Args:
        operator: A.
        smallest: how many from the lower end.
        largest: how many from the upper end.
        generator: of the start vector.
        steps: of Lanczos; more make the residuals smaller.
    """
    known_operator(operator)
    wanted = smallest + largest
    if not 1 <= wanted <= min(steps, operator.shape[0]):
        raise NmeError(f"{wanted} eigenpairs of {operator.shape[0]} from {steps} steps (allowed: no more than either)")
    (start,) = probes_for(operator, 1, generator, "normal")
    ritz = lanczos(operator, steps, start, keep_vectors=True)
    found = len(ritz.values)
    chosen = sorted({*range(min(smallest, found)), *range(max(found - largest, 0), found)})
    assert ritz.vectors is not None
    values, vectors = ritz.values[chosen], ritz.vectors[:, chosen]
    vectors = vectors / torch.linalg.vector_norm(vectors, dim=0)
    misfit = (operator @ vectors).double() - vectors.double() * values.to(operator.device)
    return Eigenpairs(values, vectors, torch.linalg.vector_norm(misfit, dim=0).cpu())


@dataclass(frozen=True)
class SpectralDensity:
    """Stochastic Lanczos quadrature: the spectral density is Σ weights·δ(nodes), averaged over probes.

    See docs/theory.md, §7.7.

    Attributes:
        nodes: shape (K, m), float64.
        weights: shape (K, m); each row sums to 1.
    """

    nodes: Tensor
    weights: Tensor

    def smoothed(self, at: Tensor, width: float) -> Tensor:
        """The density at the points ``at``, each node a Gaussian of standard deviation ``width``; integrates to 1."""
        distance = (at.double()[:, None, None] - self.nodes) / width
        bumps = torch.exp(-0.5 * distance.square()) / (width * sqrt(2 * pi))
        return (bumps * self.weights).sum(2).mean(1)

    def moment(self, power: int) -> Estimate:
        """(1/P) tr A^power, with its standard error over the probes."""
        return Estimate.of((self.weights * self.nodes**power).sum(1))


def spectral_density(operator: Operator, probes: int, steps: int, generator: torch.Generator) -> SpectralDensity:
    """Nodes and weights of the spectral density of A (Ubaru, Chen, Saad 2017), by ``steps`` of Lanczos a probe.

    Probes run side by side, so that each step takes one pass over the data. Memory: ``steps`` vectors a probe. Where
    Lanczos ends early, the row is filled up with nodes of weight 0.
    """
    runs = [_Run(operator, steps, probe) for probe in probes_for(operator, probes, generator, "normal")]
    while going := [run for run in runs if not run.done]:
        images = operator @ torch.stack([run.last for run in going], 1)
        for k, run in enumerate(going):
            run.step(images[:, k].contiguous())
    nodes = torch.zeros(probes, steps, dtype=torch.float64, device="cpu")
    weights = torch.zeros_like(nodes)
    for i, run in enumerate(runs):
        ritz = run.result()
        nodes[i, : len(ritz.values)] = ritz.values
        weights[i, : len(ritz.values)] = ritz.weights
    return SpectralDensity(nodes, weights)
