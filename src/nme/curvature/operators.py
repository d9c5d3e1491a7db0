"""H, G and N as symmetric operators, alone or of one ``Curvature`` (docs/theory.md, §1.2)."""

from typing import Any

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator
from torch import Tensor, nn

from nme.curvature.curvature import Curvature, Products
from nme.errors import NmeError

__all__ = ["NME", "Curvature", "GaussNewton", "Hessian", "Operator", "Products", "layers"]


class Operator:
    """A symmetric P × P operator: ``operator @ v`` for v of shape (P,) or (P, K)."""

    symbol: str

    def __init__(self, model: nn.Module | Curvature, *arguments: Any, **options: Any):
        if isinstance(model, Curvature) and (arguments or options):
            raise NmeError("a Curvature takes no further arguments (give them to the Curvature itself)")
        self.curvature = model if isinstance(model, Curvature) else Curvature(model, *arguments, **options)
        self.shape = (self.curvature.size, self.curvature.size)
        self.dtype, self.device = self.curvature.dtype, self.curvature.device

    def __matmul__(self, vectors: Tensor) -> Tensor:
        raise NotImplementedError

    def to_scipy(self) -> LinearOperator:
        """A view for ``scipy.sparse.linalg``: eigsh and friends work; vectors go to the device and back."""

        def product(array: np.ndarray) -> np.ndarray:
            vectors = torch.as_tensor(np.ascontiguousarray(array), dtype=self.dtype)
            return (self @ vectors).cpu().numpy()

        dtype = np.float64 if self.dtype == torch.float64 else np.float32
        return LinearOperator(self.shape, matvec=product, rmatvec=product, matmat=product, dtype=dtype)


class Hessian(Operator):
    """H = ∇²L. Arguments as ``Curvature``, or a ``Curvature``. Cost: 3 F once a batch, then 6 F a vector."""

    symbol = "H"

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.curvature.hessian_product(vectors)


class GaussNewton(Operator):
    """G = (1/B) Σ Jᵀ(∇²_z ℓ)J. Arguments as ``Curvature``, or a ``Curvature``. Cost: 3 F a batch, then 4 F a vector."""

    symbol = "G"

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.curvature.gauss_newton_product(vectors)


class NME(Operator):
    """N = H − G, computed directly. Arguments as ``Curvature``, or a ``Curvature``. Cost: 3 F a batch, then 6 F."""

    symbol = "N"

    def __matmul__(self, vectors: Tensor) -> Tensor:
        return self.curvature.nme_product(vectors)


def layers(model: nn.Module) -> dict[str, list[str]]:
    """Names of the parameters of each layer (weights and biases of one module together), in the model's order."""
    found: dict[str, list[str]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found.setdefault(name.rpartition(".")[0], []).append(name)
    return found
