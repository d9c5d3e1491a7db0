"""State of modules that a forward pass or a loss writes: attributes, lists and dicts, buffers; restored afterwards."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from operator import is_
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import nn

# Hooks and the like, which every module has. A pass may write all others, and the three dicts of tensors and modules.
_OF_ALL_MODULES = frozenset(vars(nn.Module())) - {"_buffers", "_parameters", "_modules"}
_CONTAINERS = (dict, list, set, deque)


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
        if name not in _OF_ALL_MODULES and isinstance(value, _CONTAINERS)
    ]
    try:
        yield
    finally:
        for module, own in zip(modules, attributes, strict=True):
            _reset(vars(module), own)
        for container, entries in containers:
            _refill(container, entries)


def modules_in_loss(loss: Callable[..., Any]) -> list[nn.Module]:
    """The modules that a loss is, or refers to: a method's, arguments of a ``partial``, in closures and globals.

    Functions in closures and globals are followed, but for PyTorch's; attributes of other objects are not.
    """
    found: dict[int, nn.Module] = {}
    seen: set[int] = set()
    waiting: list[Any] = [loss]
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        if isinstance(one, nn.Module):
            found.update({id(module): module for module in one.modules()})
        elif isinstance(one, partial):
            waiting += [one.func, *one.args, *one.keywords.values()]
        elif isinstance(one, MethodType):
            waiting += [one.__self__, one.__func__]
        elif isinstance(one, FunctionType) and not str(one.__module__).startswith("torch."):
            waiting += [*_closed_over(one), *(one.__globals__.get(name) for name in _names(one.__code__))]
    return list(found.values())


def _closed_over(function: FunctionType) -> Iterator[Any]:
    for cell in function.__closure__ or ():
        with suppress(ValueError):  # an empty cell
            yield cell.cell_contents


def _names(code: CodeType) -> Iterator[str]:
    """Names that a function and the functions in it look up."""
    yield from code.co_names
    for inner in code.co_consts:
        if isinstance(inner, CodeType):
            yield from _names(inner)


def undisturbed(loss: Callable[..., Any]) -> Callable[..., Any]:
    """The loss as a function that leaves attributes and buffers of ``modules_in_loss`` as they are."""
    modules = modules_in_loss(loss)
    if not modules:
        return loss

    def call(*arguments: Any) -> Any:
        with restored(modules):
            for module in modules:
                if isinstance(module._buffers, dict):  # not so in TorchScript
                    module._buffers.update({n: None if b is None else b.clone() for n, b in module._buffers.items()})
            return loss(*arguments)

    return call


def _reset(now: dict[str, Any], own: dict[str, Any]) -> None:
    if len(now) == len(own) and all(map(is_, now.values(), own.values())):
        return
    for name in now.keys() - own.keys():
        del now[name]
    now.update(own)


def _refill(container: Any, own: dict[Any, Any] | list[Any]) -> None:
    if not container and not own:
        return
    same = len(container) == len(own) and all(map(is_, container, own))
    if same and (not isinstance(own, dict) or all(map(is_, container.values(), own.values()))):
        return
    container.clear()
    (container.update if isinstance(container, dict | set) else container.extend)(own)
