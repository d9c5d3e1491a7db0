"""Modules and parameters of a network, found in a third of the time of ``nn.Module``: small networks notice it."""

from weakref import WeakKeyDictionary

import torch
from torch import nn

OVERRIDABLE = ("parameters", "named_parameters", "named_modules", "_named_members")


def modules_of(model: nn.Module) -> list[nn.Module]:
    """Modules in the order of ``model.modules()``, each once."""
    found: list[nn.Module] = []
    seen: set[int] = set()
    rest: list[nn.Module | None] = [model]
    while rest:
        module = rest.pop()
        if module is None or id(module) in seen:
            continue
        seen.add(id(module))
        found.append(module)
        if module._modules:
            rest += reversed(module._modules.values())
    return found


def trainable_parameters(model: nn.Module, modules: list[nn.Module] | None = None) -> list[nn.Parameter]:
    """Parameters with ``requires_grad`` in the order of ``model.parameters()``, each once.

    Args:
        model: may have its own ``parameters``, whose order then counts.
        modules: ``modules_of(model)``, if known.
    """
    if torch.compiler.is_compiling() or _has_its_own(type(model)):
        return [p for p in model.parameters() if p.requires_grad]
    found: dict[int, nn.Parameter] = {}
    for module in modules_of(model) if modules is None else modules:
        for p in module._parameters.values():
            if p is not None and p.requires_grad:
                found[id(p)] = p
    return list(found.values())


_known_kinds: WeakKeyDictionary[type, bool] = WeakKeyDictionary()  # weak: parametrizations make a type for each layer


def _has_its_own(kind: type) -> bool:
    if kind not in _known_kinds:
        _known_kinds[kind] = any(getattr(kind, name) is not getattr(nn.Module, name) for name in OVERRIDABLE)
    return _known_kinds[kind]
