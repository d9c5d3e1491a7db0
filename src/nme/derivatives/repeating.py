"""What a pass changes beside its output, so that a further pass of the step can repeat it exactly."""

from __future__ import annotations

import pickle
import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

CPU = torch.device("cpu")
ABSENT = object()


class Draws:
    """The states of the random generators that a model may draw from: PyTorch's, Python's and NumPy's own ones.

    Args:
        device: of the model; PyTorch has a generator for each, and the CPU's is used as well.
        others: those of Python and NumPy, too.
    """

    def __init__(self, device: torch.device, others: bool = True):
        self.devices = (CPU,) if device.type == "cpu" else (CPU, device)
        self.states = [_state(kind) for kind in self.devices]
        if others:
            self.python, self.numpy = random.getstate(), np.random.get_state(legacy=False)  # noqa: NPY002

    def torch_same(self, other: Draws) -> bool:
        """True if nothing was drawn from PyTorch's generators in between."""
        return all(map(torch.equal, self.states, other.states))

    def others_same(self, other: Draws) -> bool:
        """True if nothing was drawn from Python's and NumPy's generators in between."""
        return self.python == other.python and pickle.dumps(self.numpy) == pickle.dumps(other.numpy)

    def restore(self, others: bool = True) -> None:
        """Set the generators to these states; Python's and NumPy's only with ``others``."""
        for device, state in zip(self.devices, self.states, strict=True):
            if device.type == "cpu":
                torch.default_generator.set_state(state)
            else:
                torch.get_device_module(device).set_rng_state(state, device)
        if others:
            random.setstate(self.python)
            np.random.set_state(self.numpy)  # noqa: NPY002


def _state(device: torch.device) -> Tensor:
    if device.type == "cpu":
        return torch.default_generator.get_state()
    state: Tensor = torch.get_device_module(device).get_rng_state(device)
    return state


class Attributes:
    """Attributes of modules before and after a pass, such as counters and recurrent states.

    Args:
        modules: all modules of the model; entered before the pass.
    """

    def __init__(self, modules: list[nn.Module]):
        self._before = [(module, dict(vars(module))) for module in modules]
        self._changed: list[tuple[nn.Module, str, Any]] = []

    def __bool__(self) -> bool:
        """True if the pass has set any."""
        return bool(self._changed)

    def note(self) -> None:
        """See what the pass has set; called after it."""
        for module, before in self._before:
            now = vars(module)
            if len(now) == len(before) and all(now.get(key, ABSENT) is value for key, value in before.items()):
                continue
            for key in {**before, **now}:
                old = before.get(key, ABSENT)
                if old is not now.get(key, ABSENT):
                    self._changed.append((module, key, old))
        self._before = []

    @contextmanager
    def as_before(self) -> Iterator[None]:
        """Inside, attributes are as before the pass; then as they were on entry."""
        after = [(module, key, vars(module).get(key, ABSENT)) for module, key, _ in self._changed]
        for module, key, old in self._changed:
            _set(module, key, old)
        try:
            yield
        finally:
            for module, key, new in after:
                _set(module, key, new)

    def tensors(self) -> list[tuple[str, Tensor]]:
        """Tensors among the attributes before the pass, with a description."""
        return [
            (f"attribute '{key}' of {type(module).__name__}", value)
            for module, own in self._before
            for key, value in own.items()
            if isinstance(value, Tensor)
        ]


def _set(module: nn.Module, key: str, value: Any) -> None:
    own = vars(module)
    if value is ABSENT:
        own.pop(key, None)
    else:
        own[key] = value


class Buffers:
    """Sees whether modules replace their buffers or write into them."""

    def __init__(self, modules: list[nn.Module]):
        self._before = [(m, name, b, b._version) for m in modules for name, b in m._buffers.items() if b is not None]

    def changed(self) -> bool:
        """True if one is another now."""
        return any(m._buffers.get(name) is not b or b._version != version for m, name, b, version in self._before)


class Writes:
    """Finds tensors that a pass writes into, which a further pass would not see as they were."""

    def __init__(self, named: Iterable[tuple[str, Tensor]]):
        self._versions = [(name, t, t._version) for name, t in named if not t.is_inference()]

    def found(self) -> str:
        """What the first one is; empty: none."""
        return next((name for name, tensor, version in self._versions if tensor._version != version), "")
