"""Trace penalties (docs/theory.md, §6.7 to docs/theory.md, §6.9).

With groups of parameters of strengths σ_j², (σ²/2) tr A is (1/2) Σ σ_j² tr A_jj, A_jj the block of group j.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from nme.methods.base import METHODS, Method, Strength, finished, times
from nme.methods.result import Update
from nme.registry import Parameter

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from nme.derivatives.batch import Batch
    from nme.derivatives.combining import AnyBatch
    from nme.derivatives.products import Gradient


class _Trace(Method):
    """A trace penalty L + (σ²/2) tr A, with tr A estimated from k draws.

    Attributes:
        passes: cost in F per draw.
    """

    symbol = "σ²"
    parameters = {"k": Parameter(default=1, whole=True)}  # noqa: RUF012
    passes: int

    k: int

    @property
    def gradients(self) -> float:  # type: ignore[override]  # depends on k
        return 1 + self.passes / 3 * self.k


class _ProbedTrace(_Trace):
    """A trace penalty with tr A ≈ (1/k) Σ uᵀAu, for Rademacher probes u: direction g + (1/k) Σ (σ²/2) ∇(uᵀAu)."""

    order = 3
    needs_jacobian = False

    def form_gradient(self, model: nn.Module, batch: AnyBatch, clean: Gradient, probe: list[Tensor]) -> list[Tensor]:
        """∇(uᵀAu) for the whole batch, exact."""
        raise NotImplementedError

    def update(self, model: nn.Module, batch: AnyBatch, strength: Strength, noise: torch.Generator) -> Update:
        import torch

        from nme.derivatives.products import batch_gradient
        from nme.derivatives.vectors import rademacher

        parameters = [p for p in model.parameters() if p.requires_grad]
        probes = [self.apart(rademacher, parameters, noise) for _ in range(self.k)]
        if isinstance(strength, list):
            probes, strength = [times(u, [s**0.5 for s in strength]) for u in probes], 1.0
        clean = batch_gradient(model, batch, keep_jacobian=self.needs_jacobian)
        direction = clean.gradient
        for u in probes:
            slope = self.form_gradient(model, batch, clean, u)
            direction = list(torch._foreach_add(direction, slope, alpha=strength / 2 / self.k))
        return finished(direction, clean)


@METHODS.add
class HessianTrace(_ProbedTrace):
    """Hessian trace penalty L + (σ²/2) tr H, tr H ≈ (1/k) Σ uᵀHu: direction g + (σ²/2) ∇(uᵀHu), mean over k probes.

    Exact third derivatives for each probe (Rademacher): uᵀHu by a forward pass in Taylor arithmetic, its gradient by
    one reverse pass. Cost: 3 F + 13 F per probe (5.33 gradients for k = 1; 7.5 by three nested reverse passes).
    See docs/theory.md, §6.7.
    """

    name = "hessian_trace"
    label = "Hessian trace penalty"
    passes = 13

    def form_gradient(self, model: nn.Module, batch: AnyBatch, clean: Gradient, probe: list[Tensor]) -> list[Tensor]:
        import torch

        from nme.derivatives.combining import mean_over_parts
        from nme.derivatives.taylor import quadratic_form

        def of_part(part: Batch) -> list[Tensor]:
            form = self.apart(quadratic_form, model, part, probe)
            return list(torch.autograd.grad(form, clean.parameters, materialize_grads=True))

        return mean_over_parts(batch, of_part, clean.gradient, clean.shares)


@METHODS.add
class GaussNewtonTrace(_Trace):
    """Gauss-Newton trace penalty L + (σ²/2) tr G, tr G estimated with k sets of labels drawn from the model.

    ŷ_i ~ Cat(softmax sg z_i), constants; tr G = B·E‖g_ŷ‖² with g_ŷ = ∇(1/B)Σ ℓ(z_i, ŷ_i), since the scores are
    independent with mean zero. Direction g + (σ²/2)·2B·H_ŷ g_ŷ, H_ŷ the Hessian of the loss on ŷ: the penalty's value
    does not contain the NME, its gradient does. As in the paper, the labels are constants: the direction neglects that
    their distribution depends on θ, so its mean is not ∇ tr G. Cost: 3 F + 8 F per set of labels (3.67 gradients for
    k = 1). See docs/theory.md, §6.8.
    """

    name = "gauss_newton_trace"
    label = "Gauss-Newton trace penalty"
    order = 2
    passes = 8

    def update(self, model: nn.Module, batch: AnyBatch, strength: Strength, noise: torch.Generator) -> Update:
        import torch

        from nme.derivatives.drawn_labels import drawn, known_draws, later_draws
        from nme.derivatives.products import batch_gradient, hessian_product
        from nme.derivatives.running_statistics import frozen_statistics

        known = self.apart(known_draws, batch, self.k, noise)
        clean = batch_gradient(model, batch, keep_logits=True)
        draws = self.apart(later_draws, batch, clean, self.k, noise) if known is None else known
        penalty = [torch.zeros_like(p) for p in clean.parameters]
        for numbers in draws:
            labelled = drawn(batch, clean, numbers)
            with frozen_statistics(model):
                scores = batch_gradient(model, labelled, keep_graph=True, logits=clean.kept_logits)
            if isinstance(strength, list):
                vector = times(scores.gradient, [s / self.k * clean.weight for s in strength])
            else:
                vector = list(torch._foreach_mul(scores.gradient, strength / self.k * clean.weight))
            product = hessian_product(model, labelled, scores, vector, keep_graph=True)
            penalty = list(torch._foreach_add(penalty, product))
        return finished(torch._foreach_add(clean.gradient, penalty), clean)


@METHODS.add
class GaussNewtonTraceByProbes(_ProbedTrace):
    """Gauss-Newton trace penalty L + (σ²/2) tr G, tr G ≈ (1/k) Σ uᵀGu with Rademacher probes.

    uᵀGu = (1/B) Σ (J_i u)ᵀ (∇²_z ℓ_i) (J_i u) is differentiated in full, ∇²_z ℓ included: an unbiased estimate of
    ∇ tr G, unlike the estimate from drawn labels, which neglects that their distribution depends on θ. Cost: 3 F + 7 F
    per probe (3.33 gradients for k = 1). See docs/theory.md, §6.9.
    """

    name = "gauss_newton_trace_probe"
    label = "Gauss-Newton trace penalty (uᵀGu)"
    passes = 7
    needs_jacobian = True

    def form_gradient(self, model: nn.Module, batch: AnyBatch, clean: Gradient, probe: list[Tensor]) -> list[Tensor]:
        from nme.derivatives.products import gauss_newton_form_gradient

        return gauss_newton_form_gradient(model, batch, clean, probe)
