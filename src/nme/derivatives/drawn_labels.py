"""Batches with labels drawn from the model, for the trace of the Gauss-Newton matrix (docs/theory.md, §6.8)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, distributed

from nme.derivatives import vectors
from nme.derivatives.batch import Batch, MicroBatches
from nme.derivatives.combining import AnyBatch
from nme.derivatives.cross_entropy import draw_labels
from nme.derivatives.loss import Loss
from nme.derivatives.products import Gradient
from nme.derivatives.softmax_loss import CrossEntropy
from nme.errors import NmeError


def known_draws(batch: AnyBatch, k: int, noise: torch.Generator) -> Tensor | None:
    """Uniform numbers (k, size) for a batch of one label per example; None: how many it takes is not known yet."""
    if isinstance(batch, MicroBatches) or batch.evaluation is not None:
        return None
    return vectors.uniform((k, batch.size), noise)


def later_draws(batch: AnyBatch, clean: Gradient, k: int, noise: torch.Generator) -> Iterable[Tensor]:
    """Uniform numbers (k, labels of this process), this process's of those of the whole batch."""
    own = sum(_labels(z) for z in _outputs(clean))
    if isinstance(batch, Batch) or batch.group is None:
        return vectors.uniform((k, own), noise)
    counts = [torch.zeros(1, dtype=torch.int64, device=clean.loss.device) for _ in range(batch.group.size())]
    distributed.all_gather(counts, torch.full_like(counts[0], own), group=batch.group)
    sizes = [int(count) for count in counts]
    return vectors.uniform((k, sum(sizes)), noise).split_with_sizes(sizes, 1)[batch.group.rank()]


def drawn(batch: AnyBatch, clean: Gradient, numbers: Tensor) -> AnyBatch:
    """The batch with labels ŷ_i ~ Cat(softmax z_i) in place of its targets.

    Args:
        batch: with cross-entropy as its loss.
        clean: its clean pass.
        numbers: uniform numbers, one per label.

    Raises:
        NmeError: labels cannot be drawn for this loss.
    """
    if isinstance(batch, Batch) and batch.evaluation is None:
        assert isinstance(clean.logits, Tensor)
        return batch._replace(labels=draw_labels(clean.logits, batch.own(numbers)))
    outputs, parts = _outputs(clean), []
    pieces = numbers.split_with_sizes([_labels(z) for z in outputs])
    for part, z, target, own in zip(batch.parts(), outputs, clean.targets, pieces, strict=True):
        labels = _drawn_like(z, own)
        ignored = _ignore_index(part.loss)
        if ignored is not None and not target.is_floating_point() and target.shape != z.shape:
            labels = torch.where(target.reshape(labels.shape) == ignored, ignored, labels)
        loss = CrossEntropy(ignore_index=ignored, reduction=part.loss.reduction)
        parts.append(part._replace(labels=labels, loss=loss))
    return parts[0] if isinstance(batch, Batch) else batch._replace(items=parts)


def _outputs(clean: Gradient) -> list[Tensor]:
    return clean.logits if isinstance(clean.logits, list) else [clean.logits]


def _labels(z: Tensor) -> int:
    return z.numel() // z.shape[1] if z.dim() > 1 else 1


def _drawn_like(z: Tensor, numbers: Tensor) -> Tensor:
    """Labels (B, d...) for outputs (B, C, d...)."""
    if z.dim() == 1:
        return draw_labels(z[None], numbers)[0]
    last = z.movedim(1, -1)
    return draw_labels(last.reshape(-1, z.shape[1]), numbers).view(last.shape[:-1])


def _ignore_index(loss: Loss | Any) -> int | None:
    if not isinstance(loss, CrossEntropy) or loss.class_weights is not None:
        what = "class weights" if isinstance(loss, CrossEntropy) else f"the loss {type(loss).__name__}"
        raise NmeError(f"labels cannot be drawn for {what} (use GaussNewtonTraceByProbes, which takes any loss)")
    return loss.ignore_index
