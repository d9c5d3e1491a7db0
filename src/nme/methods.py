"""Training methods: what one update uses in place of the gradient g (paper.md §3).

To add one: write a class with ``update`` and decorate it. Configurations, paths, figures and tests pick it up.

Weight decay is no business of a method: it acts on the update, outside L, and enters neither ĝ nor the penalty.
In train mode a penalty is computed on the batch's own batch-norm statistics; running statistics are updated once a
step, by the clean pass.

This module is imported to check a configuration, where torch may be absent, so torch is imported where it computes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nme.registry import Named, Parameter, Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from nme.products import Batch

METHODS = Registry("training method")


class Update(NamedTuple):
    """What a step needs and what it records.

    Attributes:
        direction: used in place of g, one tensor per parameter, without graph.
        loss: L of the batch, a scalar.
        logits: shape (B, C).
        gradient_norm: ‖g‖, a scalar.
    """

    direction: list[Tensor]
    loss: Tensor
    logits: Tensor
    gradient_norm: Tensor


class Method(Named):
    """A training method. ``symbol`` is its strength's on axes; None: it has no strength."""

    symbol: str | None

    def update(self, model: nn.Module, batch: Batch, strength: float, noise: torch.Generator) -> Update:
        """The direction of one step.

        Args:
            model: in train mode; parameters are unchanged on return, also after an exception.
            batch: inputs (B, ...) and labels (B,).
            strength: ≥ 0, in the unit of ``symbol``; 0 gives g.
            noise: the step's own random stream, on the CPU.
        """
        raise NotImplementedError


@METHODS.add
class Sgd(Method):
    """The gradient g itself. Cost: 3 F. A strength of 0 of any method is this one."""

    name = "sgd"
    label = "SGD"
    symbol = None

    def update(self, model, batch, strength, noise):
        from nme.products import batch_gradient, norm

        clean = batch_gradient(model, batch)
        return Update(clean.gradient, clean.loss, clean.logits, norm(clean.gradient))


@METHODS.add
class GradientPenalty(Method):
    """Gradient penalty L + ρ‖∇L‖^p: direction g + ρ H ĝ for p = 1, g + 2ρ H g for p = 2. Cost: 9 F.

    Exact, by double backward: the Hessian product carries the whole NME. Where g = 0, ĝ is taken as 0 (a subgradient).
    ρ has the unit of a parameter for p = 1; of a parameter squared over loss for p = 2.
    """

    name = "grad_norm"
    label = "gradient penalty"
    symbol = "ρ"
    parameters = {"p": Parameter(default=1, choices=(1, 2))}  # noqa: RUF012

    def update(self, model, batch, strength, noise):
        import torch

        from nme.products import batch_gradient, hessian_product, norm

        clean = batch_gradient(model, batch, keep_graph=True)
        size = norm(clean.gradient)
        # strength · d‖g‖^p/dg
        factor = strength / size if self.p == 1 else 2 * strength * torch.ones_like(size)
        factor = torch.where(size == 0, torch.zeros_like(size), factor)
        gradient = [g.detach() for g in clean.gradient]
        penalty = hessian_product(clean, torch._foreach_mul(gradient, factor))
        return Update(list(torch._foreach_add(gradient, penalty)), clean.loss, clean.logits, size)
