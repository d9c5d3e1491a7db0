"""Gradients at displaced parameters: SAM, docs/theory.md, §6.4, and weight noise, docs/theory.md, §6.6."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nme.methods.base import METHODS, Method, Strength, finished, times
from nme.methods.result import Update

if TYPE_CHECKING:
    import torch
    from torch import nn

    from nme.derivatives.combining import AnyBatch


@METHODS.add
class Sam(Method):
    """SAM: the gradient after a step of length ρ uphill, ∇L(θ + ρ ĝ), ĝ from the same batch. Cost: 6 F.

    If g = 0, ĝ is set to 0. The second pass normalises with the batch's statistics and leaves the running statistics
    unchanged. With groups of parameters j the step is ρ_j g_j/‖g‖. See docs/theory.md, §6.4.
    """

    name = "sam"
    gradients = 2
    label = "SAM"
    symbol = "ρ"
    normalised = True

    def update(self, model: nn.Module, batch: AnyBatch, strength: Strength, noise: torch.Generator) -> Update:
        import torch

        from nme.derivatives.products import batch_gradient
        from nme.derivatives.running_statistics import frozen_statistics
        from nme.derivatives.vectors import displaced, norm

        clean = batch_gradient(model, batch)
        size, ascent = norm(clean.gradient), clean.gradient
        if isinstance(strength, list):
            ascent, strength = times(ascent, strength), 1.0
        factor = size.reciprocal().mul_(strength) if self.normalised else torch.full_like(size, strength)
        ascent = list(torch._foreach_mul(ascent, factor.masked_fill_(size == 0, 0)))
        parameters, loss, output, used = clean.parameters, clean.loss, clean.logits, clean.used
        del clean  # g takes as much memory as the parameters
        with displaced(parameters, ascent, reuse=True), frozen_statistics(model):
            del ascent
            uphill = batch_gradient(model, batch)
        if used is not None and uphill.used is not None:  # routing may take other parameters there
            used = [here or there for here, there in zip(used, uphill.used, strict=True)]
        return Update(uphill.gradient, loss, output, size, used)


@METHODS.add
class UnnormalisedSam(Sam):
    """Unnormalised SAM: ∇L(θ + ρ g). Cost: 6 F. ρ has the unit of a parameter squared over loss.

    See docs/theory.md, §6.4.
    """

    name = "usam"
    label = "unnormalised SAM"
    normalised = False


@METHODS.add
class WeightNoise(Method):
    """Weight noise: ∇L(θ + σε), ε ~ N(0, I), one draw per step; E L(θ + σε) ≈ L + (σ²/2) tr H. Cost: 3 F.

    There is no clean pass: loss, output and running statistics come from the noisy pass. See docs/theory.md, §6.6.
    """

    name = "weight_noise"
    gradients = 1
    label = "weight noise"
    symbol = "σ²"
    has_clean_pass = False

    def update(self, model: nn.Module, batch: AnyBatch, strength: Strength, noise: torch.Generator) -> Update:
        from nme.derivatives.products import batch_gradient
        from nme.derivatives.vectors import displaced, normal

        parameters = [p for p in model.parameters() if p.requires_grad]
        epsilon = self.apart(normal, parameters, noise)
        if isinstance(strength, list):
            epsilon, strength = times(epsilon, [s**0.5 for s in strength]), 1.0
        with displaced(parameters, epsilon, strength**0.5):
            noisy = batch_gradient(model, batch)
        return finished(noisy.gradient, noisy)
