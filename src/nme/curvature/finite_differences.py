"""Hv as the derivative of the gradient along v, by central differences: docs/is-my-number-right.md."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn

from nme.curvature.network import Network
from nme.derivatives.activate import Activate
from nme.errors import NmeError

# In units of ‖θ‖; several, since a step may cross a kink of ReLU, and rounding errors grow as the step shrinks.
STEPS = {torch.float64: (1e-5, 1e-6, 1e-4, 1e-7, 1e-3), torch.float32: (1e-3, 1e-4, 1e-2)}
# For networks so sensitive that the steps above leave every neighbourhood. They only acquit: float32 inside of a model
# does not notice them.
FINER = {torch.float64: (1e-8, 1e-9, 1e-10), torch.float32: ()}
TOLERANCE = 1e-4  # of ‖Hv‖


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


def derivative_of_gradient(operator: Operator) -> float:
    """Raise unless Hv is the derivative of the gradient along v.

    Kinks and rounding errors disturb first and second differences alike; for smooth functions the second difference
    nearly vanishes. Hv is wrong if the first is off by clearly more than the second in two steps.

    Args:
        operator: in float64 if possible.

    Returns:
        How large an error of Hv would have been found, relative to ‖Hv‖: 10⁻⁴, or more where kinks or float32 inside of
        the model hide it; infinity for activations with prescribed second derivatives, whose H is another by design.

    Raises:
        NmeError: Hv is not that derivative, or the forward pass changes parameters in place.
    """
    model = operator.network.model
    if any(isinstance(m, Activate) and not m.activation.genuine for m in model.modules()):
        return math.inf
    found = []
    with _Line(operator) as line:
        for step in STEPS[operator.dtype]:
            found.append(line.differences(step))
            if found[-1].error <= TOLERANCE * found[-1].scale:
                return TOLERANCE
        wrong = [d for d in found if not d.error <= 3 * d.disturbance]
        if len(wrong) < 2:
            return 3 * min(d.disturbance / d.scale for d in found)
        for step in FINER[operator.dtype]:
            finer = line.differences(step)
            if finer.error <= TOLERANCE * finer.scale:
                return TOLERANCE
    size = min(d.error / d.scale for d in wrong)
    layers = sorted({type(m).__name__ for m in model.modules() if next(m.parameters(recurse=False), None) is not None})
    raise NmeError(
        f"Hv differs from finite differences of the gradient by {size:.2g} of its norm in {operator.dtype}: second"
        " derivatives of an operation are wrong, such as torch's weight_norm or a custom autograd Function, or the"
        " gradient is by design not the loss's (.detach(), straight-through, gradient reversal, padding_idx"
        f" of a function; layers: {', '.join(layers)})"
    )


class Differences(NamedTuple):
    """Norms for one step: first difference − Hv, second difference, and the larger of Hv and first difference."""

    error: float
    disturbance: float
    scale: float


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

    def differences(self, step: float) -> Differences:
        shift = step * self.length
        ahead, behind = self._gradient(shift), self._gradient(-shift)
        first, second = (ahead - behind) / (2 * shift), (ahead + behind - 2 * self.gradient) / (2 * shift)
        scale = max(float(self.product.norm()), float(first.norm()), 1e-12)
        return Differences(float((first - self.product).norm()), float(second.norm()), scale)

    def _gradient(self, shift: float) -> Tensor:
        own = self.operator.parameters
        self.operator.move([p + shift * d for p, d in zip(self.at, self.parts, strict=True)])
        versions = [p._version for p in own]
        gradient = self.operator.gradient()
        for name, p, version in zip(self.operator.names, own, versions, strict=True):
            if p._version != version:
                raise NmeError(f"the forward pass changes parameter '{name}' (max_norm?), which its gradient misses")
        return gradient
