"""The interface of training methods, and their registry.

To add a method: write a class with ``update`` and decorate it, in a module that ``nme.methods`` imports.
Configurations, paths, figures, tests and training loops pick it up.

Weight decay is not part of a method: it acts on the update, outside L, and enters neither ĝ nor the penalty.
In train mode a penalty uses the batch's own batch-norm statistics; the clean pass updates the running statistics, once
per step. A batch may be cut into parts and distributed over processes (``nme.derivatives.products``); the results of a
method are always those of the whole batch. Random numbers are drawn first, by ``apart``: the rest can be compiled.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from nme.errors import NmeError, unknown
from nme.methods.result import Update
from nme.registry import Named, Registry

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import Tensor, nn

    from nme.derivatives.combining import AnyBatch
    from nme.derivatives.evaluation import Forward
    from nme.derivatives.loss import Loss
    from nme.derivatives.products import Gradient

METHODS: Registry[type[Method]] = Registry("training method")

# Of all parameters, or one of each that has requires_grad, in the model's order.
Strength = float | list[float]


class Method(Named):
    """A training method.

    Args:
        strength: ≥ 0, in the unit of ``symbol``; 0 gives plain SGD. Or parameter groups, dicts with ``params`` and
            ``strength``, such as an optimizer's ``param_groups``. May be changed between steps.
        seed: of the random numbers, which are the same in all processes.
        parameters: numbers of the method, as ``p`` of ``GradientPenalty``.

    Attributes:
        symbol: symbol of the strength on axes; None: the method has no strength.
        has_clean_pass: True if loss, output and gradient norm of an update are those at θ itself.
        order: highest derivative that an update takes.
        gradients: cost of an update in gradients (3 F), counted for a convolutional network; used for planning
            (docs/theory.md, §6.2).

    Raises:
        NmeError: unknown parameter, or a value that is not allowed.
    """

    symbol: str | None
    has_clean_pass = True
    order = 1
    gradients: float

    def __init__(
        self, strength: float | Iterable[Mapping[str, Any]] | None = None, *, seed: int = 0, **parameters: float
    ):
        for key in parameters:
            if key not in self.parameters:
                allowed = ["strength", "seed", *self.parameters]
                raise NmeError(unknown(f"parameter of {type(self).__name__}", key, allowed))
        values = {}
        for key, known in self.parameters.items():
            value = parameters.get(key, known.default)
            if value is None:
                raise NmeError(f"{key} of {type(self).__name__} is not given (expected a number)")
            values[key] = METHODS.value_of(self.name, key, value, known)
        super().__init__(**values)
        self.strength = strength
        self.seed = seed
        self._generator: torch.Generator | None = None

    def update(self, model: nn.Module, batch: AnyBatch, strength: Strength, noise: torch.Generator) -> Update:
        """Compute the direction of one step.

        Args:
            model: parameters are unchanged on return, even after an exception.
            batch: this process's part of the batch, with its loss.
            strength: ≥ 0, in the unit of ``symbol``; 0 gives g.
            noise: the step's own random stream, on the CPU.
        """
        raise NotImplementedError

    def apart(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The function's result; a compiled ``update`` calls the function without tracing it."""
        return function(*arguments)

    @property
    def generator(self) -> torch.Generator:
        """Random stream of this method, on the CPU; save its ``get_state()`` to continue a training exactly."""
        if self._generator is None:
            import torch

            self._generator = torch.Generator().manual_seed(self.seed)
        return self._generator

    def backward(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Any], Tensor] | Loss,
        batch: Any,
        *,
        forward: Forward | None = None,
        noise: torch.Generator | None = None,
    ) -> Update:
        """Add the step's direction to ``.grad`` of the parameters, in place of ``loss.backward()``.

        Parameters on which the loss does not depend keep their ``.grad``. Inside ``torch.autocast`` forward passes are
        computed in its dtype. In DistributedDataParallel the direction is that of all processes' batch together.

        Args:
            model: in the mode it is trained in; parameters are unchanged on return, even after an exception.
            loss: called as ``loss(output, target)``, with one number as result, as ``nn.CrossEntropyLoss()``; mean or
                sum over the batch.
            batch: a pair (inputs, target) on the model's device, or whatever ``forward`` takes.
            forward: called as ``forward(model, batch)``, returns (output, target); None: ``model(inputs)``.
            noise: random stream of this step, on the CPU; None: the method's own.

        Raises:
            NmeError: a strength, model, loss or batch that cannot be used (docs/methods.md).
        """
        return self._step(model, loss, [batch], forward, noise)

    def accumulate(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Any], Tensor] | Loss,
        micro_batches: Iterable[Any],
        *,
        forward: Forward | None = None,
        noise: torch.Generator | None = None,
    ) -> Update:
        """``backward`` for a batch in several pieces, to save memory: its penalty is that of the whole batch.

        Batch norm takes each micro-batch's own statistics. Micro-batches count by their examples (labels that count),
        or are summed for a loss with reduction 'sum'. Second-order methods compute each clean pass twice.
        """
        return self._step(model, loss, list(micro_batches), forward, noise, pieces=True)

    def _step(
        self,
        model: nn.Module,
        loss: Callable[[Tensor, Any], Tensor] | Loss,
        batches: list[Any],
        forward: Forward | None,
        noise: torch.Generator | None,
        pieces: bool = False,
    ) -> Update:
        from nme.methods.steps import added_to_grad, inspected, plain_mode, prepared

        network, batch, parameters, autocast = prepared(model, loss, batches, forward, type(self), self.order, pieces)
        strength = self._strengths(parameters)
        with plain_mode(network, autocast, self.order):
            step = self.update(network, batch, strength, noise or self.generator)
        inspected(network, loss, forward, type(self), batch)
        added_to_grad(parameters, step)
        return step

    def _strengths(self, parameters: list[nn.Parameter]) -> Strength:
        if self.symbol is None:
            return 0.0
        if self.strength is None:
            raise NmeError(f"strength of {type(self).__name__} is not given (expected a number ≥ 0)")
        if isinstance(self.strength, Iterable) and not isinstance(self.strength, str) and not _is_array(self.strength):
            found: dict[int, float] = {}
            for group in self.strength:
                if "strength" not in group:
                    raise NmeError("a parameter group has no 'strength' (expected a number ≥ 0)")
                own = group["params"]
                own = [own] if hasattr(own, "requires_grad") else list(own)
                found |= dict.fromkeys(map(id, own), _number(group["strength"]))
            missing = sum(id(p) not in found for p in parameters)
            if missing:
                raise NmeError(f"{missing} parameters with requires_grad are in no group of strength")
            values = [found[id(p)] for p in parameters]
            return values[0] if len(set(values)) == 1 else values
        return _number(self.strength)


def _is_array(strength: Any) -> bool:
    """True for tensors and NumPy's arrays, which are numbers and not groups."""
    return hasattr(strength, "ndim")


def _number(strength: Any) -> float:
    try:
        value = float(strength)
    except (TypeError, ValueError, RuntimeError):
        value = -1.0
    if not 0 <= value < float("inf"):
        raise NmeError(f"strength is {strength!r} (expected a number ≥ 0)")
    return value


def times(vector: list[Tensor], strength: list[float]) -> list[Tensor]:
    """A vector with the entries of each parameter times its strength."""
    return [v * s for v, s in zip(vector, strength, strict=True)]


def finished(direction: Iterable[Tensor], clean: Gradient, size: Tensor | None = None) -> Update:
    """The update with this direction and the records of its clean pass; ``size``: its ‖g‖, if known."""
    from nme.derivatives.vectors import norm

    size = norm(clean.gradient) if size is None else size
    return Update(list(direction), clean.loss, clean.logits, size, clean.used)
