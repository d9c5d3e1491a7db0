"""Rounding errors: how much of a difference they may explain, and how large those of float32 are.

See docs/is-my-number-right.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nme.errors import NmeError


def tolerance(dtype: torch.dtype) -> float:
    """Largest relative difference that rounding may explain."""
    return 1e-7 if dtype == torch.float64 else 2e-3


WORST = 0.05  # largest error of a gradient or product in float32 that is not refused, relative to its norm


def of_sums(dtype: torch.dtype) -> float:
    """Largest difference that rounding may explain, relative to what a gradient adds up (``uncancelled``)."""
    return 100 * torch.finfo(dtype).eps


def not_explained(
    differences: dict[int, float],
    gradients: list[Tensor],
    names: list[str],
    recomputed: Callable[[torch.dtype], list[Tensor] | None],
) -> dict[int, float]:
    """Differences of gradients in float32 that are no rounding errors.

    Some networks make rounding errors thousands of times larger, such as deep ones with batch norm at initialisation.
    They are told from faults by float64: its own rounding errors are 10⁻⁹ times as large, and faults are not.

    Args:
        differences: norms, by number of the parameter.
        gradients: of all parameters.
        names: of all parameters.
        recomputed: gives the gradients in a dtype; None if the model cannot be computed in it.

    Raises:
        NmeError: rounding errors explain a difference, but it is more than 5 % of the gradient.
    """
    errors = _of_float32(recomputed)
    if errors is None:
        return differences
    size = max(float(g.norm()) for g in gradients)
    for k, difference in differences.items():
        reference = max(float(gradients[k].norm()), 1e-2 * size)
        if WORST * reference < difference <= 10 * errors[k]:
            raise NmeError(
                f"rounding errors of float32 change the gradient of parameter '{names[k]}' by"
                f" {difference / reference:.1%} (use a model in float64)"
            )
    return {k: difference for k, difference in differences.items() if not difference <= 10 * errors[k]}


def _of_float32(recomputed: Callable[[torch.dtype], list[Tensor] | None]) -> list[float] | None:
    """Norm of the error in each parameter's gradient; 0 where float64 is not repeatable: then it is not rounding."""
    single, double = recomputed(torch.float32), recomputed(torch.float64)
    again = recomputed(torch.float64)
    if single is None or double is None or again is None:
        return None
    errors = [float((a.double() - b).norm()) for a, b in zip(single, double, strict=True)]
    drifts = [float((a - b).norm()) for a, b in zip(again, double, strict=True)]
    return [e if d <= 1e-3 * e else 0.0 for e, d in zip(errors, drifts, strict=True)]


def of_gradient(single: Tensor, double: Tensor, uncancelled: Callable[[], tuple[float, float]]) -> None:
    """Raise if rounding errors change the gradient by more than 5 %, but for a gradient that vanishes.

    Args:
        single: ∇L computed in float32, shape (P,).
        double: in float64, shape (P,).
        uncancelled: as for ``repeatable_and_symmetric``.

    Raises:
        NmeError: they do.
    """
    error, size = float((single.double() - double).norm()), float(double.norm())
    if error > WORST * size + 1e-30 and error > of_sums(torch.float32) * uncancelled()[0]:
        raise NmeError(_rounded("the gradient", error / size if size else math.inf))


def of_products(single: Tensor, double: Tensor) -> float:
    """Relative error of Hv in float32.

    Args:
        single: Hv computed in float32, shape (P,).
        double: in float64, shape (P,).

    Raises:
        NmeError: it is more than 5 %.
    """
    error = float((single.double() - double).norm()) / max(float(double.norm()), 1e-12)
    if error > WORST:
        raise NmeError(_rounded("Hv", error))
    return error


def _rounded(what: str, error: float) -> str:
    return (
        f"rounding errors of float32 change {what} by {error:.1%} of its norm (use dtype=torch.float64; or does the"
        " model draw random numbers by a seed of its own?)"
    )
