"""Normalisation in elementary operations, where third derivatives are taken: PyTorch's own are wrong there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode


class ElementaryLayerNorm(TorchFunctionMode):
    """Inside, layer norm is computed with elementary operations: PyTorch's third derivatives are wrong, by 95 %."""

    def __torch_function__(self, function, types, arguments=(), options=None):  # type: ignore[no-untyped-def]
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
    last = list(range(-len(normalized_shape), 0))
    centred = x - x.mean(last, keepdim=True)
    normal = centred * (centred.square().mean(last, keepdim=True) + eps).rsqrt()
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
            layer.forward = partial(_normalised, layer)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            del layer.forward


def has_wrong_third_derivative(model: nn.Module) -> bool:
    """True if a batch norm of PyTorch's own is in train mode, outside of ``elementary_batch_norm``."""
    stock = (m for m in model.modules() if type(m).__module__ == "torch.nn.modules.batchnorm")
    return any(_in_train_mode(m) and "forward" not in vars(m) for m in stock)


def _in_train_mode(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.batchnorm._BatchNorm) and (layer.training or layer.running_mean is None)


def _is_plain(layer: nn.Module) -> bool:
    own = type(layer).__module__ in ("torch.nn.modules.batchnorm", "nme.derivatives.batch_norm")
    return own and "forward" not in vars(layer)


def _normalised(layer: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    others, column = [d for d in range(x.dim()) if d != 1], (1, -1, *(1 for _ in x.shape[2:]))
    centred = x - x.mean(others, keepdim=True)
    normal = centred * (centred.square().mean(others, keepdim=True) + layer.eps).rsqrt()
    return normal if layer.weight is None else normal * layer.weight.view(column) + layer.bias.view(column)
