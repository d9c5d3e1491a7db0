"""Training methods: the direction that one update uses in place of the gradient g (docs/theory.md, §6).

To add one: write a class with ``update`` and decorate it. Configurations, paths, figures and tests pick it up.

Weight decay is not part of a method: it acts on the update, outside L, and enters neither ĝ nor the penalty.
In train mode a penalty uses the batch's own batch-norm statistics; the clean pass updates the running statistics, once
per step. A batch may be cut into parts and distributed over processes (``nme.derivatives.products``); the results of a
method are always those of the whole batch. Random numbers are drawn first, so that the rest of a step can be compiled.

Checking a configuration imports this module, possibly on a machine without torch, so only the functions that compute
import torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from nme.registry import Named, Parameter, Registry

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from nme.derivatives.batch import Batch

METHODS: Registry[type[Method]] = Registry("training method")


class Update(NamedTuple):
    """Direction of a step, and the values that the step records.

    Attributes:
        direction: used in place of g, one tensor per parameter, without graph.
        loss: L of the batch, a scalar.
        logits: for this process's examples, shape (b, C).
        gradient_norm: ‖g‖, a scalar.
    """

    direction: list[Tensor]
    loss: Tensor
    logits: Tensor
    gradient_norm: Tensor


class Method(Named):
    """A training method.

    Attributes:
        symbol: symbol of the strength on axes; None: the method has no strength.
        has_clean_pass: True if loss, logits and gradient norm of an update are those at θ itself.
        gradients: cost of an update in gradients (3 F), counted for a convolutional network; used for planning
            (docs/theory.md, §6.2).
    """

    symbol: str | None
    has_clean_pass = True
    gradients: float

    def update(self, model: nn.Module, batch: Batch, strength: float, noise: torch.Generator) -> Update:
        """Compute the direction of one step.

        Args:
            model: in train mode; parameters are unchanged on return, even after an exception.
            batch: this process's inputs (b, ...) and labels (b,) of the batch.
            strength: ≥ 0, in the unit of ``symbol``; 0 gives g.
            noise: the step's own random stream, on the CPU.
        """
        raise NotImplementedError


@METHODS.add
class Sgd(Method):
    """The gradient g itself. Cost: 3 F. Any method with strength 0 is plain SGD."""

    name = "sgd"
    gradients = 1
    label = "SGD"
    symbol = None

    def update(self, model, batch, strength, noise):
        from nme.derivatives.products import batch_gradient
        from nme.derivatives.vectors import norm

        clean = batch_gradient(model, batch)
        return Update(clean.gradient, clean.loss, clean.logits, norm(clean.gradient))


@METHODS.add
class GradientPenalty(Method):
    """Gradient penalty L + ρ‖∇L‖^p: direction g + ρ H ĝ for p = 1, g + 2ρ H g for p = 2. Cost: 9 F.

    Exact, by double backward: the Hessian product contains the whole NME. If g = 0, ĝ is set to 0 (a subgradient).
    ρ has the unit of a parameter for p = 1, and of a parameter squared over loss for p = 2. See docs/theory.md, §6.3.
    """

    name = "grad_norm"
    gradients = 3
    label = "gradient penalty"
    symbol = "ρ"
    parameters = {"p": Parameter(default=1, choices=(1, 2))}  # noqa: RUF012

    def update(self, model, batch, strength, noise):
        import torch

        from nme.derivatives.products import batch_gradient, hessian_product
        from nme.derivatives.vectors import norm

        clean = batch_gradient(model, batch, keep_graph=True)
        size = norm(clean.gradient)
        # strength · d‖g‖^p/dg
        factor = strength / size if self.p == 1 else 2 * strength * torch.ones_like(size)
        factor = torch.where(size == 0, torch.zeros_like(size), factor)
        penalty = hessian_product(model, batch, clean, torch._foreach_mul(clean.gradient, factor))
        return Update(list(torch._foreach_add(clean.gradient, penalty)), clean.loss, clean.logits, size)


@METHODS.add
class Sam(Method):
    """SAM: the gradient after a step of length ρ uphill, ∇L(θ + ρ ĝ), ĝ from the same batch. Cost: 6 F.

    If g = 0, ĝ is set to 0. The second pass normalises with the batch's statistics and leaves the running statistics
    unchanged. See docs/theory.md, §6.4.
    """

    name = "sam"
    gradients = 2
    label = "SAM"
    symbol = "ρ"
    normalised = True

    def update(self, model, batch, strength, noise):
        import torch

        from nme.derivatives.products import batch_gradient
        from nme.derivatives.running_statistics import frozen_statistics
        from nme.derivatives.vectors import displaced, norm

        clean = batch_gradient(model, batch)
        size = norm(clean.gradient)
        factor = strength / size if self.normalised else strength * torch.ones_like(size)
        factor = torch.where(size == 0, torch.zeros_like(size), factor)
        with displaced(clean.parameters, torch._foreach_mul(clean.gradient, factor)), frozen_statistics(model):
            uphill = batch_gradient(model, batch)
        return Update(uphill.gradient, clean.loss, clean.logits, size)


@METHODS.add
class UnnormalisedSam(Sam):
    """Unnormalised SAM: ∇L(θ + ρ g). Cost: 6 F. ρ has the unit of a parameter squared over loss.

    See docs/theory.md, §6.4.
    """

    name = "usam"
    label = "unnormalised SAM"
    normalised = False


@METHODS.add
class GradientPenaltyWithoutNme(Method):
    """The gradient penalty with the NME ablated from its update: g + ρ G ĝ. Cost: 7 F.

    This direction is not the gradient of any function. If g = 0, ĝ is set to 0. See docs/theory.md, §6.5.
    """

    name = "grad_norm_gn"
    gradients = 7 / 3
    label = "gradient penalty, NME ablated"
    symbol = "ρ"

    def update(self, model, batch, strength, noise):
        import torch

        from nme.derivatives.products import batch_gradient, gauss_newton_product
        from nme.derivatives.vectors import norm

        clean = batch_gradient(model, batch, keep_jacobian=True)
        size = norm(clean.gradient)
        factor = torch.where(size == 0, torch.zeros_like(size), strength / size)
        penalty = gauss_newton_product(model, batch, clean, torch._foreach_mul(clean.gradient, factor))
        return Update(list(torch._foreach_add(clean.gradient, penalty)), clean.loss, clean.logits, size)


@METHODS.add
class WeightNoise(Method):
    """Weight noise: ∇L(θ + σε), ε ~ N(0, I), one draw per step; E L(θ + σε) ≈ L + (σ²/2) tr H. Cost: 3 F.

    There is no clean pass: loss, logits and running statistics come from the noisy pass. See docs/theory.md, §6.6.
    """

    name = "weight_noise"
    gradients = 1
    label = "weight noise"
    symbol = "σ²"
    has_clean_pass = False

    def update(self, model, batch, strength, noise):
        from nme.derivatives.products import batch_gradient
        from nme.derivatives.vectors import displaced, norm, normal

        parameters = [p for p in model.parameters() if p.requires_grad]
        with displaced(parameters, normal(parameters, noise), strength**0.5):
            noisy = batch_gradient(model, batch)
        return Update(noisy.gradient, noisy.loss, noisy.logits, norm(noisy.gradient))


@METHODS.add
class HessianTrace(Method):
    """Hessian trace penalty L + (σ²/2) tr H, tr H ≈ (1/k) Σ uᵀHu: direction g + (σ²/2) ∇(uᵀHu), mean over k probes.

    Exact third derivatives for each probe (Rademacher): uᵀHu by a forward pass in Taylor arithmetic, its gradient by
    one reverse pass. Cost: 3 F + 13 F per probe (5.33 gradients for k = 1; 7.5 by three nested reverse passes).
    See docs/theory.md, §6.7.
    """

    name = "hessian_trace"
    label = "Hessian trace penalty"
    symbol = "σ²"
    parameters = {"k": Parameter(default=1, whole=True)}  # noqa: RUF012

    @property
    def gradients(self):
        return 1 + 13 / 3 * self.k

    def update(self, model, batch, strength, noise):
        import torch

        from nme.derivatives.products import batch_gradient, mean_over_parts
        from nme.derivatives.taylor import quadratic_form
        from nme.derivatives.vectors import norm, rademacher

        parameters = [p for p in model.parameters() if p.requires_grad]
        probes = [rademacher(parameters, noise) for _ in range(self.k)]
        clean = batch_gradient(model, batch)
        direction = clean.gradient
        for u in probes:

            def slope(part: Batch, u: list[Tensor] = u) -> list[Tensor]:
                form = quadratic_form(model, part, u)
                return list(torch.autograd.grad(form, parameters, materialize_grads=True))

            direction = torch._foreach_add(direction, mean_over_parts(batch, slope), alpha=strength / 2 / self.k)
        return Update(list(direction), clean.loss, clean.logits, norm(clean.gradient))


@METHODS.add
class GaussNewtonTrace(Method):
    """Gauss-Newton trace penalty L + (σ²/2) tr G, tr G estimated with k sets of labels drawn from the model.

    ŷ_i ~ Cat(softmax sg z_i), constants; tr G = B·E‖g_ŷ‖² with g_ŷ = ∇(1/B)Σ ℓ(z_i, ŷ_i), since the scores are
    independent with mean zero. Direction g + (σ²/2)·2B·H_ŷ g_ŷ, H_ŷ the Hessian of the loss on ŷ: the penalty's value
    does not contain the NME, its gradient does. As in the paper, the labels are constants: the direction neglects that
    their distribution depends on θ, so its mean is not ∇ tr G. Cost: 3 F + 8 F per set of labels (3.67 gradients for
    k = 1). See docs/theory.md, §6.8.
    """

    name = "gauss_newton_trace"
    label = "Gauss-Newton trace penalty"
    symbol = "σ²"
    parameters = {"k": Parameter(default=1, whole=True)}  # noqa: RUF012

    @property
    def gradients(self):
        return 1 + 8 / 3 * self.k

    def update(self, model, batch, strength, noise):
        import torch

        from nme.derivatives.cross_entropy import draw_labels
        from nme.derivatives.products import batch_gradient, hessian_product
        from nme.derivatives.running_statistics import frozen_statistics
        from nme.derivatives.vectors import norm, uniform

        draws = uniform((self.k, batch.size), noise)
        clean = batch_gradient(model, batch, keep_logits=True)
        penalty = [torch.zeros_like(p) for p in clean.parameters]
        for numbers in draws:
            drawn = batch._replace(labels=draw_labels(clean.logits, batch.own(numbers)))
            with frozen_statistics(model):
                scores = batch_gradient(model, drawn, keep_graph=True, logits=clean.kept_logits)
            vector = torch._foreach_mul(scores.gradient, strength / self.k * batch.size)
            penalty = torch._foreach_add(penalty, hessian_product(model, drawn, scores, vector, keep_graph=True))
        direction = torch._foreach_add(clean.gradient, penalty)
        return Update(list(direction), clean.loss, clean.logits, norm(clean.gradient))


@METHODS.add
class GaussNewtonTraceByProbes(Method):
    """Gauss-Newton trace penalty L + (σ²/2) tr G, tr G ≈ (1/k) Σ uᵀGu with Rademacher probes.

    uᵀGu = (1/B) Σ (J_i u)ᵀ (∇²_z ℓ_i) (J_i u) is differentiated in full, ∇²_z ℓ included: an unbiased estimate of
    ∇ tr G, unlike the estimate from drawn labels, which neglects that their distribution depends on θ. Cost: 3 F + 7 F
    per probe (3.33 gradients for k = 1). See docs/theory.md, §6.9.
    """

    name = "gauss_newton_trace_probe"
    label = "Gauss-Newton trace penalty (uᵀGu)"
    symbol = "σ²"
    parameters = {"k": Parameter(default=1, whole=True)}  # noqa: RUF012

    @property
    def gradients(self):
        return 1 + 7 / 3 * self.k

    def update(self, model, batch, strength, noise):
        import torch

        from nme.derivatives.products import batch_gradient, gauss_newton_form_gradient
        from nme.derivatives.vectors import norm, rademacher

        probes = [rademacher([p for p in model.parameters() if p.requires_grad], noise) for _ in range(self.k)]
        clean = batch_gradient(model, batch, keep_jacobian=True)
        direction = clean.gradient
        for u in probes:
            slope = gauss_newton_form_gradient(model, batch, clean, u)
            direction = torch._foreach_add(direction, slope, alpha=strength / 2 / self.k)
        return Update(list(direction), clean.loss, clean.logits, norm(clean.gradient))
