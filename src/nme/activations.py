"""Activation functions, each with its value and its first and second derivative (docs/theory.md, §5.1).

To add one: write a class with ``value``, ``first`` and ``second`` and decorate it. Configurations, paths, figures
and tests pick it up from the registry.

Checking a configuration imports this module, possibly on a machine without torch, so only the functions that compute
import torch.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from nme.registry import Named, Parameter, Registry

if TYPE_CHECKING:
    from torch import Tensor

ACTIVATIONS: Registry[type[Activation]] = Registry("activation")


class Activation(Named):
    """An elementwise function φ of a tensor of any shape; results have the shape and dtype of the input.

    Attributes:
        genuine: True if ``second`` is the derivative of ``first``. If not (augmented ReLU, diminished GELU), autodiff
            needs a custom rule, and finite differences of the loss disagree on purpose.
        piecewise_linear: True if a network with this activation has linear regions; φ'' is then 0 everywhere.
    """

    genuine = True
    piecewise_linear = False

    def value(self, x: Tensor) -> Tensor:
        """φ(x)."""
        raise NotImplementedError

    def first(self, x: Tensor) -> Tensor:
        """φ'(x)."""
        raise NotImplementedError

    def second(self, x: Tensor) -> Tensor:
        """φ''(x), the value that autodiff must use. Differentiable, so that third derivatives exist."""
        raise NotImplementedError

    def third(self, x: Tensor) -> Tensor:
        """φ'''(x), without graph. Overriding is optional: a closed form saves time in the Hessian trace penalty."""
        import torch

        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            return torch.autograd.grad(self.second(leaf).sum(), leaf)[0]

    def diminished(self) -> Activation:
        """The activation with the same value and first derivative, and second derivative 0 (docs/theory.md, §5.4).

        Returns the activation itself if φ'' is 0 already: override this if ``piecewise_linear`` is False although φ''
        is 0.
        """
        return self if self.piecewise_linear else Diminished(self)


def _step(x: Tensor) -> Tensor:
    """1 above 0, otherwise 0."""
    return (x > 0).to(x.dtype)


def _times(factor: float, x: Tensor) -> Tensor:
    """A tensor times a factor, without a pass over memory for 1."""
    return x if factor == 1 else factor * x


def _pdf(x: Tensor) -> Tensor:
    """Density of the standard normal distribution."""
    return (-0.5 * x * x).exp() / math.sqrt(2 * math.pi)


@ACTIVATIONS.add
class Relu(Activation):
    """max(x, 0); φ'' = 0 almost everywhere, and 0 at the kink."""

    name = "relu"
    label = "ReLU"
    piecewise_linear = True

    def value(self, x: Tensor) -> Tensor:
        return x.relu()

    def first(self, x: Tensor) -> Tensor:
        return _step(x)

    def second(self, x: Tensor) -> Tensor:
        return x * 0


@ACTIVATIONS.add
class LeakyRelu(Activation):
    """Leaky ReLU, x above 0 and slope·x below; φ'' = 0 almost everywhere."""

    name = "leaky_relu"
    label = "leaky ReLU"
    piecewise_linear = True
    parameters = {"slope": Parameter(default=0.1)}  # noqa: RUF012
    slope: float

    def value(self, x: Tensor) -> Tensor:
        from torch.nn.functional import leaky_relu

        return leaky_relu(x, self.slope)

    def first(self, x: Tensor) -> Tensor:
        return _step(x) * (1 - self.slope) + self.slope

    def second(self, x: Tensor) -> Tensor:
        return x * 0


@ACTIVATIONS.add
class BetaGelu(Activation):
    """β-GELU, x Φ(βx): φ'' = β·pdf(βx)·(2 − β²x²), a bump of height ~β and width ~1/β. ReLU as β → ∞.

    Computed as GELU(βx)/β (exact erf form): the native kernel has native derivatives.
    """

    name = "beta_gelu"
    label = "β-GELU"
    parameters = {"beta": Parameter(symbol="β")}  # noqa: RUF012
    beta: float

    def value(self, x: Tensor) -> Tensor:
        from torch.nn.functional import gelu

        return gelu(x) if self.beta == 1 else gelu(self.beta * x) / self.beta

    def first(self, x: Tensor) -> Tensor:
        import torch

        z = _times(self.beta, x)
        slope: Tensor = torch.ops.aten.gelu_backward(torch.ones_like(z), z)  # one pass over memory: Φ(z) + z·pdf(z)
        return slope

    def second(self, x: Tensor) -> Tensor:
        z = _times(self.beta, x)
        return _times(self.beta, _pdf(z)) * (2 - z * z)

    def third(self, x: Tensor) -> Tensor:
        z = _times(self.beta, x)
        return _times(self.beta**2, _pdf(z)) * z * (z * z - 4)


@ACTIVATIONS.add
class Gelu(BetaGelu):
    """GELU, x Φ(x): β-GELU at β = 1."""

    name = "gelu"
    label = "GELU"
    parameters = {}  # noqa: RUF012
    beta = 1


@ACTIVATIONS.add
class AugmentedRelu(BetaGelu):
    """ReLU with the second derivative of β-GELU: adds a synthetic NME, keeps ReLU's value and slope."""

    name = "augmented_relu"
    label = "augmented ReLU"
    parameters = {"beta": Parameter(default=1, symbol="β")}  # noqa: RUF012
    genuine = False

    def value(self, x: Tensor) -> Tensor:
        return x.relu()

    def first(self, x: Tensor) -> Tensor:
        return _step(x)

    def diminished(self) -> Activation:
        return Relu()


@ACTIVATIONS.add
class DiminishedGelu(Gelu):
    """GELU with second derivative 0: removes the activation's NME, keeps GELU's value and slope."""

    name = "diminished_gelu"
    label = "diminished GELU"
    genuine = False

    def second(self, x: Tensor) -> Tensor:
        return x * 0

    def third(self, x: Tensor) -> Tensor:
        import torch

        return torch.zeros_like(x)

    def diminished(self) -> Activation:
        return self


class Diminished(Activation):
    """The value and the first derivative of a given activation, with second derivative 0.

    Not in the registry: used for comparison with a network, never for training.
    """

    genuine = False

    def __init__(self, original: Activation):
        super().__init__()
        self.name = f"diminished {original}"
        self.original = original

    def value(self, x: Tensor) -> Tensor:
        return self.original.value(x)

    def first(self, x: Tensor) -> Tensor:
        return self.original.first(x)

    def second(self, x: Tensor) -> Tensor:
        return x * 0
