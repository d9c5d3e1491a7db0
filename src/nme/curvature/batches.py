"""Data as users have them, as batches for a model: forms, micro-batches, and what cannot be used."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from nme.errors import NmeError


class Batches:
    """Data as an iterable of batches, read in one pass each time.

    A batch is a pair (inputs, target); inputs are a tensor, or a tuple or dict of tensors, the model's arguments. With
    ``whole`` a batch is anything.

    Args:
        data: batches; a single batch may be given as a pair of tensors or arrays, or as a dict.
        micro_batch: most examples at once.
        whole: batches are passed on as they are.

    Raises:
        NmeError: data that can be iterated only once, a ``Dataset``, or nothing that can be iterated.
    """

    def __init__(self, data: Any, micro_batch: int | None = None, whole: bool = False):
        if isinstance(data, Iterator):
            raise NmeError("data can be iterated only once (give a list, a DataLoader, or a pair of tensors)")
        if isinstance(data, Dataset) and not isinstance(data, DataLoader):
            raise NmeError("data is a Dataset of single examples (give DataLoader(dataset, batch_size=...))")
        if isinstance(data, Mapping) or (_is_pair(data) and _is_single(*data)):
            data = [data]
        if isinstance(data, Tensor | np.ndarray | str) or not isinstance(data, Iterable):
            found = type(data).__name__
            raise NmeError(f"data is {found} (allowed: batches (inputs, target), a DataLoader, a pair of tensors)")
        self.data, self.micro_batch, self.whole = data, micro_batch, whole

    @property
    def in_memory(self) -> bool:
        """True if a second pass gives the same objects."""
        return isinstance(self.data, list | tuple)

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.data):
            if self.whole:
                yield batch
                continue
            if not _is_pair(batch):
                found = type(batch).__name__ + (f" of {len(batch)}" if isinstance(batch, Sequence) else "")
                raise NmeError(f"batch {number} is a {found} (allowed: a pair (inputs, target), or give forward=)")
            inputs, target = mapped(batch[0], _tensor), _tensor(batch[1])
            examples = len(target) if isinstance(target, Tensor) and target.dim() else _examples(inputs)
            if examples == 0:
                continue
            size = self.micro_batch
            if not size or size >= examples:
                yield inputs, target
                continue
            for at in range(0, examples, size):
                part = slice(at, at + size)
                yield mapped(inputs, itemgetter(part)), target[part]


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """The same nesting of tuples, lists and dicts with a function of each leaf."""
    if isinstance(value, Mapping):
        return {key: mapped(part, function) for key, part in value.items()}
    if isinstance(value, tuple | list):
        return tuple(mapped(part, function) for part in value)
    return function(value)


def cast(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Tensors of a nesting on the device, and those of floating point in this dtype."""

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        leaf = leaf.detach().to(device)
        leaf = leaf.clone() if leaf.is_inference() else leaf
        return leaf.to(dtype) if leaf.is_floating_point() else leaf

    return mapped(value, move)


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2


def _is_single(inputs: Any, target: Any) -> bool:
    """True if this is one batch, and not two."""
    return _is_tensor(target) and (_is_tensor(inputs) or isinstance(inputs, Mapping | tuple))


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _tensor(value: Any) -> Any:
    return torch.from_numpy(np.ascontiguousarray(value)) if isinstance(value, np.ndarray) else value


def _examples(inputs: Any) -> int:
    if isinstance(inputs, Mapping):
        inputs = tuple(inputs.values())
    if isinstance(inputs, tuple):
        return _examples(inputs[0]) if inputs else 0
    return len(inputs) if isinstance(inputs, Tensor) and inputs.dim() else 1
