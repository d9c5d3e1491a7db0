"""Plain SGD and the gradient penalties (docs/theory.md, §6.3 and docs/theory.md, §6.5)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nme.methods.base import METHODS, Method, Strength, finished, times
from nme.methods.result import Update
from nme.registry import Parameter

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from nme.derivatives.combining import AnyBatch


@METHODS.add
class Sgd(Method):
    """The gradient g itself. Cost: 3 F. Any method with strength 0 is plain SGD."""

    name = "sgd"
    gradients = 1
    label = "SGD"
    symbol = None

    def update(self, model: nn.Module, batch: AnyBatch, strength: Strength, noise: torch.Generator) -> Update:
        from nme.derivatives.products import batch_gradient

        clean = batch_gradient(model, batch)
        return finished(clean.gradient, clean)


@METHODS.add
class GradientPenalty(Method):
    """Gradient penalty L + ρ‖∇L‖^p: direction g + ρ H ĝ for p = 1, g + 2ρ H g for p = 2. Cost: 9 F.

    Exact, by double backward: the Hessian product contains the whole NME. If g = 0, ĝ is set to 0 (a subgradient).
    ρ has the unit of a parameter for p = 1, and of a parameter squared over loss for p = 2. With groups of parameters j
    the penalty is (Σ ρ_j² ‖g_j‖²)^(1/2) for p = 1, and Σ ρ_j ‖g_j‖² for p = 2. See docs/theory.md, §6.3.
    """

    name = "grad_norm"
    order = 2
    gradients = 3
    label = "gradient penalty"
    symbol = "ρ"
    parameters = {"p": Parameter(default=1, choices=(1, 2))}  # noqa: RUF012
    p: int

    def update(self, model: nn.Module, batch: AnyBatch, strength: Strength, noise: torch.Generator) -> Update:
        import torch

        from nme.derivatives.products import batch_gradient, hessian_product
        from nme.derivatives.vectors import norm

        clean = batch_gradient(model, batch, keep_graph=True)
        size = norm(clean.gradient)
        vector = _slope(clean.gradient, size, strength, self.p)
        penalty = hessian_product(model, batch, clean, vector)
        return finished(torch._foreach_add(clean.gradient, penalty), clean, size)


@METHODS.add
class GradientPenaltyWithoutNme(Method):
    """The gradient penalty with the NME ablated from its update: g + ρ G ĝ. Cost: 7 F.

    This direction is not the gradient of any function. If g = 0, ĝ is set to 0. See docs/theory.md, §6.5.
    """

    name = "grad_norm_gn"
    order = 2
    gradients = 7 / 3
    label = "gradient penalty, NME ablated"
    symbol = "ρ"

    def update(self, model: nn.Module, batch: AnyBatch, strength: Strength, noise: torch.Generator) -> Update:
        import torch

        from nme.derivatives.products import batch_gradient, gauss_newton_product
        from nme.derivatives.vectors import norm

        clean = batch_gradient(model, batch, keep_jacobian=True)
        size = norm(clean.gradient)
        penalty = gauss_newton_product(model, batch, clean, _slope(clean.gradient, size, strength, 1))
        return finished(torch._foreach_add(clean.gradient, penalty), clean, size)


def _slope(gradient: list[Tensor], size: Tensor, strength: Strength, p: int) -> list[Tensor]:
    """Derivative of the penalty in g, whose norm is ``size``: ρ ĝ for p = 1 and 2ρ g for p = 2; 0 if g = 0."""
    import torch

    from nme.derivatives.vectors import norm

    if isinstance(strength, list):
        scaled = times(gradient, strength)
        if p == 2:
            return times(gradient, [2 * s for s in strength])
        size = norm(scaled)
        gradient, strength = times(scaled, strength), 1.0
    factor = size.reciprocal().mul_(strength) if p == 1 else torch.full_like(size, 2 * strength)
    return list(torch._foreach_mul(gradient, factor.masked_fill_(size == 0, 0)))
