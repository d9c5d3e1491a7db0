"""Normalisation in elementary operations, for third derivatives, where PyTorch's own are wrong, and for compilers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeGuard

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class ElementaryLayerNorm(TorchFunctionMode):
    """Inside, layer norm is computed with elementary operations: PyTorch's third derivatives are wrong, by 95 %."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, arguments: tuple[Any, ...] = (), options: Any = None
    ) -> Any:
        if function in (functional.layer_norm, torch.layer_norm):
            return _layer_norm(*arguments, **(options or {}))
        return function(*arguments, **(options or {}))


def _layer_norm(
    x: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Tensor:
    normal, _, _ = _standardised(x, list(range(-len(normalized_shape), 0)), eps)
    normal = normal if weight is None else normal * weight
    return normal if bias is None else normal + bias


@contextmanager
def elementary_batch_norm(model: nn.Module | None) -> Iterator[None]:
    """Inside, batch norm in train mode computes with elementary operations: PyTorch's third derivatives are wrong.

    Running statistics are not updated. Model None: nothing changes.
    """
    layers = [] if model is None else [m for m in model.modules() if _in_train_mode(m) and _is_plain(m)]
    try:
        for layer in layers:
            layer.forward = partial(_normalised, layer)  # type: ignore[method-assign]  # deleted below
        yield
    finally:
        for layer in layers:
            del layer.forward


def has_wrong_third_derivative(model: nn.Module) -> bool:
    """True if a batch norm of PyTorch's own is in train mode, outside of ``elementary_batch_norm``."""
    stock = (m for m in model.modules() if type(m).__module__ == "torch.nn.modules.batchnorm")
    return any(_in_train_mode(m) and "forward" not in vars(m) for m in stock)


def _in_train_mode(layer: nn.Module) -> TypeGuard[nn.modules.batchnorm._BatchNorm]:
    return isinstance(layer, nn.modules.batchnorm._BatchNorm) and (layer.training or layer.running_mean is None)


def _is_plain(layer: nn.Module) -> bool:
    own = type(layer).__module__ in ("torch.nn.modules.batchnorm", "nme.derivatives.batch_norm")
    return own and "forward" not in vars(layer)


def _normalised(layer: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    y, _, _ = batch_norm(x, layer.weight, layer.bias, layer.eps)
    return y


def batch_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Batch norm of x (B, C, ...) by its own mean and variance, with derivatives of every order and mode.

    Args:
        x: in the precision to compute in.
        weight: (C,); None: 1.
        bias: (C,); None: 0.
        eps: ε.

    Returns:
        y, and mean and variance, which have size 1 in all dimensions but C.
    """
    normal, mean, variance = _standardised(x, [d for d in range(x.dim()) if d != 1], eps)
    column = (-1, *(1 for _ in x.shape[2:]))
    normal = normal if weight is None else normal * weight.view(column)
    return normal if bias is None else normal + bias.view(column), mean, variance


def _standardised(x: Tensor, dimensions: list[int], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """(x − mean)/√(variance + ε), and mean and variance over some dimensions, which are kept with size 1."""
    mean = x.mean(dimensions, keepdim=True)
    centred = x - mean
    variance = centred.square().mean(dimensions, keepdim=True)
    return centred * (variance + eps).rsqrt(), mean, variance
