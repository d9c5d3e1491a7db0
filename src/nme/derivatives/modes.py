"""What the layers with derivatives of their own share: whether to use them, and which of them a pass wants."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Of the process: PyTorch runs the backward pass of a GPU in another thread.
_twice = False
_cotangents_only = False


def left_to_others() -> bool:
    """Whether a compiler or a transform of ``torch.func`` differentiates, by rules that it knows."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


@contextmanager
def differentiated_twice(wanted: bool = True) -> Iterator[None]:
    """Inside, if it is wanted, layers are computed so that their backward pass is fast to differentiate in turn.

    For one derivative PyTorch's own convolutions do the same products without the overhead of Functions in Python.
    """
    global _twice
    before, _twice = _twice, wanted
    try:
        yield
    finally:
        _twice = before


def twice() -> bool:
    """Whether this is inside of ``differentiated_twice``."""
    return _twice


@contextmanager
def cotangents_only() -> Iterator[None]:
    """Inside, differentiating a backward pass gives derivatives in what comes back from above, and no others.

    Those in inputs and parameters, which autograd would throw away, are not computed by ``nme.models``:
    ``torch.autograd.grad`` does not tell a Function in Python what it wants.
    """
    global _cotangents_only
    before, _cotangents_only = _cotangents_only, True
    try:
        yield
    finally:
        _cotangents_only = before


def wanted(needed: tuple[bool, ...]) -> tuple[bool, ...]:
    """``ctx.needs_input_grad`` of a backward pass, whose first input is what comes back from above."""
    return (needed[0], *(False for _ in needed[1:])) if _cotangents_only else needed
