"""Quantities that can be measured on a network, by name.

To add a quantity: write a function and decorate it. Configurations, the stage and tests pick it up from ``QUANTITIES``.

Checking a configuration imports this module, possibly on a machine without torch, so only the functions that compute
import torch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from nme.registry import Registry

if TYPE_CHECKING:
    from collections.abc import Iterable

    import torch
    from torch import nn

    from nme.curvature import Curvature
    from nme.derivatives.batch import Batch


class Settings(NamedTuple):
    """How many probes and steps a quantity takes, and how many examples at once (None: all)."""

    probes: int
    spectrum_probes: int
    lanczos_steps: int
    micro_batch: int | None = None


@dataclass(frozen=True)
class Value:
    """One measured number.

    Attributes:
        operator: H, G, N, or N_phi for the part of N from activation second derivatives; empty: no operator.
        layer: name of the layer; empty: the whole network.
        probe: number of the random probe or of the training batch; -1: neither, or the mean over batches.
        index: position of a Ritz value, ascending; -1: not a Ritz value.
        weight: weight of a Ritz value in the spectral density; nan: not a Ritz value.
        error: bound of the numerical error, or standard error of a mean; nan: neither.
        statistic: ``share`` or ``cosine`` if the quantity has several numbers; empty: it has one.
    """

    value: float | None
    operator: str = ""
    layer: str = ""
    probe: int = -1
    index: int = -1
    weight: float = math.nan
    error: float = math.nan
    statistic: str = ""


# From a network, a batch (or batches as in training), the settings and a seed.
Quantity = Callable[..., Iterator[Value]]

QUANTITIES: Registry[Quantity] = Registry("quantity")
ON_TRAINING_BATCHES: set[str] = set()  # names of the quantities that take batches as in training


def on_training_batches(function: Quantity) -> Quantity:
    """Decorator: the function takes an iterable of training batches in place of one batch."""
    ON_TRAINING_BATCHES.add(function.__name__)
    return function


@QUANTITIES.add
def second_derivatives(model: nn.Module, batch: Batch, settings: Settings, seed: int) -> Iterator[Value]:
    """Fraction of hidden units and examples with |φ''| > 1e-3·max |φ''|, per layer and overall: Figure 6.

    See docs/theory.md, §7.9. A network without hidden units yields nothing.
    """
    from nme.curvature.sparsity import nonzero_second_derivatives

    counts = nonzero_second_derivatives(model, batch.inputs)
    for layer, (nonzero, units) in counts.items():
        yield Value(nonzero / units, layer=layer)
    if counts:
        nonzero, units = map(sum, zip(*counts.values(), strict=True))
        yield Value(nonzero / units)


@QUANTITIES.add
def traces(model: nn.Module, batch: Batch, settings: Settings, seed: int) -> Iterator[Value]:
    """uᵀHu, uᵀGu and uᵀNu of each probe: samples of the traces. ``settings.probes`` probes.

    See docs/theory.md, §7.2.
    """
    from nme.curvature import traces

    found = traces(_curvature(model, batch, settings), settings.probes, _stream(seed, "traces"))
    for symbol, estimate in found.items():
        for probe, value in enumerate(estimate.samples.tolist()):
            yield Value(value, symbol, probe=probe)


@QUANTITIES.add
def squared_norms(model: nn.Module, batch: Batch, settings: Settings, seed: int) -> Iterator[Value]:
    """‖Hu‖², ‖Gu‖² and ‖Nu‖² of each probe: samples of the squared Frobenius norms; per layer ‖N_ll u‖² of its block.

    The diagonal blocks N_ll come only from second derivatives of activations (docs/theory.md, §1.3); with two or more
    hidden layers, these derivatives also contribute to blocks between layers.
    """
    from nme.curvature import frobenius_norms, layers, nme_block_norms

    curvature = _curvature(model, batch, settings)
    for symbol, estimate in frobenius_norms(curvature, settings.probes, _stream(seed, "norms")).items():
        for probe, value in enumerate(estimate.samples.tolist()):
            yield Value(value, symbol, probe=probe)
    for layer, estimate in nme_block_norms(curvature, layers(model), settings.probes, _stream(seed, "norms")).items():
        if layer:
            for probe, value in enumerate(estimate.samples.tolist()):
                yield Value(value, "N", layer=layer, probe=probe)


@QUANTITIES.add
def spectrum(model: nn.Module, batch: Batch, settings: Settings, seed: int) -> Iterator[Value]:
    """Ritz values of H, G and N with their weights and residuals, from one Lanczos run per probe.

    Ritz values are the nodes of the spectral density; the first and the last approximate the extreme eigenvalues.
    The settings ``spectrum_probes`` and ``lanczos_steps`` give the numbers of runs and steps; all three operators start
    from the same vectors. See docs/theory.md, §7.7.
    """
    from nme.curvature import NME, GaussNewton, Hessian, Probes, lanczos

    curvature = _curvature(model, batch, settings)
    for operator in (Hessian(curvature), GaussNewton(curvature), NME(curvature)):
        starts = Probes(curvature.size, settings.spectrum_probes, _stream(seed, "spectrum"), "normal", curvature.dtype)
        for probe, start in enumerate(starts):
            ritz = lanczos(operator, settings.lanczos_steps, start)
            columns = zip(ritz.values.tolist(), ritz.weights.tolist(), ritz.residuals.tolist(), strict=True)
            for index, (value, weight, error) in enumerate(columns):
                yield Value(value, operator.symbol, probe=probe, index=index, weight=weight, error=error)


@QUANTITIES.add
@on_training_batches
def update_shares(model: nn.Module, training: Iterable[Batch], settings: Settings, seed: int) -> Iterator[Value]:
    """Part of the gradient penalty's update ρHĝ that is NME: shares of ‖Hĝ‖ and cosines with ĝ.

    Each training batch has its own g, ĝ = g/‖g‖, H, G and N, in train mode. Yields, for each batch, the share
    ‖Aĝ‖/‖Hĝ‖ for A = G, N, N_phi and the cosine of Aĝ with ĝ for A = H, G, N, N_phi; then the means over the batches,
    with standard errors. An undefined number (g, Hĝ or Aĝ is 0) is None and does not enter the mean. See
    docs/theory.md, §7.8.
    """
    from nme.curvature.update_shares import mean_and_error, numbers_of

    found: dict[tuple[str, str], list[float | None]] = {}
    for number, batch in enumerate(training):
        for (statistic, operator), value in numbers_of(model, batch).items():
            found.setdefault((statistic, operator), []).append(value)
            yield Value(value, operator, probe=number, statistic=statistic)
    for (statistic, operator), values in found.items():
        mean, error = mean_and_error(values)
        yield Value(mean, operator, error=error, statistic=statistic)


def _curvature(model: nn.Module, batch: Batch, settings: Settings) -> Curvature:
    from nme.curvature import Curvature
    from nme.derivatives.losses import CrossEntropy

    data = (batch.inputs, batch.labels)
    # Our own networks, tested once and for all: no check of each.
    return Curvature(model, CrossEntropy(), data, micro_batch=settings.micro_batch, check=False)


def _stream(seed: int, purpose: str) -> torch.Generator:
    from nme.runtime.random_streams import stream

    return stream(seed, "measure", *purpose.encode())
