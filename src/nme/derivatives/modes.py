"""Modes of the layers with custom derivatives: when to use them, and which derivatives a pass needs."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

# Global to the process: PyTorch runs the backward pass on a GPU in a different thread.
_second_derivatives = False
_cotangents_only = False


def custom_derivatives_disabled() -> bool:
    """True if a compiler or a transform of ``torch.func`` differentiates by its own rules."""
    return torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()


@contextmanager
def differentiated_twice(enabled: bool = True) -> Iterator[None]:
    """Inside, compute layers with a backward pass that is fast to differentiate again.

    For a single derivative, PyTorch's own convolutions do the same products without the overhead of Python Functions.
    """
    global _second_derivatives
    before, _second_derivatives = _second_derivatives, enabled
    try:
        yield
    finally:
        _second_derivatives = before


def expects_second_derivatives() -> bool:
    """True inside ``differentiated_twice``."""
    return _second_derivatives


@contextmanager
def cotangents_only() -> Iterator[None]:
    """Inside, differentiating a backward pass gives only derivatives in the incoming cotangent.

    The layers then skip derivatives in inputs and parameters, which autograd would discard: ``torch.autograd.grad``
    does not tell a Python Function which derivatives are needed.
    """
    global _cotangents_only
    before, _cotangents_only = _cotangents_only, True
    try:
        yield
    finally:
        _cotangents_only = before


def needed_gradients(needed: tuple[bool, ...]) -> tuple[bool, ...]:
    """Effective ``ctx.needs_input_grad`` of a backward pass whose first input is the incoming cotangent."""
    return (needed[0], *(False for _ in needed[1:])) if _cotangents_only else needed
