"""State of modules that a forward pass or a loss writes: attributes, lists and dicts, buffers; restored afterwards."""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from operator import is_
from typing import Any

from torch import nn

# Hooks and the like, which every module has. A pass may write all others, and the three dicts of tensors and modules.
_OF_ALL_MODULES = frozenset(vars(nn.Module())) - {"_buffers", "_parameters", "_modules"}


@contextmanager
def restored(modules: list[nn.Module]) -> Iterator[None]:
    """Outside, modules have their own attributes again, and attributes that are lists, dicts or sets their entries.

    Entries are not followed further, and what is written into a tensor stays.
    """
    attributes = [dict(vars(module)) for module in modules]
    containers = [
        (value, dict(value) if isinstance(value, dict) else list(value))
        for own in attributes
        for name, value in own.items()
        if isinstance(value, dict | list | set | deque) and name not in _OF_ALL_MODULES
    ]
    try:
        yield
    finally:
        for module, own in zip(modules, attributes, strict=True):
            _reset(vars(module), own)
        for container, entries in containers:
            _refill(container, entries)


@contextmanager
def undisturbed(modules: list[nn.Module]) -> Iterator[None]:
    """As ``restored``; inside, buffers are copies."""
    with restored(modules):
        for module in modules:
            if isinstance(module._buffers, dict):  # not so in TorchScript
                module._buffers.update({n: None if b is None else b.clone() for n, b in module._buffers.items()})
        yield


def _reset(now: dict[str, Any], own: dict[str, Any]) -> None:
    if len(now) == len(own) and all(map(is_, now.values(), own.values())):
        return
    for name in now.keys() - own.keys():
        del now[name]
    now.update(own)


def _refill(container: Any, entries: dict[Any, Any] | list[Any]) -> None:
    now, own = ([*c, *c.values()] if isinstance(c, dict) else [*c] for c in (container, entries))
    if len(now) == len(own) and all(map(is_, now, own)):
        return
    container.clear()
    (container.update if isinstance(container, dict | set) else container.extend)(entries)
