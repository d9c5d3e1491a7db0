"""The loss along a line θ + tu to second order, by one forward pass in Taylor arithmetic (docs/theory.md, §2.6).

Every intermediate x(t) is carried as its value, first and second derivative in t at t = 0, so that the last one is the
quadratic form d²L/dt² = uᵀHu, without a backward pass: 5 F (Wx, Wx' + Ux, Wx'' + 2Ux' for a layer x ↦ Wx). Its
gradient takes one reverse pass of 8 F, where three nested reverse passes take 19.5 F.

To add a kind of layer: a function decorated with ``@rule``. Models are run as they are, with Taylor values in place of
tensors. Rules are for exact types: a subclass may compute anything. Where a model has a layer or an operation without a
rule, the form is computed by double backward (``nme.derivatives.double_backward``), which is slower.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable
from torch.nn import functional

from nme.activations import Activation
from nme.derivatives.activate import Activate
from nme.derivatives.batch import CROSS_ENTROPY, Batch
from nme.derivatives.batch_norm import BatchNorm1d, BatchNorm2d
from nme.derivatives.convolutions import Conv1d, Conv2d
from nme.derivatives.cross_entropy import softmax_hessian_product
from nme.derivatives.double_backward import quadratic_form_by_double_backward
from nme.derivatives.losses import AnyLoss, Loss
from nme.derivatives.modes import custom_derivatives_disabled
from nme.derivatives.single_pass import logits_of
from nme.derivatives.taylor_batch_norm import taylor_batch_norm

RULES: dict[type[nn.Module], Callable[..., Any]] = {}


class NoRuleError(Exception):
    """The model has a layer or an operation without a rule."""


class Taylor:
    """A tensor x(t) with ``value`` x, ``first`` x' and ``second`` x'' at t = 0; None is 0."""

    def __init__(self, value: Tensor, first: Tensor | None = None, second: Tensor | None = None):
        if not torch.is_grad_enabled():  # autograd would take it as a constant
            raise NoRuleError("a part without gradient")
        self.value, self.first, self.second = value, first, second

    @property
    def dtype(self) -> torch.dtype:
        """Of the value."""
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        """Of the value."""
        return self.value.device

    def to(self, dtype: torch.dtype) -> Taylor:
        """The same in another precision."""
        return self.map(lambda part: part.to(dtype))

    def float(self) -> Taylor:
        """The same in float32."""
        return self.to(torch.float32)

    def map(self, linear: Callable[[Tensor], Tensor]) -> Taylor:
        """A linear function of the tensor."""
        first, second = (None if part is None else linear(part) for part in (self.first, self.second))
        return Taylor(linear(self.value), first, second)

    def __getattr__(self, name: str) -> NoReturn:
        """Anything else that a tensor has."""
        raise NoRuleError(name)

    def __add__(self, other: Taylor) -> Taylor:
        if not isinstance(other, Taylor):
            raise NoRuleError("sum with a constant")
        return Taylor(self.value + other.value, _sum(self.first, other.first), _sum(self.second, other.second))

    def __mul__(self, other: Taylor) -> Taylor:
        """The product rule, twice."""
        if not isinstance(other, Taylor):
            raise NoRuleError("product with a constant")
        (a, a1, a2), (b, b1, b2) = self.parts, other.parts
        mixed = _product(a1, b1)
        second = _sum(_sum(_product(a2, b), _product(a, b2)), None if mixed is None else 2 * mixed)
        return Taylor(a * b, _sum(_product(a1, b), _product(a, b1)), second)

    def __iadd__(self, other: Taylor) -> Taylor:
        """In place: other names of this value change, too."""
        self.value, self.first, self.second = (self + other).parts
        return self

    def __imul__(self, other: Taylor) -> Taylor:
        """In place, as above."""
        self.value, self.first, self.second = (self * other).parts
        return self

    @property
    def parts(self) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Value, first and second."""
        return self.value, self.first, self.second

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Any, arguments: tuple[Any, ...] = (), options: Any = None
    ) -> Taylor:
        """What a model does between its layers, if it is linear: ``torch.flatten``, say."""
        if function is not torch.flatten:
            raise NoRuleError(function.__name__)
        taylor: Taylor = arguments[0]
        rest = arguments[1:]
        return taylor.map(lambda part: function(part, *rest, **(options or {})))


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _product(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return None if a is None or b is None else a * b


def quadratic_form(model: nn.Module, batch: Batch, vector: list[Tensor], loss: Loss | None = None) -> Tensor:
    """uᵀHu of the batch's loss, a scalar with its graph. Cost: 5 F; its gradient 8 F more.

    Args:
        model: maps inputs to outputs, to logits (B, C) for cross-entropy. Batch norm and dropout follow their modes;
            running statistics are not touched.
        batch: inputs and labels, in one part.
        vector: u, one tensor per parameter with a gradient, in the model's order.
        loss: of output and labels; None: the batch's.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    z: Any = None
    if loss is None and batch.loss is not CROSS_ENTROPY:
        loss = batch.loss
    plain = batch.evaluation is None or (batch.evaluation.is_plain(model) and isinstance(batch.inputs, Tensor))
    # A function of the user's may depend on parameters directly.
    if plain and not isinstance(loss, AnyLoss) and all(_has_rule(layer) for layer in model.modules()):
        try:
            with _taylor_layers(model, {id(p): u for p, u in zip(parameters, vector, strict=True)}):
                z = _output(model, batch.inputs)
        except (NoRuleError, TypeError):  # an operator between layers that Taylor values do not have
            z = None
        except Exception as error:  # of a model's own, as a check for tensors
            if batch.evaluation is None or isinstance(error, torch.OutOfMemoryError):
                raise
            z = None
    if not isinstance(z, Taylor):
        return quadratic_form_by_double_backward(model, batch, parameters, vector, loss)
    if z.first is None:
        return torch.zeros_like(z.value).sum()
    if loss is not None:
        curved = (z.first * loss.hessian_product(z.value, batch.labels, z.first)).sum()
        return curved if z.second is None else curved + (loss.residual(z.value, batch.labels) * z.second).sum()
    curved = (z.first * softmax_hessian_product(z.value, z.first)).sum()
    if z.second is not None:
        # ⟨softmax(z) − onehot(y), z''⟩, without the label's p_y − 1, which cancels near interpolation.
        label = batch.labels[:, None]
        others = z.value.softmax(1).scatter(1, label, 0)
        curved = curved + (others * (z.second - z.second.gather(1, label))).sum()
    return curved / len(batch.labels)


def _output(model: nn.Module, inputs: Tensor) -> Any:
    along: Any = Taylor(inputs)
    return logits_of(model, along)


def _has_rule(layer: nn.Module) -> bool:
    """True if a layer's type has a rule and nothing changes what it computes, or if it is made of other layers."""
    if "forward" in vars(layer) or layer._forward_hooks or layer._forward_pre_hooks:
        return False
    if type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d, BatchNorm1d, BatchNorm2d) and layer.weight is None:
        return False
    return type(layer) in RULES or any(True for _ in layer.children())


@contextmanager
def _taylor_layers(model: nn.Module, directions: dict[int, Tensor]) -> Iterator[None]:
    """Inside, the layers take and give Taylor values, for parameters p + t · directions[id(p)].

    What the model sets as its attributes is undone.
    """
    before = [(layer, dict(vars(layer))) for layer in model.modules()]

    try:
        for layer, _ in before:
            if type(layer) in RULES:
                layer.forward = partial(RULES[type(layer)], layer, lambda p: Taylor(p, directions.get(id(p))))
        yield
    finally:
        for layer, attributes in before:
            vars(layer).clear()
            vars(layer).update(attributes)


def rule(*kinds: type[nn.Module]) -> Callable[..., Any]:
    """Registers a layer's function of the layer, ``along`` (parameter ↦ its Taylor value) and the Taylor input."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        RULES.update(dict.fromkeys(kinds, function))
        return function

    return register


@rule(nn.Flatten, nn.Identity, nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d)
def _linear(layer: nn.Module, along: Callable[[Tensor], Taylor], x: Taylor) -> Taylor:
    return x.map(partial(type(layer).forward, layer))


@rule(nn.Dropout)
def _dropout(layer: nn.Dropout, along: Callable[[Tensor], Taylor], x: Taylor) -> Taylor:
    """One mask for all parts."""
    if not layer.training:
        return x
    mask = functional.dropout(torch.ones_like(x.value), layer.p)
    return x.map(lambda part: part * mask)


@rule(nn.Linear, nn.Conv1d, nn.Conv2d, Conv1d, Conv2d)
def _affine(layer: Any, along: Callable[[Tensor], Taylor], x: Taylor) -> Taylor:
    """Wx + b: all parts pass through W in one call, value and first through u's part of W in another.

    Images pass one by one: to join them takes longer than further calls.
    """
    # Signals are joined and cut in the memory order that ``nme.derivatives.signals`` takes and gives.
    signals = isinstance(layer, nn.Conv1d)

    def turned(part: Tensor) -> Tensor:
        return part.transpose(1, 2) if signals else part

    def apply(parts: list[Tensor], weight: Tensor, bias: Tensor | None) -> list[Tensor]:
        function = functional.linear if isinstance(layer, nn.Linear) else layer._conv_forward
        if isinstance(layer, nn.Conv2d):
            return [function(part, weight, bias) for part in parts]
        stacked = turned(torch.cat([turned(part) for part in parts])) if len(parts) > 1 else parts[0]
        return [turned(part) for part in turned(function(stacked, weight, bias)).chunk(len(parts))]

    parts = [part for part in x.parts if part is not None]  # an input has a value alone
    value, *rest = apply(parts, layer.weight, None)
    first, second = [*rest, None, None][:2]
    weight = along(layer.weight)
    if weight.first is not None:
        moved, *further = apply(parts[:2], weight.first, None)
        first = _sum(first, moved)
        if further:
            second = 2 * further[0] if second is None else torch.add(second, further[0], alpha=2)
    if layer.bias is None:
        return Taylor(value, first, second)
    column = (-1, *(1 for _ in range(value.dim() - 2))) if not isinstance(layer, nn.Linear) else (-1,)
    return Taylor(value, first, second) + along(layer.bias).map(lambda b: b.view(column))


@rule(nn.BatchNorm1d, nn.BatchNorm2d, BatchNorm1d, BatchNorm2d)
def _batch_norm(layer: Any, along: Callable[[Tensor], Taylor], x: Taylor) -> Taylor:
    """(x − mean)/√(variance + ε)·w + b, with the batch's statistics in train mode."""
    dtype, others = x.dtype, [d for d in range(x.value.dim()) if d != 1]
    column = (-1, *(1 for _ in others[1:]))
    x = x.to(torch.promote_types(dtype, torch.float32))
    own_statistics = layer.training or layer.running_mean is None
    if own_statistics and x.value.dim() == 4 and x.first is not None and not custom_derivatives_disabled():
        (w, w1, _), (b, b1, _) = _materialised(along(layer.weight)), _materialised(along(layer.bias))
        return Taylor(*taylor_batch_norm(*_materialised(x), w, w1, b, b1, layer.eps)).to(dtype)
    if own_statistics:
        centred = x.map(lambda part: part - part.mean(others, keepdim=True))
        variance = _mean_square(centred, others)
    else:
        centred = x + Taylor(-layer.running_mean.view(column))
        variance = Taylor(layer.running_var.view(column))
    weight, bias = (along(p).map(lambda part: part.view(column)) for p in (layer.weight, layer.bias))
    # By channel first: x is multiplied once.
    scale = _inverse_root(variance + Taylor(torch.full_like(variance.value, layer.eps))) * weight
    return (centred * scale + bias).to(dtype)


def _mean_square(x: Taylor, dimensions: list[int]) -> Taylor:
    """The mean of x²: of x², 2 x x' and 2 (x'² + x x'')."""

    def mean(part: Tensor) -> Tensor:
        return part.mean(dimensions, keepdim=True)

    value, first, second = x.parts
    if first is None:
        return Taylor(mean(value.square()))
    bent = first.square() if second is None else first.square() + value * second
    return Taylor(mean(value.square()), 2 * mean(value * first), 2 * mean(bent))


def _inverse_root(x: Taylor) -> Taylor:
    """1/√x."""
    root = x.value.rsqrt()
    if x.first is None:
        return Taylor(root)
    cube = root**3
    second = 0.75 * cube * root.square() * x.first.square()
    return Taylor(root, -0.5 * cube * x.first, second if x.second is None else second - 0.5 * cube * x.second)


@rule(Activate)
def _activate(layer: Activate, along: Callable[[Tensor], Taylor], x: Taylor) -> Taylor:
    """φ(x), φ'(x) x' and φ''(x) x'² + φ'(x) x''."""
    return Taylor(*_Activation.apply(*_materialised(x), layer.activation))


def _materialised(x: Taylor) -> tuple[Tensor, Tensor, Tensor]:
    """The parts, with zeros for None."""
    value, *others = x.parts
    first, second = (torch.zeros_like(value) if part is None else part for part in others)
    return value, first, second


class _Activation(Function):
    """The three parts of φ(x(t)); φ' and φ'' are computed once, for the reverse pass too."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, x1: Tensor, x2: Tensor, activation: Activation) -> tuple[Tensor, Tensor, Tensor]:
        slope = activation.first(x)
        ctx.activation = activation
        if activation.piecewise_linear:  # φ'' = 0
            ctx.save_for_backward(slope)
            return activation.value(x), slope * x1, slope * x2
        bend = activation.second(x)
        ctx.save_for_backward(x, x1, x2, slope, bend)
        return activation.value(x), slope * x1, x1.square().mul_(bend).add_(slope * x2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, y: Tensor, y1: Tensor, y2: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        if ctx.activation.piecewise_linear:
            (slope,) = ctx.saved_tensors
            return y * slope, y1 * slope, y2 * slope, None
        x, x1, x2, slope, bend = ctx.saved_tensors
        third = ctx.activation.third(x)
        y2x1 = y2 * x1
        to_x = (y1 * x1).add_(y2 * x2).mul_(bend).add_(y * slope).add_((third * y2x1).mul_(x1))
        return to_x, (y1 * slope).add_(y2x1.mul_(bend), alpha=2), y2 * slope, None
