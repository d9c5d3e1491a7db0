"""The form uᵀHu of any model by double backward, differentiable once more: for what Taylor arithmetic has no rule."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from nme.derivatives.batch import Batch
from nme.derivatives.cross_entropy import cross_entropy
from nme.derivatives.losses import Loss
from nme.derivatives.products import logits_of, pairing
from nme.derivatives.running_statistics import frozen_statistics


def quadratic_form_by_double_backward(
    model: nn.Module, batch: Batch, parameters: list[nn.Parameter], vector: list[Tensor], loss: Loss | None
) -> Tensor:
    """uᵀHu of the batch's loss, a scalar with its graph. Cost: 9 F; its gradient 10 F more (docs/theory.md, §2.6).

    Args:
        model: in any mode; running statistics are not touched.
        batch: inputs and labels, in one part.
        parameters: θ.
        vector: u, one tensor per parameter.
        loss: of output and labels; None: cross-entropy, mean.
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    with frozen_statistics(model), _elementary_batch_norm(model), sdpa_kernel(SDPBackend.MATH), _ElementaryLayerNorm():
        z = logits_of(model, batch.inputs)
        value = cross_entropy(z, batch.labels) if loss is None else loss.value(z, batch.labels)
        gradient = torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True)
        pairs = [(g, u) for g, u in zip(gradient, vector, strict=True) if g.requires_grad]
        if not pairs:
            return torch.zeros_like(value)
        paired = pairing([g for g, _ in pairs], [u for _, u in pairs])
        product = torch.autograd.grad(paired, parameters, create_graph=True, materialize_grads=True)
    return torch.stack([(h * u).sum() for h, u in zip(product, vector, strict=True)]).sum()


class _ElementaryLayerNorm(TorchFunctionMode):
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
def _elementary_batch_norm(model: nn.Module) -> Iterator[None]:
    """Inside, batch norm in train mode computes with elementary operations: PyTorch's third derivatives are wrong."""
    kinds = (nn.modules.batchnorm._BatchNorm,)
    layers = [m for m in model.modules() if isinstance(m, kinds) and (m.training or m.running_mean is None)]
    layers = [layer for layer in layers if "forward" not in vars(layer) and _is_plain(layer)]
    try:
        for layer in layers:
            layer.forward = partial(_normalised, layer)  # type: ignore[method-assign]
        yield
    finally:
        for layer in layers:
            del layer.forward


def _is_plain(layer: nn.Module) -> bool:
    return type(layer).__module__ in ("torch.nn.modules.batchnorm", "nme.derivatives.batch_norm")


def _normalised(layer: nn.modules.batchnorm._BatchNorm, x: Tensor) -> Tensor:
    others, column = [d for d in range(x.dim()) if d != 1], (1, -1, *(1 for _ in x.shape[2:]))
    centred = x - x.mean(others, keepdim=True)
    normal = centred * (centred.square().mean(others, keepdim=True) + layer.eps).rsqrt()
    return normal if layer.weight is None else normal * layer.weight.view(column) + layer.bias.view(column)
