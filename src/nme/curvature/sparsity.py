"""How many second derivatives of the activations are not zero: where the diagonal blocks of the NME can act."""

import torch
from torch import Tensor, nn

from nme.activations import Activation
from nme.derivatives.activate import Activate
from nme.derivatives.running_statistics import frozen_statistics

THRESHOLD = 1e-3  # of the largest |φ''| there is


def largest_second_derivative(activation: Activation) -> float:
    """The maximum over x of |φ''(x)|, on a grid around 0 that contains 0; 0 for a piecewise linear activation."""
    return float(activation.second(torch.linspace(-8, 8, 4001, dtype=torch.float64)).abs().max())


@torch.no_grad()
def nonzero_second_derivatives(model: nn.Module, inputs: Tensor) -> dict[str, tuple[int, int]]:
    """Counts of |φ''(pre-activation)| > 1e-3·max |φ''| over all examples and hidden units: Figure 6.

    See docs/theory.md, §7.9.

    Args:
        model: its mode decides batch norm's statistics; nothing of it is changed.
        inputs: (B, ...), one batch.

    Returns:
        For each activation layer by name: how many are not zero, and of how many.
    """
    counts: dict[str, tuple[int, int]] = {}

    def count(name: str, layer: Activate, before: Tensor) -> None:
        largest = largest_second_derivative(layer.activation)
        nonzero = (layer.activation.second(before).abs() > THRESHOLD * largest).sum().item() if largest else 0
        counts[name] = (int(nonzero), before.numel())

    layers = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, Activate)]
    hooks = [
        layer.register_forward_pre_hook(lambda layer, args, name=name: count(name, layer, args[0]))
        for name, layer in layers
    ]
    try:
        with frozen_statistics(model):
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return counts
