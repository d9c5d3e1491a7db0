"""Curvature: the Hessian H, the Gauss-Newton G and the nonlinear modeling error N, and what is estimated of them.

Formulas: docs/theory.md, §1 and docs/theory.md, §7.
"""

from nme.curvature.estimators import (
    Eigenpairs,
    Estimate,
    Lanczos,
    Probes,
    SpectralDensity,
    diagonal,
    extreme_eigenpairs,
    frobenius_norm,
    frobenius_norms,
    hutch_plus_plus,
    lanczos,
    nme_block_norms,
    spectral_density,
    trace,
    traces,
)
from nme.curvature.operators import NME, Curvature, GaussNewton, Hessian, Products, layers
from nme.curvature.sparsity import nonzero_second_derivatives

__all__ = [
    "NME",
    "Curvature",
    "Eigenpairs",
    "Estimate",
    "GaussNewton",
    "Hessian",
    "Lanczos",
    "Probes",
    "Products",
    "SpectralDensity",
    "diagonal",
    "extreme_eigenpairs",
    "frobenius_norm",
    "frobenius_norms",
    "hutch_plus_plus",
    "lanczos",
    "layers",
    "nme_block_norms",
    "nonzero_second_derivatives",
    "spectral_density",
    "trace",
    "traces",
]
