"""Training methods: what takes the gradient's place in an update (docs/theory.md, §6; docs/methods.md).

    penalty = GradientPenalty(strength=0.1)
    for batch in loader:
        optimizer.zero_grad()
        step = penalty.backward(model, loss, batch)
        optimizer.step()

Importing this package does not import torch: a machine without it can check a configuration.
"""

from nme.methods.base import METHODS, Method
from nme.methods.gradient_penalties import GradientPenalty, GradientPenaltyWithoutNme, Sgd
from nme.methods.perturbations import Sam, UnnormalisedSam, WeightNoise
from nme.methods.result import Update
from nme.methods.traces import GaussNewtonTrace, GaussNewtonTraceByProbes, HessianTrace

__all__ = [
    "METHODS",
    "GaussNewtonTrace",
    "GaussNewtonTraceByProbes",
    "GradientPenalty",
    "GradientPenaltyWithoutNme",
    "HessianTrace",
    "Method",
    "Sam",
    "Sgd",
    "UnnormalisedSam",
    "Update",
    "WeightNoise",
]
