"""Estimators from products alone: traces, norms, diagonals, eigenvalues, spectral densities, with their errors.

Formulas and variances: docs/theory.md, §7.

Every estimator takes its own ``torch.Generator`` (on the CPU, so that probes do not depend on the device); the same
generator state gives the same probes for H, G and N.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import pi, sqrt

import torch
from torch import Tensor

from nme.curvature.operators import Curvature, _Operator
from nme.errors import NmeError


@dataclass(frozen=True)
class Estimate:
    """A Monte Carlo estimate.

    Attributes:
        value: the mean of the samples, or a function of it.
        error: its standard error; nan for one sample.
        samples: one a probe, shape (K,).
    """

    value: float
    error: float
    samples: Tensor

    @classmethod
    def of(cls, samples: Tensor) -> "Estimate":
        """The mean of independent samples."""
        samples = samples.double().cpu()
        error = samples.std().item() / sqrt(len(samples)) if len(samples) > 1 else float("nan")
        return cls(samples.mean().item(), error, samples)


class Probes:
    """Random vectors u with E uuᵀ = I, made when they are asked for and the same ones in every iteration.

    Args:
        size: P.
        count: K.
        generator: on the CPU; it is advanced past these probes at once, so that the next estimator draws others.
        distribution: ``rademacher`` (entries ±1, least variance) or ``normal``.
        dtype: of the vectors.
    """

    def __init__(
        self,
        size: int,
        count: int,
        generator: torch.Generator,
        distribution: str = "rademacher",
        dtype: torch.dtype = torch.float32,
    ):
        if distribution not in ("rademacher", "normal"):
            raise NmeError(f"distribution is '{distribution}' (allowed: rademacher, normal)")
        if count < 1:
            raise NmeError(f"probes is {count} (allowed: 1 or more)")
        self.size, self.count, self.distribution, self.dtype = size, count, distribution, dtype
        self._seeds = torch.randint(2**62, (count,), generator=generator).tolist()

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        for seed in self._seeds:
            stream = torch.Generator().manual_seed(seed)
            if self.distribution == "rademacher":
                signs = torch.randint(2, (self.size,), generator=stream, dtype=torch.int8)
                yield (2 * signs - 1).to(self.dtype)
            else:
                yield torch.randn(self.size, generator=stream, dtype=self.dtype)


def _probes(operator: _Operator, count: int, generator: torch.Generator, distribution: str) -> Probes:
    return Probes(operator.shape[0], count, generator, distribution, operator.dtype)


def traces(
    curvature: Curvature, probes: int, generator: torch.Generator, distribution: str = "rademacher"
) -> dict[str, Estimate]:
    """Tr H, tr G and tr N from the same probes (Hutchinson); per probe tr H = tr G + tr N. Cost: 6 F a probe.

    See docs/theory.md, §7.2.
    """
    drawn = Probes(curvature.size, probes, generator, distribution, curvature.dtype)
    forms = curvature.quadratic_forms(drawn)
    return {symbol: Estimate.of(samples) for symbol, samples in zip("HGN", forms, strict=True)}


def trace(operator: _Operator, probes: int, generator: torch.Generator, distribution: str = "rademacher") -> Estimate:
    """Tr A ≈ (1/K) Σ uᵀAu (Hutchinson). For several of H, G, N use ``traces``, which costs the same as one."""
    return traces(operator.curvature, probes, generator, distribution)[operator.symbol]


def hutch_plus_plus(operator: _Operator, products: int, generator: torch.Generator) -> Estimate:
    """Tr A by Hutch++ (Meyer, Musco, Musco, Woodruff 2021): exact on a random low-rank part, Hutchinson on the rest.

    See docs/theory.md, §7.3.

    Args:
        operator: A.
        products: how many products with A to spend; a third each on the range, its trace and the rest.
        generator: of the probes.

    Returns:
        The samples are those of the rest; the error is theirs, the low-rank part has none.
    """
    third = products // 3
    if not 1 <= third <= operator.shape[0]:
        raise NmeError(f"products is {products} (allowed: 3 to {3 * operator.shape[0]})")
    sketch = torch.stack(list(_probes(operator, third, generator, "rademacher")), 1).to(operator.device)
    basis, _ = torch.linalg.qr(operator @ sketch)
    exact = (basis * (operator @ basis)).double().sum().item()
    samples = []
    for probe in _probes(operator, third, generator, "rademacher"):
        rest = probe.to(operator.device)
        rest = rest - basis @ (basis.T @ rest)
        samples.append(torch.dot(rest.double(), (operator @ rest).double()).item())
    estimate = Estimate.of(torch.tensor(samples, dtype=torch.float64))
    return Estimate(exact + estimate.value, estimate.error, estimate.samples)


def frobenius_norm(operator: _Operator, probes: int, generator: torch.Generator) -> Estimate:
    """‖A‖_F = √E‖Au‖². The samples are ‖Au‖²; the error of the root is by the delta method; its bias is O(1/K).

    See docs/theory.md, §7.4.
    """
    samples = [
        (operator @ probe).double().square().sum().item()
        for probe in _probes(operator, probes, generator, "rademacher")
    ]
    return _root(samples)


def _root(squares: list[float]) -> Estimate:
    """The root of a mean of squares; the samples stay the squares.

    They are collected as numbers: small tensors that stay keep malloc from reusing the space between them, so that
    memory would grow with the probes.
    """
    squared = Estimate.of(torch.tensor(squares, dtype=torch.float64))
    value = sqrt(squared.value)
    return Estimate(value, squared.error / (2 * value) if value > 0 else 0.0, squared.samples)


def frobenius_norms(curvature: Curvature, probes: int, generator: torch.Generator) -> dict[str, Estimate]:
    """‖H‖_F, ‖G‖_F and ‖N‖_F from the same probes, by joint products. Cost: 8 F a probe.

    See docs/theory.md, §7.4.
    """
    squares: dict[str, list[float]] = {symbol: [] for symbol in "HGN"}
    for probe in Probes(curvature.size, probes, generator, "rademacher", curvature.dtype):
        for samples, product in zip(squares.values(), curvature.products(probe), strict=True):
            samples.append(product.double().square().sum().item())
    return {symbol: _root(samples) for symbol, samples in squares.items()}


def diagonal(operator: _Operator, probes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The diagonal of A, E[u ⊙ Au], and its standard error entry by entry; shapes (P,), float64.

    See docs/theory.md, §7.5.
    """
    total = torch.zeros(operator.shape[0], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for probe in _probes(operator, probes, generator, "rademacher"):
        sample = probe.double() * (operator @ probe).double().cpu()
        total += sample
        squares += sample.square()
    mean = total / probes
    variance = (squares / probes - mean.square()).clamp(min=0) * probes / max(probes - 1, 1)
    return mean, (variance / probes).sqrt() if probes > 1 else torch.full_like(mean, float("nan"))


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


def lanczos(operator: _Operator, steps: int, start: Tensor, keep_vectors: bool = False) -> Lanczos:
    """Lanczos with full reorthogonalisation (twice), which float32 needs (docs/theory.md, §7.6).

    Args:
        operator: A.
        steps: m; fewer are done if an invariant space is reached.
        start: (P,), not zero.
        keep_vectors: also return the Ritz vectors.

    Memory: m vectors.
    """
    start = start.to(operator.device, operator.dtype)
    size = torch.linalg.vector_norm(start.double()).item()
    if not size > 0:
        raise NmeError("the start vector of Lanczos is zero or not finite")
    if steps < 1:
        raise NmeError(f"steps is {steps} (allowed: 1 or more)")
    steps = min(steps, operator.shape[0])
    basis = torch.empty(steps, operator.shape[0], dtype=operator.dtype, device=operator.device)
    basis[0] = start / size
    alphas, betas, beta = [], [], 0.0
    for j in range(steps):
        image = operator @ basis[j]
        alphas.append(torch.dot(image.double(), basis[j].double()).item())
        for _ in range(2):
            image = image - basis[: j + 1].T @ (basis[: j + 1] @ image)
        beta = torch.linalg.vector_norm(image.double()).item()
        scale = max(map(abs, [*alphas, *betas, 0.0]))
        if j == steps - 1 or beta <= 30 * torch.finfo(operator.dtype).eps * scale:
            break
        betas.append(beta)
        basis[j + 1] = image / beta
    done = len(alphas)
    tridiagonal = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    if done > 1:
        off = torch.tensor(betas[: done - 1], dtype=torch.float64)
        tridiagonal += torch.diag(off, 1) + torch.diag(off, -1)
    values, inner = torch.linalg.eigh(tridiagonal)
    vectors = basis[:done].T @ inner.to(operator.dtype).to(operator.device) if keep_vectors else None
    return Lanczos(values, inner[0].square(), beta * inner[-1].abs(), vectors)


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
    operator: _Operator, smallest: int, largest: int, generator: torch.Generator, steps: int = 60
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
    wanted = smallest + largest
    if not 1 <= wanted <= min(steps, operator.shape[0]):
        raise NmeError(f"{wanted} eigenpairs of {operator.shape[0]} from {steps} steps (allowed: no more than either)")
    (start,) = _probes(operator, 1, generator, "normal")
    ritz = lanczos(operator, steps, start, keep_vectors=True)
    found = len(ritz.values)
    chosen = sorted({*range(min(smallest, found)), *range(max(found - largest, 0), found)})
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


def spectral_density(operator: _Operator, probes: int, steps: int, generator: torch.Generator) -> SpectralDensity:
    """Nodes and weights of the spectral density of A (Ubaru, Chen, Saad 2017), by ``steps`` of Lanczos a probe.

    Where Lanczos ends early, the row is filled up with nodes of weight 0.
    """
    nodes = torch.zeros(probes, steps, dtype=torch.float64)
    weights = torch.zeros_like(nodes)
    for i, probe in enumerate(_probes(operator, probes, generator, "normal")):
        ritz = lanczos(operator, steps, probe)
        nodes[i, : len(ritz.values)] = ritz.values
        weights[i, : len(ritz.values)] = ritz.weights
    return SpectralDensity(nodes, weights)


def nme_block_norms(
    curvature: Curvature, blocks: dict[str, list[str]], probes: int, generator: torch.Generator
) -> dict[str, Estimate]:
    """‖N_ll‖_F of the diagonal block of each layer (docs/theory.md, §7.4).

    In a network whose output is linear in the parameters of any one layer but for activations (no batch norm), the
    diagonal blocks of N consist of terms with second derivatives of activations only (docs/theory.md, §1.3). They are
    not all of them: the second derivative in a later layer also couples the layers before it.
    Cost: 6 F a layer and probe.

    Args:
        curvature: of all parameters.
        blocks: ``layers(model)``.
        probes: K.
        generator: of the probes; the same ones for every block.
    """
    sizes = [p.numel() for p in curvature.parameters]
    owner = {name: block for block, names in blocks.items() for name in names}
    squares: dict[str, list[float]] = {owner[name]: [] for name in curvature.names}
    for probe in Probes(curvature.size, probes, generator, "rademacher", curvature.dtype):
        probe = probe.to(curvature.device)
        for block, samples in squares.items():
            parts = [torch.full((n,), owner[name] == block) for name, n in zip(curvature.names, sizes, strict=True)]
            mask = torch.cat(parts).to(curvature.device)
            samples.append(curvature.nme_product(probe * mask)[mask].double().square().sum().item())
    return {block: _root(samples) for block, samples in squares.items()}
