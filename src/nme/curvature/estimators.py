"""Estimators from products alone: traces, norms, diagonals, eigenvalues, spectral densities, with their errors.

Formulas and variances: docs/theory.md, §7.

Every estimator takes its own ``torch.Generator`` (on the CPU, so that probes do not depend on the device); the same
generator state gives the same probes for H, G and N.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import torch
from torch import Tensor

from nme.curvature.operators import Curvature, Operator
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
        """The mean of independent samples.

        Raises:
            NmeError: a sample is not finite.
        """
        samples = samples.double().cpu()
        if not bool(torch.isfinite(samples).all()):
            raise NmeError("an estimate has samples that are not finite: are there NaN in the data or the parameters?")
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
        if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
            raise NmeError("generator is not a torch.Generator on the CPU (give torch.Generator().manual_seed(0), say)")
        self.size, self.count, self.distribution, self.dtype = size, count, distribution, dtype
        self._seeds = torch.randint(2**62, (count,), generator=generator, device="cpu").tolist()

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        for seed in self._seeds:
            stream = torch.Generator("cpu").manual_seed(seed)
            if self.distribution == "rademacher":
                signs = torch.randint(2, (self.size,), generator=stream, dtype=torch.int8, device="cpu")
                yield (2 * signs - 1).to(self.dtype)
            else:
                yield torch.randn(self.size, generator=stream, dtype=self.dtype, device="cpu")


def known_operator(operator: Operator) -> None:
    """Raise if a ``Curvature`` is given where one of its operators is meant.

    Raises:
        NmeError: says so.
    """
    if isinstance(operator, Curvature):
        raise NmeError("a Curvature has three operators (give Hessian(curvature), GaussNewton(...) or NME(...))")


def known_curvature(curvature: Curvature) -> None:
    """Raise if an operator is given where its ``Curvature`` is meant.

    Raises:
        NmeError: says so.
    """
    if not isinstance(curvature, Curvature):
        raise NmeError(f"curvature is {type(curvature).__name__} (allowed: a Curvature, such as operator.curvature)")


def probes_for(operator: Operator, count: int, generator: torch.Generator, distribution: str) -> Probes:
    """Probes in the size and dtype of an operator."""
    known_operator(operator)
    return Probes(operator.shape[0], count, generator, distribution, operator.dtype)


def traces(
    curvature: Curvature, probes: int, generator: torch.Generator, distribution: str = "rademacher"
) -> dict[str, Estimate]:
    """Tr H, tr G and tr N from the same probes (Hutchinson); per probe tr H = tr G + tr N. Cost: 6 F a probe.

    See docs/theory.md, §7.2.
    """
    known_curvature(curvature)
    drawn = Probes(curvature.size, probes, generator, distribution, curvature.dtype)
    forms = curvature.quadratic_forms(drawn)
    return {symbol: Estimate.of(samples) for symbol, samples in zip("HGN", forms, strict=True)}


def trace(operator: Operator, probes: int, generator: torch.Generator, distribution: str = "rademacher") -> Estimate:
    """Tr A ≈ (1/K) Σ uᵀAu (Hutchinson). For several of H, G, N use ``traces``, which costs the same as one."""
    known_operator(operator)
    return traces(operator.curvature, probes, generator, distribution)[operator.symbol]


def hutch_plus_plus(operator: Operator, products: int, generator: torch.Generator) -> Estimate:
    """Tr A by Hutch++ (Meyer, Musco, Musco, Woodruff 2021): exact on a random low-rank part, Hutchinson on the rest.

    See docs/theory.md, §7.3.

    Args:
        operator: A.
        products: how many products with A to spend; a third each on the range, its trace and the rest.
        generator: of the probes.

    Returns:
        The samples are those of the rest; the error is theirs, the low-rank part has none.
    """
    known_operator(operator)
    third = products // 3
    if not 1 <= third <= operator.shape[0]:
        raise NmeError(f"products is {products} (allowed: 3 to {3 * operator.shape[0]})")
    sketch = torch.stack(list(probes_for(operator, third, generator, "rademacher")), 1).to(operator.device)
    basis, _ = torch.linalg.qr(operator @ sketch)
    exact = (basis * (operator @ basis)).double().sum().item()
    samples = []
    for probe in probes_for(operator, third, generator, "rademacher"):
        rest = probe.to(operator.device)
        rest = rest - basis @ (basis.T @ rest)
        samples.append(torch.dot(rest.double(), (operator @ rest).double()).item())
    estimate = Estimate.of(torch.tensor(samples, dtype=torch.float64, device="cpu"))
    return Estimate(exact + estimate.value, estimate.error, estimate.samples)


def frobenius_norm(operator: Operator, probes: int, generator: torch.Generator) -> Estimate:
    """‖A‖_F = √E‖Au‖². The samples are ‖Au‖²; the error of the root is by the delta method; its bias is O(1/K).

    See docs/theory.md, §7.4.
    """
    samples = [
        (operator @ probe).double().square().sum().item()
        for probe in probes_for(operator, probes, generator, "rademacher")
    ]
    return root_of_mean(samples)


def root_of_mean(squares: list[float]) -> Estimate:
    """The root of a mean of squares; the samples stay the squares.

    They are collected as numbers: small tensors that stay keep malloc from reusing the space between them, so that
    memory would grow with the probes.
    """
    squared = Estimate.of(torch.tensor(squares, dtype=torch.float64, device="cpu"))
    value = sqrt(squared.value)
    return Estimate(value, squared.error / (2 * value) if value > 0 else 0.0, squared.samples)


def frobenius_norms(curvature: Curvature, probes: int, generator: torch.Generator) -> dict[str, Estimate]:
    """‖H‖_F, ‖G‖_F and ‖N‖_F from the same probes, by joint products. Cost: 8 F a probe.

    See docs/theory.md, §7.4.
    """
    known_curvature(curvature)
    squares: dict[str, list[float]] = {symbol: [] for symbol in "HGN"}
    for probe in Probes(curvature.size, probes, generator, "rademacher", curvature.dtype):
        for samples, product in zip(squares.values(), curvature.products(probe), strict=True):
            samples.append(product.double().square().sum().item())
    return {symbol: root_of_mean(samples) for symbol, samples in squares.items()}


def diagonal(operator: Operator, probes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """The diagonal of A, E[u ⊙ Au], and its standard error entry by entry; shapes (P,), float64.

    See docs/theory.md, §7.5.
    """
    known_operator(operator)
    total = torch.zeros(operator.shape[0], dtype=torch.float64, device="cpu")
    squares = torch.zeros_like(total)
    for probe in probes_for(operator, probes, generator, "rademacher"):
        sample = probe.double() * (operator @ probe).double().cpu()
        total += sample
        squares += sample.square()
    mean = total / probes
    variance = (squares / probes - mean.square()).clamp(min=0) * probes / max(probes - 1, 1)
    return mean, (variance / probes).sqrt() if probes > 1 else torch.full_like(mean, float("nan"))
