"""Curvature: the Hessian H, the Gauss-Newton G and the nonlinear modeling error N, and what is estimated of them.

Formulas: docs/theory.md, §1 and docs/theory.md, §7.
"""

from nme.curvature.blocks import nme_block_norms
from nme.curvature.estimators import (
    Estimate,
    Probes,
    diagonal,
    frobenius_norm,
    frobenius_norms,
    hutch_plus_plus,
    trace,
    traces,
)
from nme.curvature.lanczos_runs import (
    Eigenpairs,
    Lanczos,
    SpectralDensity,
    extreme_eigenpairs,
    lanczos,
    spectral_density,
)
from nme.curvature.operators import NME, Curvature, GaussNewton, Hessian, Products, layers
from nme.curvature.recorder import CurvatureRecorder
from nme.curvature.sparsity import nonzero_second_derivatives
from nme.derivatives.losses import AnyLoss, BinaryCrossEntropy, CrossEntropy, Loss, SquaredError, loss_of

__all__ = [
    "NME",
    "AnyLoss",
    "BinaryCrossEntropy",
    "CrossEntropy",
    "Curvature",
    "CurvatureRecorder",
    "Eigenpairs",
    "Estimate",
    "GaussNewton",
    "Hessian",
    "Lanczos",
    "Loss",
    "Probes",
    "Products",
    "SpectralDensity",
    "SquaredError",
    "diagonal",
    "extreme_eigenpairs",
    "frobenius_norm",
    "frobenius_norms",
    "hutch_plus_plus",
    "lanczos",
    "layers",
    "loss_of",
    "nme_block_norms",
    "nonzero_second_derivatives",
    "spectral_density",
    "trace",
    "traces",
]
