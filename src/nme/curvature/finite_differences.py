"""Hv as the derivative of the gradient along v, by central differences: docs/is-my-number-right.md."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from nme.curvature.network import Network
from nme.derivatives.activate import Activate
from nme.errors import NmeError

STEPS = (1e-5, 1e-6, 1e-4, 1e-7)  # in units of ‖θ‖; several, since a step may cross a kink of ReLU
COARSE_STEPS = (1e-3, 1e-2)  # where the gradient has the noise of float32
TOLERANCE, COARSE_TOLERANCE = 1e-4, 1e-2  # of ‖Hv‖


class Operator(Protocol):
    """What a finite difference needs of a ``Curvature``."""

    size: int
    dtype: torch.dtype
    device: torch.device
    network: Network
    names: list[str]
    parameters: list[Tensor]

    def hessian_product(self, vectors: Tensor) -> Tensor: ...  # noqa: D102
    def gradient(self) -> Tensor: ...  # noqa: D102
    def move(self, parameters: list[Tensor]) -> None: ...  # noqa: D102
    def split(self, vector: Tensor) -> list[Tensor]: ...  # noqa: D102


def derivative_of_gradient(operator: Operator) -> None:
    """Raise unless Hv is the derivative of the gradient along v.

    Activations with prescribed second derivatives are not compared: their H is not that derivative by design.

    Args:
        operator: in float64. With parts in float32, which the noise of its gradient shows, or itself in float32, steps
            are larger and only larger differences are seen.

    Raises:
        NmeError: Hv differs by more than 10⁻⁴ for every step; with float32, by more than 10⁻².
    """
    model = operator.network.model
    if any(isinstance(m, Activate) and not m.activation.genuine for m in model.modules()):
        return
    errors, noise = [], float("inf")
    with _Line(operator) as line:
        for step in STEPS if operator.dtype == torch.float64 else ():
            error, noise = line.error_and_noise(step)
            errors.append(error)
            if error < TOLERANCE:
                return
        for step in COARSE_STEPS if noise > COARSE_TOLERANCE else ():
            errors.append(line.error_and_noise(step)[0])
            if errors[-1] < COARSE_TOLERANCE:
                return
    layers = sorted({type(m).__name__ for m in model.modules() if next(m.parameters(recurse=False), None) is not None})
    raise NmeError(
        f"Hv differs from finite differences of the gradient by {min(errors):.2g} of its norm in {operator.dtype}:"
        " second derivatives of an operation are wrong, such as torch's weight_norm or a custom autograd Function, or"
        " the gradient is by design not the loss's (.detach(), straight-through, gradient reversal, max_norm,"
        f" padding_idx of a function; layers: {', '.join(layers)})"
    )


class _Line:
    """Gradients along θ + s v; the operator has its own parameters again outside."""

    def __init__(self, operator: Operator):
        self.operator = operator
        generator = torch.Generator("cpu").manual_seed(1)
        self.v = torch.randn(operator.size, generator=generator, device="cpu", dtype=torch.float32)
        self.v = self.v.to(operator.device, operator.dtype)
        self.parts = operator.split(self.v)
        own = dict(operator.network.model.named_parameters())
        embeddings = [m for m in operator.network.model.modules() if isinstance(m, nn.Embedding)]
        padding = {id(m.weight): m.padding_idx for m in embeddings if m.padding_idx is not None}
        for name, part in zip(operator.names, self.parts, strict=True):
            if id(own[name]) in padding:
                part[padding[id(own[name])]] = 0  # its gradient is 0 by design

    def __enter__(self) -> _Line:
        self.at = [p.detach().clone() for p in self.operator.parameters]
        self.length = max(float(torch.cat([p.reshape(-1) for p in self.at]).norm()), 1.0) / float(self.v.norm())
        self.product, self.gradient = self.operator.hessian_product(self.v), self.operator.gradient()
        return self

    def __exit__(self, *raised: object) -> None:
        self.operator.move(self.at)

    def error_and_noise(self, step: float) -> tuple[float, float]:
        """Norms of central difference − Hv, and of the second difference, which smooth functions do not have."""
        ends = []
        for sign in (1, -1):
            shift = sign * step * self.length
            self.operator.move([p + shift * d for p, d in zip(self.at, self.parts, strict=True)])
            ends.append(self.operator.gradient())
        difference = (ends[0] - ends[1]) / (2 * step * self.length)
        bend = (ends[0] + ends[1] - 2 * self.gradient) / (2 * step * self.length)
        scale = max(float(self.product.norm()), float(difference.norm()))
        if scale <= 1e-12:
            return 0.0, 0.0
        return float((difference - self.product).norm()) / scale, float(bend.norm()) / scale
