"""Graphs that autograd has recorded: their nodes and leaves."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


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


def dtypes(tensor: Tensor) -> set[torch.dtype]:
    """Those of the tensors that a tensor was computed from."""
    return {gradient.dtype for node in nodes([tensor]) for gradient in node._input_metadata}
