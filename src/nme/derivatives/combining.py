"""Sums and means over the parts of a batch, and over the processes that share it (docs/theory.md, §2.1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, distributed

from nme.derivatives.batch import Batch, MicroBatches
from nme.derivatives.running_statistics import held_buffers
from nme.errors import NmeError

AnyBatch = Batch | MicroBatches


def weighted_mean(batch: MicroBatches, sums: list[Tensor], weights: list[float], terms: int) -> list[Tensor]:
    """Means of weighted sums, ``terms`` of them, then of running statistics, each part counting once; the weight."""
    # In float64 and apart from the sums, which may be in half precision.
    counts = torch.tensor([sum(weights), len(weights)], dtype=torch.float64, device=sums[0].device)
    sums = _summed(batch, sums)
    if batch.group is not None:
        distributed.all_reduce(counts, group=batch.group)
    total, parts = counts.tolist()
    if batch.items[0].loss.reduction == "sum":
        total = 1.0
    if not total:
        raise NmeError("no label of the batch counts")
    return [*(s / total for s in sums[:terms]), *(s / parts for s in sums[terms:]), counts[0]]


def anywhere(batch: MicroBatches, flags: list[bool], device: torch.device) -> list[bool]:
    """Flags that are set in any process that shares the batch."""
    if batch.group is None:
        return flags
    found = torch.tensor(flags, dtype=torch.float32, device=device)
    distributed.all_reduce(found, group=batch.group)
    return [bool(flag) for flag in found.tolist()]


def _summed(batch: MicroBatches, sums: list[Tensor]) -> list[Tensor]:
    """Sums over all processes; the same bits in each."""
    if batch.group is None:
        return sums
    return _all_reduced(sums, batch.group)


def mean_over_parts(
    batch: AnyBatch, compute: Callable[[Batch], list[Tensor]], like: list[Tensor], shares: list[float] | None = None
) -> list[Tensor]:
    """Mean of ``compute`` over the parts of the whole batch; the same in every process.

    Args:
        batch: in any parts.
        compute: of one part, one tensor per parameter.
        like: tensors of the parameters' shapes, for a process none of whose labels count.
        shares: ``Gradient.shares``, of ``MicroBatches``.
    """
    sums: list[Tensor] | None = None
    for number, part in enumerate(batch.parts()):
        if shares is not None and not shares[number]:
            continue
        with held_buffers(None if part.evaluation is None else part.evaluation.facts):
            found = compute(part)
        if shares is not None:
            found = list(torch._foreach_mul(found, shares[number]))
        # Not in place: autograd may return the same tensor for two parameters.
        sums = found if sums is None else list(torch._foreach_add(sums, found))
    if isinstance(batch, MicroBatches):
        return _summed(batch, [torch.zeros_like(t) for t in like] if sums is None else sums)
    assert sums is not None
    return mean(batch, sums)


def mean(batch: Batch, sums: list[Tensor]) -> list[Tensor]:
    """Means over parts of equal size, from this process's sums; the same in every process."""
    if batch.split is None:
        return sums
    means = list(torch._foreach_div(sums, batch.split.parts))
    return _all_reduced(means, None) if distributed.is_initialized() else means


def _all_reduced(sums: list[Tensor], group: distributed.ProcessGroup | None) -> list[Tensor]:
    kinds = {s.dtype for s in sums}
    found = dict[int, Tensor]()
    for kind in sorted(kinds, key=str):
        own = [i for i, s in enumerate(sums) if s.dtype == kind]
        flat = torch.cat([sums[i].reshape(-1) for i in own])
        distributed.all_reduce(flat, group=group)
        found |= dict(zip(own, flat.split_with_sizes([sums[i].numel() for i in own]), strict=True))
    # Copied into the memory order of its parameter; otherwise later steps are slower.
    return [torch.empty_like(s).copy_(found[i].view_as(s)) for i, s in enumerate(sums)]
