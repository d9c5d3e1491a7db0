"""How much of the gradient penalty's update ρHĝ is NME: the numbers of the quantity ``update_shares``.

All of it is what the penalty sees in a training step: training batches of the recipe's size, batch norm in train mode
with each part's own statistics, gradients and products that are means over the parts. Computed in float32, as all
curvature is, whatever the recipe's precision.
"""

import math
import statistics
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nme.curvature import Curvature
from nme.derivatives.activate import Activate
from nme.derivatives.batch import Batch
from nme.derivatives.losses import CrossEntropy

SHARES = ("G", "N", "N_phi")
COSINES = ("H", *SHARES)


class AlongGradient(NamedTuple):
    """ĝ and the products with it, shape (P,) each.

    Attributes:
        direction: ĝ = g/‖g‖.
        products: Hĝ, Gĝ, Nĝ and N_φ″ĝ by H, G, N and N_phi. Hĝ = Gĝ + Nĝ.
    """

    direction: Tensor
    products: dict[str, Tensor]


def along_gradient(model: nn.Module, batch: Batch) -> AlongGradient | None:
    """ĝ, Hĝ, Gĝ, Nĝ and N_φ″ĝ of a training batch (docs/theory.md, §7.8); None if g is 0 or not finite.

    N_φ″ĝ is the part from activation second derivatives: Hĝ of the network minus Hĝ of its twin with the same weights
    and φ″ = 0. Value and slope of the activation are the same in both, so both have the same g and G
    (docs/theory.md, §1.4), and N_φ″ĝ = Nĝ − N_twin ĝ: no difference with G in it, which would cancel near
    interpolation. It is exactly 0 where the twin is the network itself. The cost is 20 F for a batch of one part.

    Args:
        model: in either mode; nothing of it is changed.
        batch: inputs and labels, in the parts of a training step.
    """
    parts = [(part.inputs, part.labels) for part in batch.parts()]
    curvature = Curvature(model, CrossEntropy(), parts, batch_norm="train", check=False)
    gradient = curvature.gradient()
    size = torch.linalg.vector_norm(gradient, dtype=torch.float64)
    if not 0 < size < math.inf:
        return None
    direction = (gradient.double() / size).to(gradient.dtype)
    h, g, n = curvature.products(direction)
    del curvature  # and its graph, before there is another one
    with diminished(model) as changed:
        if changed:
            twin = Curvature(model, CrossEntropy(), parts, batch_norm="train", check=False)
            n_phi = n - twin.nme_product(direction)
        else:
            n_phi = torch.zeros_like(n)
    return AlongGradient(direction, {"H": h, "G": g, "N": n, "N_phi": n_phi})


@contextmanager
def diminished(model: nn.Module) -> Iterator[bool]:
    """The model is its twin inside: second derivatives of activations are 0. Yields whether any activation differs.

    See docs/theory.md, §5.4.
    """
    layers = [module for module in model.modules() if isinstance(module, Activate)]
    before = [layer.activation for layer in layers]
    twins = [activation.diminished() for activation in before]
    try:
        for layer, twin in zip(layers, twins, strict=True):
            layer.activation = twin
        yield any(twin is not own for twin, own in zip(twins, before, strict=True))
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.activation = own


def numbers_of(model: nn.Module, batch: Batch) -> dict[tuple[str, str], float | None]:
    """Shares ‖Aĝ‖/‖Hĝ‖ and cosines of Aĝ with ĝ, by (statistic, operator); None where one is not defined."""
    found = along_gradient(model, batch)
    if found is None:
        return dict.fromkeys([*(("share", symbol) for symbol in SHARES), *(("cosine", symbol) for symbol in COSINES)])
    direction, products = found
    norms = {symbol: _norm(product) for symbol, product in products.items()}
    along = {s: torch.dot(p.double(), direction.double()).item() for s, p in products.items()}
    length = _norm(direction)
    values = {("share", symbol): _ratio(norms[symbol], norms["H"]) for symbol in SHARES}
    values |= {("cosine", symbol): _ratio(along[symbol], norms[symbol] * length) for symbol in COSINES}
    return values


def mean_and_error(values: list[float | None]) -> tuple[float | None, float]:
    """Mean and standard error of the values that are defined; None without any, nan as error of fewer than two."""
    defined = [value for value in values if value is not None]
    if not defined:
        return None, math.nan
    error = statistics.stdev(defined) / math.sqrt(len(defined)) if len(defined) > 1 else math.nan
    return statistics.fmean(defined), error


def _norm(vector: Tensor) -> float:
    return float(torch.linalg.vector_norm(vector, dtype=torch.float64))


def _ratio(numerator: float, denominator: float) -> float | None:
    ratio = numerator / denominator if denominator else math.nan
    return ratio if math.isfinite(ratio) else None
