"""Forward passes of any model that can be repeated exactly: same dropout masks, same buffers, each updated once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nme.derivatives.any_loss import AnyLoss
from nme.derivatives.attention import plain_attention
from nme.derivatives.elementary import ElementaryLayerNorm
from nme.derivatives.loss import Loss
from nme.derivatives.nested import tensors_of
from nme.derivatives.repeating import Attributes, Buffers, Draws, Writes
from nme.errors import NmeError

Forward = Callable[[nn.Module, Any], tuple[Any, Any]]


class Facts(NamedTuple):
    """Properties of a model that each pass needs.

    Attributes:
        parameters: those with ``requires_grad``, in the model's order; at least one.
        modules: all of the model.
        owners: modules with buffers that a pass may change, but for batch norm.
        batch_norms: layers that update running statistics.
        recurrent: True if a layer is recurrent.
    """

    parameters: list[nn.Parameter]
    modules: list[nn.Module]
    owners: list[nn.Module]
    batch_norms: list[_BatchNorm]
    recurrent: bool

    @property
    def device(self) -> torch.device:
        """Device of the parameters."""
        return self.parameters[0].device


class Habits(NamedTuple):
    """What a model and a loss do beside computing, as the first step has shown.

    Attributes:
        drew: the forward pass draws from PyTorch's generators.
        drew_others: it draws from Python's or NumPy's.
        sets: it sets attributes of modules.
        writes: what it writes into and cannot be undone; empty: nothing.
        loss: what the loss does that differs from pass to pass; empty: nothing.
    """

    drew: bool = False
    drew_others: bool = False
    sets: bool = False
    writes: str = ""
    loss: str = ""

    def or_of(self, other: Habits) -> Habits:
        """What one of two does."""
        return Habits(
            self.drew or other.drew,
            self.drew_others or other.drew_others,
            self.sets or other.sets,
            self.writes or other.writes,
            self.loss or other.loss,
        )


class Evaluation:
    """Outputs and targets of one part of a batch, in one training step (docs/theory.md, §4.2).

    The first pass draws random numbers and updates buffers and attributes as usual. Each further pass draws the same
    numbers, starts from the same buffers and attributes, and leaves all as they were before it; it is refused if the
    first one wrote into what cannot be restored. Batch norm's running statistics are frozen by ``frozen_statistics``.

    Args:
        forward: called as ``forward(model, batch)``, returns output and target; None: ``model(inputs)``, where a
            mapping gives keyword and a tuple positional arguments.
        autocast: dtype of ``torch.autocast`` in forward passes; None: no autocast. Outputs are then at least float32.
        order: highest derivative that the training method takes: 1, 2 or 3.
        facts: of the model, found once per step.
        habits: of the model and the loss; None: this step looks for them, and through the graphs for what derivatives
            would miss.
    """

    def __init__(
        self,
        forward: Forward | None,
        autocast: torch.dtype | None,
        order: int,
        facts: Facts,
        habits: Habits | None = None,
    ):
        self.forward, self.autocast, self.order, self.facts = forward, autocast, order, facts
        self.inspect, self.habits = habits is None, Habits() if habits is None else habits
        self._draws: Draws | None = None
        self._attributes = Attributes([])
        self._loss_seen = False
        # Those that the first pass changed or replaced, and their values before.
        self._buffers: list[tuple[nn.Module, str, Tensor]] = []

    def __call__(self, model: nn.Module, inputs: Any, target: Any = None) -> tuple[Tensor, Any]:
        """Output with its graph, and target.

        Raises:
            NmeError: the output is not a floating-point tensor, or ``forward`` does not return a pair.
        """
        if self._draws is None:
            output, target = self._first(model, inputs, target)
        else:
            output, target = self._again(self._draws, model, inputs, target)
        if not isinstance(output, Tensor) or not output.is_floating_point():
            kind = f"a tensor of {output.dtype}" if isinstance(output, Tensor) else type(output).__name__
            raise NmeError(f"the model's output is {kind} (expected a floating-point tensor; choose one by forward=)")
        if self.autocast is not None:
            output = output.to(torch.promote_types(output.dtype, torch.float32))
        return output, target

    def is_plain(self, model: nn.Module) -> bool:
        """True if the output is ``model(inputs)`` without autocast, random numbers and changing buffers."""
        if (
            self.forward is not None
            or self.autocast is not None
            or self._buffers
            or self.habits.drew
            or self.habits.drew_others
            or self.habits.sets
            or self.habits.writes
        ):
            return False
        return not any(isinstance(m, nn.modules.dropout._DropoutNd) and m.training and m.p for m in model.modules())

    def _run(self, model: nn.Module, inputs: Any, target: Any) -> tuple[Any, Any]:
        if self.order > 1 or self.autocast is not None:
            with self._surroundings():
                return self._called(model, inputs, target)
        return self._called(model, inputs, target)

    def _called(self, model: nn.Module, inputs: Any, target: Any) -> tuple[Any, Any]:
        if self.forward is not None:
            found = self.forward(model, inputs)
            if not isinstance(found, tuple | list) or len(found) != 2:
                raise NmeError(f"forward returns {type(found).__name__} (expected a pair: output, target)")
            return found[0], found[1] if target is None else target
        if isinstance(inputs, Tensor):
            return model(inputs), target
        if isinstance(inputs, Mapping):
            return model(**inputs), target
        return model(*inputs) if isinstance(inputs, tuple) else model(inputs), target

    @contextmanager
    def _surroundings(self) -> Iterator[None]:
        with ExitStack() as stack:
            if self.autocast is not None:
                # Without cache: it would keep casts of the parameters while a method displaces them.
                stack.enter_context(torch.autocast(self.facts.device.type, self.autocast, cache_enabled=False))
            if self.order > 2:
                stack.enter_context(ElementaryLayerNorm())
            if self.order > 1:
                stack.enter_context(plain_attention())
                if self.facts.recurrent:  # nor have fused recurrent layers
                    stack.enter_context(torch.backends.cudnn.flags(enabled=False))
                    stack.enter_context(torch.backends.mkldnn.flags(enabled=False))
            yield

    def loss(self, loss: Loss, output: Tensor, target: Any) -> Tensor:
        """L, a scalar with its graph.

        Raises:
            NmeError: a target that does not fit the output; or a loss without a closed form is computed again, but has
                drawn random numbers or changed a buffer.
        """
        if not isinstance(loss, AnyLoss):
            try:
                return loss.value(output, target)
            except (RuntimeError, IndexError):
                loss.check(output.detach(), target)
                raise
        self.refuse_unrepeatable_loss()
        self._loss_seen = True
        if not self.inspect:
            return loss.value(output, target)
        before = Draws(self.facts.device)
        modules = list(loss.function.modules()) if isinstance(loss.function, nn.Module) else []
        buffers = Buffers(modules)
        attributes = Attributes(modules)
        value = loss.value(output, target)
        attributes.note()
        after = Draws(self.facts.device)
        if not (before.torch_same(after) and before.others_same(after)):
            self.habits = self.habits._replace(loss="the loss draws random numbers")
        elif buffers.changed() or attributes:
            self.habits = self.habits._replace(loss="the loss changes its own buffers or attributes")
        elif self._attributes and self._reads_attributes(loss, output, target, value):
            self.habits = self.habits._replace(loss="the loss reads an attribute that the forward pass sets")
        return value

    def _reads_attributes(self, loss: Loss, output: Tensor, target: Any, value: Tensor) -> bool:
        """True if the loss is another where attributes are as before the pass, as they will be in further passes."""
        try:
            with self._attributes.as_before():
                before = loss.value(output.detach().requires_grad_(), target)
        except Exception:  # without the attribute a loss of the user's may raise anything
            return True
        return not torch.equal(before.detach().nan_to_num(), value.detach().nan_to_num())

    def refuse_unrepeatable_loss(self) -> None:
        """Raise if the loss has given a value that another evaluation would not give.

        Raises:
            NmeError: see ``loss``.
        """
        if self._loss_seen and self.habits.loss:
            raise NmeError(
                f"{self.habits.loss}, but the method evaluates it several times (expected: in forward=, as a part of"
                " its output or target, or between steps)"
            )

    def _first(self, model: nn.Module, inputs: Any, target: Any) -> tuple[Any, Any]:
        facts, habits = self.facts, self.habits
        self._draws = Draws(facts.device, others=self.inspect or habits.drew_others)
        owned = [(m, name, b) for m in facts.owners for name, b in m._buffers.items() if b is not None]
        for _, name, buffer in owned:
            if buffer.is_inference():
                raise NmeError(f"buffer '{name}' was made in inference mode (build the model outside of it)")
        before = [(m, name, b, b._version, b.clone()) for m, name, b in owned]
        if self.inspect or habits.sets:
            self._attributes = Attributes(facts.modules)
        if self.inspect:
            writes = Writes([*_inputs(inputs), *self._attributes.tensors(), *_parameters(facts.modules)])
        found = self._run(model, inputs, target)
        self._buffers = [
            (m, name, value)
            for m, name, buffer, version, value in before
            # PyTorch's kernel of batch norm writes without counting a version.
            if m._buffers[name] is not buffer or buffer._version != version or isinstance(m, _BatchNorm)
        ]
        self._attributes.note()
        if self.inspect:
            after = Draws(facts.device)
            drew, drew_others = not self._draws.torch_same(after), not self._draws.others_same(after)
            self.habits = Habits(drew, drew_others, bool(self._attributes), writes.found())
        return found

    def _again(self, draws: Draws, model: nn.Module, inputs: Any, target: Any) -> tuple[Any, Any]:
        if self.habits.writes:
            raise NmeError(
                f"the forward pass writes into {self.habits.writes}, but the method needs a second pass from the same"
                " state (expected: a copy, a buffer, or an update between steps)"
            )
        own = Draws(self.facts.device, others=self.habits.drew_others)
        after = [module._buffers[name] for module, name, _ in self._buffers]
        try:
            draws.restore(self.habits.drew_others)
            for module, name, before in self._buffers:  # others: the graph of the first pass may have saved its own
                module._buffers[name] = before.clone()
            with self._attributes.as_before():
                return self._run(model, inputs, target)
        finally:
            own.restore(self.habits.drew_others)
            for (module, name, _), buffer in zip(self._buffers, after, strict=True):
                module._buffers[name] = buffer


def _inputs(inputs: Any) -> list[tuple[str, Tensor]]:
    return [("its inputs", tensor) for tensor in tensors_of(inputs)]


def _parameters(modules: list[nn.Module]) -> Iterator[tuple[str, Tensor]]:
    for module in modules:
        if getattr(module, "max_norm", None) is not None:  # an embedding that scales its rows: twice is as once
            continue
        for name, p in module._parameters.items():
            if p is not None:
                yield f"parameter '{name}' of {type(module).__name__}", p
