"""Floating point operations of a training step: counted on what runs, and of the best formulation known.

Only products are counted (matrix products and convolutions, two operations a multiplication): activations, batch norm
and the optimizer are not.
"""

import re
from collections.abc import Callable
from contextlib import ExitStack

from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

# Names of operators that multiply matrices, should PyTorch use one that its counter has no formula for.
PRODUCT = re.compile(r"conv|mm(?!a)|mv|matmul|linear|dot|einsum|bilinear|attention")


class _NoGaps(TorchDispatchMode):
    """Raises at a product that PyTorch's counter would take for free."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        packet = func._overloadpacket
        if packet not in flop_registry and PRODUCT.search(packet.__name__):
            raise NotImplementedError(f"FlopCounterMode has no formula for {func}")
        return func(*args, **(kwargs or {}))


def counted(run: Callable[[], object]) -> int:
    """Operations of a call, in all its forward, backward and forward-mode passes.

    Raises:
        NotImplementedError: an operator that multiplies has no formula.
    """
    with FlopCounterMode(display=False) as counter, _NoGaps():
        run()
    return counter.get_total_flops()


def forward_operations(model: nn.Module, inputs: Tensor) -> tuple[int, int]:
    """Operations F of the forward pass, from the shapes of the layers; and those of layers on the input itself, F₁."""
    total, first = 0, 0

    def add(layer, arguments, output):
        nonlocal total, first
        operations = 2 * output.numel() * layer.weight[0].numel()
        total += operations
        first += 0 if arguments[0].requires_grad else operations

    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.modules.conv._ConvNd)]
    with ExitStack() as hooks:
        for layer in layers:
            hooks.callback(layer.register_forward_hook(add).remove)
        model(inputs)
    return total, first


def limits(forward: int, first: int) -> dict[str, int]:
    """Operations of one step of each method (k = 1) by the best formulation known, that of g and ‖g‖ included.

    A layer z = W h is one product forward (f), one back to its input (h̄ = Wᵀ z̄) and one back to its weights
    (W̄ = z̄ hᵀ), f operations each; a layer on the input has no use for the second. Dots are derivatives along a
    vector u of parameters, and U is u's part in the layer; inputs have ẋ = 0. A term in brackets is of layers behind
    the first one only.

    - g:                       z = W h | [Wᵀ z̄] | z̄ hᵀ.                                                   3 F − F₁
    - z again with ż:          ż = U h + [W ḣ], beside a z that is there.                                 2 F − F₁
    - Hv, beside g's graph:    ż | [Wᵀ z̄̇ + Uᵀ z̄] | z̄̇ hᵀ + [z̄ ḣᵀ].                                        6 F − 4 F₁
    - uᵀGu, z kept:            ż, then back: [Wᵀ z̄ + Uᵀ ż̄ + Wᵀ ż̄] | z̄ hᵀ + [ż̄ ḣᵀ].                        7 F − 5 F₁
    - uᵀHu, with g:            the second derivative of g's computation along u. Forward z, ż and z̈ = [W ḧ + 2 U ḣ],
      then back [Wᵀ z̄], [Wᵀ z̄̇ + Uᵀ z̄], [Wᵀ z̄̈ + 2 Uᵀ z̄̇], and z̄ hᵀ | z̄̈ hᵀ + [2 z̄̇ ḣᵀ + z̄ ḧᵀ].              14 F − 10 F₁

    The penalty without NME takes g, ż and one more pass back through what g left, 2 F − F₁. Drawn labels take g, the
    scores back through the same pass, and a Hv.

    Args:
        forward: F.
        first: F₁, the part of the layers that the input enters.
    """

    def operations(of_forward: int, of_first: int) -> int:
        return of_forward * forward - of_first * first

    return {
        "sgd": operations(3, 1),
        "weight_noise": operations(3, 1),
        "sam": operations(6, 2),
        "usam": operations(6, 2),
        "grad_norm_gn": operations(7, 3),
        "grad_norm": operations(9, 5),
        "gauss_newton_trace_probe": operations(10, 6),
        "gauss_newton_trace": operations(11, 6),
        "hessian_trace": operations(14, 10),
    }
