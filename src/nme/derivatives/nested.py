"""Tuples, lists and dicts of tensors, nested in each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from copy import copy
from typing import Any

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from nme.errors import NmeError


def tensors_of(value: Any) -> list[Tensor]:
    """The tensors of a nesting, of any types; nothing is built."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, PackedSequence):
        return [value.data]
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    return [tensor for part in parts for tensor in tensors_of(part)]


def mapped(value: Any, function: Callable[[Any], Any]) -> Any:
    """The same nesting, of the same types, with a function of each leaf.

    Raises:
        NmeError: a dict of another type that cannot be copied.
    """
    if isinstance(value, PackedSequence):  # lengths stay on the CPU
        order = (i if i is None else function(i) for i in (value.sorted_indices, value.unsorted_indices))
        return PackedSequence(function(value.data), value.batch_sizes, *order)
    if isinstance(value, Mapping):
        return _like(value, {key: mapped(part, function) for key, part in value.items()})
    if isinstance(value, tuple | list):
        parts = [mapped(part, function) for part in value]
        make = getattr(type(value), "_make", type(value))  # of a named tuple
        return make(parts)
    return function(value)


def _like(value: Mapping[Any, Any], parts: dict[Any, Any]) -> Mapping[Any, Any]:
    if type(value) is dict or not isinstance(value, MutableMapping):
        return parts
    try:
        found = copy(value)
        for key, part in parts.items():
            found[key] = part
    except Exception as error:
        raise NmeError(f"a {type(value).__name__} cannot be copied (allowed: a dict): {error}") from error
    return found
