"""Graphs that autograd has recorded: their nodes and leaves, and what derivatives would miss."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from nme.errors import NmeError


def nodes(tensors: Iterable[Tensor]) -> list[Any]:
    """All nodes of the graphs of these tensors."""
    seen: dict[Any, None] = {}
    stack: list[Any] = [t.grad_fn for t in tensors if t.grad_fn is not None]
    while stack:
        node = stack.pop()
        if node not in seen:
            seen[node] = None
            stack.extend(following for following, _ in node.next_functions if following is not None)
    return list(seen)


def leaves(tensor: Tensor) -> list[Tensor]:
    """Tensors with a gradient that a tensor was computed from."""
    if tensor.is_leaf and tensor.requires_grad:
        return [tensor]
    return [node.variable for node in nodes([tensor]) if hasattr(node, "variable")]


def refuse_foreign_parameters(tensor: Tensor, own: Iterable[Tensor]) -> None:
    """Raise if a tensor was computed from parameters that are not among a model's own, which would get no gradient.

    Raises:
        NmeError: there is one.
    """
    known = {id(p) for p in own}
    for leaf in leaves(tensor):
        if isinstance(leaf, nn.Parameter) and id(leaf) not in known:
            raise NmeError(
                f"the loss depends on a parameter of shape {tuple(leaf.shape)} that is not one of the model's, and it"
                " would get no gradient (expected: one module with all parameters that are trained, and"
                " requires_grad_(False) for others, as a discriminator's in the generator's step)"
            )


def refuse_wrong_derivatives(tensor: Tensor, order: int) -> None:
    """Raise if PyTorch's derivatives of an operation are wrong at this order.

    Raises:
        NmeError: there is such an operation.
    """
    names = {node.name() for node in nodes([tensor])}
    if "CheckpointFunctionBackward" in names:  # autograd would pass over it, or refuse it
        raise NmeError("a reentrant checkpoint hides its parameters (expected: checkpoint(..., use_reentrant=False))")
    if order > 1 and "WeightNormInterfaceBackward0" in names:
        raise NmeError("weight_norm has wrong second derivatives in PyTorch (remove it: remove_parametrizations)")
    if order > 1 and "NativeLayerNormBackwardBackward0" in names:
        raise NmeError(
            "the model differentiates layer norm itself, and PyTorch's third derivatives of it are wrong (expected:"
            " layer norm by elementary operations)"
        )
    if order > 2 and "NativeLayerNormBackward0" in names:
        raise NmeError(
            "layer norm has wrong third derivatives in PyTorch (expected: torch.nn.functional.layer_norm in an eager"
            " model, which is replaced)"
        )


def refuse_once_differentiable(gradients: Iterable[Tensor], name: str = "model") -> None:
    """Raise if a backward pass cannot be differentiated: autograd would skip it, since no variable lies behind it.

    Args:
        gradients: with their graph.
        name: of what was differentiated.

    Raises:
        NmeError: there is one.
    """
    if any(node.name() == "torch::autograd::Error" for node in nodes(gradients)):
        raise NmeError(f"an autograd Function of the {name} is once_differentiable: it has no second derivative")


def dtypes(tensor: Tensor) -> set[torch.dtype]:
    """Those of the tensors that a tensor was computed from."""
    return {gradient.dtype for node in nodes([tensor]) for gradient in node._input_metadata}
