"""The form uᵀHu of any model by double backward, differentiable once more: for what Taylor arithmetic has no rule."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nme.derivatives.attention import plain_attention
from nme.derivatives.batch import Batch
from nme.derivatives.elementary import ElementaryLayerNorm, elementary_batch_norm
from nme.derivatives.graphs import refuse_once_differentiable
from nme.derivatives.losses import Loss
from nme.derivatives.running_statistics import frozen_statistics
from nme.derivatives.single_pass import evaluated, loss_value, pairing


def quadratic_form_by_double_backward(
    model: nn.Module, batch: Batch, parameters: list[nn.Parameter], vector: list[Tensor], loss: Loss | None
) -> Tensor:
    """uᵀHu of the batch's loss, a scalar with its graph. Cost: 9 F; its gradient 10 F more (docs/theory.md, §2.6).

    Args:
        model: in any mode; running statistics are not touched.
        batch: inputs and labels, in one part.
        parameters: θ.
        vector: u, one tensor per parameter.
        loss: of output and labels; None: the batch's.
    """
    with frozen_statistics(model), elementary_batch_norm(model), plain_attention(), ElementaryLayerNorm():
        z, target = evaluated(model, batch)
        value = loss_value(batch, loss or batch.loss, z, target)
        gradient = torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True)
        if batch.evaluation is not None and batch.evaluation.inspect:
            refuse_once_differentiable(gradient)
        pairs = [(g, u) for g, u in zip(gradient, vector, strict=True) if g.requires_grad]
        if not pairs:
            return torch.zeros_like(value)
        paired = pairing([g for g, _ in pairs], [u for _, u in pairs])
        product = torch.autograd.grad(paired, parameters, create_graph=True, materialize_grads=True)
    return torch.stack([(h * u).sum() for h, u in zip(product, vector, strict=True)]).sum()
