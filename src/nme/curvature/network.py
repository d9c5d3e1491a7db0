"""A model as a function of copies of its parameters and buffers; nothing of the model is changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import copy
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import disable_saved_tensors_hooks
from torch.func import functional_call

from nme.curvature.batches import cast
from nme.curvature.surroundings import fixed
from nme.errors import NmeError, unknown

Forward = Callable[[nn.Module, Any], tuple[Any, Any]]
RECOMPUTES = "nme.curvature: saved tensors have hooks"


class Network:
    """A model with parameters of its own.

    Args:
        model: any module; its wrappers for several GPUs and compilers are taken off.
        parameters: names, patterns, tensors or modules; the parameters that are variables.
        dtype: float32, float64 or None: that of the parameters, and at least float32.
        batch_norm: 'eval' or 'train'.
        forward: called as ``forward(model, batch)``, gives output and target; None: ``model(inputs)``.

    Attributes:
        names: of the variables, in the model's order.
        entire: True if no parameters were chosen: the variables are all that the model trains.
        parameters: the variables, as leaves in ``dtype``.
        recomputes: True once a forward pass was seen whose backward pass computes parts of it again.
    """

    def __init__(
        self, model: nn.Module, parameters: Any, dtype: torch.dtype | None, batch_norm: str, forward: Forward | None
    ):
        if not isinstance(model, nn.Module):
            raise NmeError(f"model is {type(model).__name__} (allowed: a torch.nn.Module)")
        self.model = _unwrapped(model)
        self.batch_norm, self.forward, self.recomputes = batch_norm, forward, False
        own = dict(self.model.named_parameters())
        self.names, self.entire = chosen(self.model, own, parameters), isinstance(parameters, str) and parameters == "*"
        first = own[self.names[0]]
        self.dtype, self.device = dtype or torch.promote_types(first.dtype, torch.float32), first.device
        self.state = {n: _copy(t, self.dtype) for n, t in (*own.items(), *self.model.named_buffers())}
        self.parameters = [self.state[n].requires_grad_() for n in self.names]
        self.buffers = [n for n, _ in self.model.named_buffers()]
        self._holder = _Holder(self.model)

    def copied(self, dtype: torch.dtype) -> Network:
        """The same model with copies of these parameters and buffers, in a dtype."""
        twin = copy(self)
        twin.dtype, twin.state = dtype, {name: _copy(tensor, dtype) for name, tensor in self.state.items()}
        twin.parameters = [twin.state[name].requires_grad_() for name in self.names]
        return twin

    def prepared(self) -> Any:
        """Context in which the model is computed, and backward passes that compute parts of it again."""
        return fixed(self.model, self.batch_norm, self.device, self.dtype)

    def __call__(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Output with its graph, and target of a batch.

        Raises:
            NmeError: the forward pass fails, or its output is not one tensor of numbers.
        """
        with self.prepared():
            try:
                with nullcontext() if self.recomputes else disable_saved_tensors_hooks(RECOMPUTES):
                    output, target = self._computed(batch)
            except NmeError:
                raise
            except Exception as error:
                if not self.recomputes and RECOMPUTES in str(error):
                    self.recomputes = True
                    return self(batch)
                raise NmeError(f"the model's forward pass fails: {brief(error)}") from error
        return _tensor_of(output), target

    @contextmanager
    def again(self) -> Iterator[None]:
        """Context of a backward pass that computes parts of the model again: with the copies, in the same mode."""
        with self.prepared(), self._holder.with_state(self._fresh()):
            yield

    def _fresh(self) -> dict[str, Tensor]:
        """The state, with buffers that a forward pass may change."""
        return {**self.state, **{name: self.state[name].clone() for name in self.buffers}}

    def _computed(self, batch: Any) -> tuple[Any, Any]:
        def run() -> tuple[Any, Any]:
            if self.forward is not None:
                found = self.forward(self.model, cast(batch, self.device, self.dtype))
                if not isinstance(found, tuple | list) or len(found) != 2:
                    raise NmeError(f"forward returns {type(found).__name__} (allowed: a pair (output, target))")
                return found[0], found[1]
            inputs, target = batch
            inputs = cast(inputs, self.device, self.dtype)
            if isinstance(inputs, Mapping):
                return self.model(**inputs), target
            return self.model(*inputs) if isinstance(inputs, tuple) else self.model(inputs), target

        found: tuple[Any, Any] = functional_call(self._holder, self._holder.named(self._fresh()), (run,))
        return found

    @contextmanager
    def copied_into_model(self) -> Iterator[dict[str, nn.Parameter]]:
        """Inside, the model's own parameters and buffers have the values of the copies, and their dtype."""
        trained = dict(self.model.named_parameters())
        own: dict[str, Tensor] = {**trained, **dict(self.model.named_buffers())}
        for name, tensor in own.items():
            if tensor.is_inference():
                raise NmeError(f"'{name}' of the model was made in inference mode (build the model outside of it)")
        before = {name: (t.data, t.requires_grad) for name, t in own.items()}
        try:
            for name, tensor in own.items():
                tensor.data = self.state[name].detach().clone()
            for name in self.names:
                own[name].requires_grad_(True)
            yield {name: trained[name] for name in self.names}
        finally:
            for name, tensor in own.items():
                tensor.data, requires_grad = before[name]
                if name in self.names:
                    tensor.requires_grad_(requires_grad)

    def plain(self, batch: Any) -> tuple[Tensor, Any]:
        """Output and target by the model's own parameters, for ``copied_into_model``."""
        with self.prepared():
            holder = self._holder
            self._holder = _Plain(self.model)
            try:
                output, target = self._computed(batch)
            finally:
                self._holder = holder
        return _tensor_of(output), target


class _Holder(nn.Module):
    """Calls a function while the model in it has other parameters."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def named(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {f"model.{name}": tensor for name, tensor in state.items()}

    def forward(self, function: Callable[[], Any]) -> Any:
        # Recurrent layers have their weights in a list, too.
        layers = [m for m in self.model.modules() if isinstance(m, nn.RNNBase)]
        before = [layer._flat_weights for layer in layers]
        try:
            for layer in layers:
                layer._flat_weights = [getattr(layer, name) for name in layer._flat_weights_names]
            return function()
        finally:
            for layer, own in zip(layers, before, strict=True):
                layer._flat_weights = own

    @contextmanager
    def with_state(self, state: dict[str, Tensor]) -> Iterator[None]:
        with torch.nn.utils.stateless._reparametrize_module(self, self.named(state), tie_weights=True):
            yield


class _Plain(_Holder):
    """Calls a function while the model has its own parameters."""

    def named(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {}


def chosen(model: nn.Module, own: dict[str, nn.Parameter], parameters: Any) -> list[str]:
    """Names of the chosen parameters that require a gradient, in the model's order.

    Raises:
        NmeError: there are none, or a name, tensor or module is not the model's.
    """
    trained = [name for name, p in own.items() if p.requires_grad]
    if not trained:
        raise NmeError("the model has no parameters that require a gradient")
    several = isinstance(parameters, Iterable) and not isinstance(parameters, str | Tensor | nn.Module)
    wanted = list(parameters) if several else [parameters]
    if not wanted:
        raise NmeError(f"no parameters are chosen (allowed: {', '.join(trained)})")
    found: set[str] = set()
    for one in wanted:
        if isinstance(one, str):
            names = {one} if one in trained else {name for name in trained if fnmatchcase(name, one)}
            if not names:
                raise NmeError(unknown("parameter", one, trained))
        elif isinstance(one, Tensor | nn.Module):
            inside = [one] if isinstance(one, Tensor) else list(one.parameters())
            names = {name for name in trained if any(own[name] is p for p in inside)}
            if not names:
                kind = f"a {type(one).__name__}" + (f" of shape {tuple(one.shape)}" if isinstance(one, Tensor) else "")
                raise NmeError(f"{kind} is given as parameters, but the model does not train it")
        else:
            raise NmeError(f"parameters has a {type(one).__name__} (allowed: names, patterns, tensors, modules)")
        found |= names
    for name in found:
        if isinstance(own[name], nn.parameter.UninitializedParameter):
            raise NmeError(f"parameter '{name}' has no shape yet (call the model once)")
        if not own[name].is_floating_point():
            raise NmeError(f"parameter '{name}' has dtype {own[name].dtype} (allowed: real numbers)")
    return [name for name in trained if name in found]


def brief(error: BaseException) -> str:
    """First line of an exception's message."""
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _unwrapped(model: nn.Module) -> nn.Module:
    while isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        inner = model._orig_mod if hasattr(model, "_orig_mod") else model.module
        assert isinstance(inner, nn.Module)
        model = inner
    return model


def _tensor_of(output: Any) -> Tensor:
    """The output, or the ``logits`` of a dict or an object."""
    found = output
    if not isinstance(found, Tensor):
        found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if not isinstance(found, Tensor):
        what = f"a dict of {', '.join(map(str, output))}" if isinstance(output, Mapping) else type(output).__name__
        raise NmeError(f"the model's output is {what} (allowed: a tensor, or choose one by forward=)")
    if not found.is_floating_point():
        raise NmeError(f"the model's output has dtype {found.dtype} (allowed: real numbers)")
    return found


def _copy(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    if isinstance(tensor, nn.parameter.UninitializedParameter | nn.parameter.UninitializedBuffer):
        raise NmeError("the model has parameters without a shape (call it once)")
    with torch.inference_mode(False):
        return tensor.detach().to(dtype, copy=True) if tensor.is_floating_point() else tensor.detach().clone()
