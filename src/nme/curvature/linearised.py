"""One batch of a loss, linearised: the graphs that products come from, and the products (docs/theory.md, §2.4).

With the residual r = ∂ℓ/∂z as a variable of its own, w = Jᵀr/B is ∇_θ⟨r, f(θ)⟩/B. One backward pass through w's graph
along v gives two derivatives at once:

    ∂⟨w, v⟩/∂θ = Nv            r held constant
    ∂⟨w, v⟩/∂r = Jv/B          and then Gv = Jᵀ(∇²_z ℓ · Jv)/B, by a plain backward pass
    Hv = Gv + Nv
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import torch
from torch import Tensor

from nme.derivatives.losses import Loss
from nme.derivatives.modes import cotangents_only
from nme.derivatives.single_pass import pairing
from nme.errors import NmeError

# Context of a backward pass: nothing, or the model's surroundings where a pass computes parts of the model again.
Passing = Callable[[], AbstractContextManager[object]]


class Linearised:
    """One batch: the output's graph and that of w = Jᵀr/d, from which all products come.

    Args:
        parameters: θ, with gradients on.
        loss: L = S/d.
        output: z with its graph.
        target: of the batch.
        divisor: d.
        passing: context of backward passes.
    """

    def __init__(
        self,
        parameters: list[Tensor],
        loss: Loss,
        output: Tensor,
        target: Tensor,
        divisor: float | Tensor,
        passing: Passing = nullcontext,
    ):
        self.parameters, self.loss, self.z, self.target, self.divisor = parameters, loss, output, target, divisor
        self.passing = passing
        self.curved = loss.curved(output.detach(), target, divisor)
        # Not divided yet, so that Jv comes by a multiplication, as the results that are kept were computed.
        self.r = loss.summed_residual(output.detach(), target).detach().requires_grad_()

    @cached_property
    def w(self) -> list[Tensor]:
        """Jᵀr/d with r a variable of its own; its value is the gradient."""
        return self._pulled_back(self.r)

    @cached_property
    def attached(self) -> list[Tensor]:
        """Jᵀr/d with r a function of the parameters."""
        return self._pulled_back(self.loss.summed_residual(self.z, self.target))

    def uncancelled(self, other_output: bool = False) -> list[Tensor]:
        """Jᵀ(s∘r)/d with random signs s: the size of what the gradient adds up, also where the gradient vanishes.

        Args:
            other_output: with |r| + |∇²_z ℓ · z| in place of r, for a residual that vanishes: what z adds up, where it
                is rounded differently.
        """
        generator = torch.Generator("cpu").manual_seed(0)
        signs = 2 * torch.randint(2, self.r.shape, generator=generator, device="cpu").to(self.r) - 1
        size = self.r.detach().abs()
        if other_output:
            size = size + self.curved(self._finite_output).detach().abs()
        return self._gradients(pairing([self.z], [signs * size / self.divisor]), self.parameters)

    def output_form(self) -> Tensor:
        """⟨z, ∇²_z ℓ · z⟩/d, a scalar in float64: relative errors ε of z change the loss by half of ε² times this."""
        return self.gauss_newton_form(self._finite_output)

    @property
    def _finite_output(self) -> Tensor:
        """The output z, with 0 for entries that are masked by infinity."""
        z = self.z.detach()
        return z.masked_fill(z.isinf(), 0)

    def _pulled_back(self, r: Tensor) -> list[Tensor]:
        return self._gradients(pairing([self.z], [r / self.divisor]), self.parameters, create_graph=True)

    def _gradients(self, scalar: Tensor, inputs: list[Tensor], create_graph: bool = False) -> list[Tensor]:
        if not scalar.requires_grad:
            return [torch.zeros_like(x) for x in inputs]
        with self.passing():
            try:
                found = torch.autograd.grad(
                    scalar, inputs, retain_graph=True, create_graph=create_graph, materialize_grads=True
                )
                if any(gradient.layout is not torch.strided for gradient in found):
                    raise NmeError("a parameter has a sparse gradient (give the embedding sparse=False)")
                return list(found)
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, NotImplementedError) as error:
                problem = str(error).strip().splitlines()[0]
                raise NmeError(f"an operation of the model or loss has no second derivative: {problem}") from error

    def _through(self, w: list[Tensor], inputs: list[Tensor], vector: list[Tensor]) -> list[Tensor]:
        """The derivative of ⟨w, vector⟩ in the inputs."""
        pairs = [(a, v) for a, v in zip(w, vector, strict=True) if a.requires_grad]
        if not pairs:
            return [torch.zeros_like(x) for x in inputs]
        return self._gradients(pairing([a for a, _ in pairs], [v for _, v in pairs]), inputs)

    def nme_and_derivative(self, vector: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        """Nv, and Jv in the shape of the output, by one backward pass through w's graph."""
        *nv, jv = self._through(self.w, [*self.parameters, self.r], vector)
        return nv, jv * self.divisor

    def derivative(self, vector: list[Tensor]) -> Tensor:
        """Jv in the shape of the output."""
        with cotangents_only():
            return self._through(self.w, [self.r], vector)[0] * self.divisor

    def gauss_newton(self, jv: Tensor) -> list[Tensor]:
        """Gv from Jv."""
        pulled = self.curved(jv) / self.divisor
        return self._gradients(pairing([self.z], [pulled.detach()]), self.parameters)

    def gauss_newton_form(self, ju: Tensor) -> Tensor:
        """uᵀGu from Ju, a scalar in float64."""
        curved = ju * self.curved(ju)
        return curved.double().sum() / self.divisor

    def hessian(self, vector: list[Tensor]) -> list[Tensor]:
        """Hv: the residual stays attached to the parameters."""
        return self._through(self.attached, self.parameters, vector)
