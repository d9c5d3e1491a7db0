"""Checks of an operator: the model and loss of the user, fixed, symmetric, and the derivative of the gradient.

See docs/is-my-number-right.md.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from nme.curvature.linearised import Linearised
from nme.curvature.network import Network, brief
from nme.derivatives.activate import Activate
from nme.derivatives.losses import BinaryCrossEntropy, CrossEntropy, Loss, SquaredError
from nme.errors import NmeError


class Pass(NamedTuple):
    """What one pass over the data gives: products with a vector, the gradient, shape (P,) each, and the loss."""

    hessian: Tensor
    gauss_newton: Tensor
    nme: Tensor
    gradient: Tensor
    loss: Tensor


class Operator(Protocol):
    """What a finite difference needs of a ``Curvature``."""

    size: int
    device: torch.device
    network: Network
    parameters: list[Tensor]

    def hessian_product(self, vectors: Tensor) -> Tensor: ...  # noqa: D102
    def gradient(self) -> Tensor: ...  # noqa: D102
    def move(self, parameters: list[Tensor]) -> None: ...  # noqa: D102
    def split(self, vector: Tensor) -> list[Tensor]: ...  # noqa: D102


def vectors(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two random vectors (P,), always the same ones."""
    generator = torch.Generator("cpu").manual_seed(0)
    u, v = (torch.randn(size, generator=generator, device="cpu", dtype=torch.float32) for _ in range(2))
    return u.to(device), v.to(device)


def tolerance(dtype: torch.dtype) -> float:
    """Largest relative difference that rounding may explain."""
    return 1e-7 if dtype == torch.float64 else 2e-3


def hidden_weights(network: Network, output: Tensor) -> None:
    """Raise if the output depends on tensors with a gradient that are not the parameters that were replaced.

    Raises:
        NmeError: names them.
    """
    known = {id(p) for p in network.parameters}
    own = {id(p): name for name, p in network.model.named_parameters()}
    seen, stack = set(), [output.grad_fn] if output.grad_fn is not None else []
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        leaf = getattr(node, "variable", None)
        if leaf is not None and id(leaf) not in known:
            which = own.get(id(leaf))
            name = f"parameter '{which}'" if which else f"a tensor of shape {tuple(leaf.shape)}"
            problem = "outside its place in the module" if which else "that is not a parameter of the model"
            raise NmeError(f"the model uses {name} {problem} (in a list, dict or closure?), so derivatives miss it")
        stack.extend(following for following, _ in node.next_functions if following is not None)


def same_as_plain(
    network: Network, loss: Loss, given: Any, batch: Any, linearised: Linearised, moved: Callable[[Any], Any]
) -> None:
    """Raise unless loss and gradient of a batch are those of the user's loss of the model, differentiated plainly.

    Raises:
        NmeError: names the parameter, or the two losses.
    """
    with network.copied_into_model() as own, torch.enable_grad():
        output, target = network.plain(batch)
        target = moved(target)
        value = loss.value(output, target)
        _finite(value)
        with network.prepared():  # a backward pass may compute parts of the model again
            try:
                gradients = torch.autograd.grad(value, list(own.values()), allow_unused=True)
            except RuntimeError as error:
                raise NmeError(f"the loss of the model cannot be differentiated: {brief(error)}") from error
    limit = tolerance(network.dtype)
    if isinstance(given, nn.Module) and type(loss) in (CrossEntropy, SquaredError, BinaryCrossEntropy):
        target = loss.target(output, target)
        theirs = deepcopy(given).to(output.device, output.dtype)(output.detach(), target).detach()
        if not torch.allclose(theirs, value.detach(), rtol=limit, atol=limit * 1e-2, equal_nan=True):
            raise NmeError(f"the loss gives {float(theirs):.6g}, its closed form {float(value):.6g}")
    ours = [w.detach() for w in linearised.w]
    size = max((float(g.norm()) for g in gradients if g is not None), default=0.0)
    for name, plain, mine in zip(own, gradients, ours, strict=True):
        plain = torch.zeros_like(mine) if plain is None else plain
        if not (plain - mine).norm() <= limit * max(float(plain.norm()), 1e-2 * size) + 1e-30:
            raise NmeError(
                f"parameter '{name}': its gradient of norm {float(plain.norm()):.4g} is {float(mine.norm()):.4g} where"
                " the parameter is replaced by a copy (does the model keep weights in a list, dict, closure or cache,"
                " or draw random numbers?)"
            )


def _finite(loss: Tensor) -> None:
    if not bool(torch.isfinite(loss)):
        raise NmeError(f"the loss is {float(loss):g} (expected a finite number); are there NaN in data or parameters?")


def repeatable_and_symmetric(first: Pass, second: Pass, u: Tensor, v: Tensor, dtype: torch.dtype) -> None:
    """Raise unless two passes over the data, with u and with v, show one symmetric operator.

    Raises:
        NmeError: the operator changes from pass to pass, is not symmetric, or has values that are not finite.
    """
    gradient, loss, again, other = first.gradient, first.loss, second.gradient, second.loss
    limit = tolerance(dtype)
    _finite(loss)
    if not all(torch.isfinite(part).all() for part in (*first, *second)):
        raise NmeError("the derivatives are not all finite (is there a square root, logarithm or division at 0?)")
    moved = (gradient - again).norm() > limit * gradient.norm() + 1e-30
    if moved or not torch.allclose(loss, other, rtol=limit, atol=1e-30):
        raise NmeError(
            f"the loss is {float(loss):.8g} and {float(other):.8g} in two passes over the data, or its gradient"
            " changes: the operator is not fixed (shuffling with drop_last or with batch_norm='train', random"
            " augmentation, dropout without training=, random numbers in the model?)"
        )
    for symbol, au, av in zip("HGN", first[:3], second[:3], strict=True):
        across, back = (float(torch.dot(a.double(), b.double())) for a, b in ((au, v), (av, u)))
        scale = float(first.hessian.double().norm() + au.double().norm() + av.double().norm())
        if abs(across - back) > limit * scale:
            raise NmeError(
                f"{symbol} is not symmetric: uᵀ{symbol}v = {across:.6g}, vᵀ{symbol}u = {back:.6g} (second derivatives"
                " of an operation are wrong, such as torch's weight_norm, or values change from pass to pass)"
            )


def derivative_of_gradient(exact: Operator) -> None:
    """Raise unless Hv is the derivative of the gradient along v, by central differences.

    Several steps are tried, since a step may cross a kink of ReLU. Activations with prescribed second derivatives are
    not compared: their H is not that derivative by design.

    Raises:
        NmeError: Hv differs by more than 10⁻⁴ for every step.
    """
    model = exact.network.model
    if any(isinstance(m, Activate) and not m.activation.genuine for m in model.modules()):
        return
    v = torch.randn(exact.size, generator=torch.Generator("cpu").manual_seed(1), device="cpu").double().to(exact.device)
    product = exact.hessian_product(v)
    at = [p.detach().clone() for p in exact.parameters]
    length = max(float(torch.cat([p.reshape(-1) for p in at]).norm()), 1.0) / float(v.norm())
    errors = []
    try:
        for step in (1e-5, 1e-6, 1e-4, 1e-7):
            ends = []
            for sign in (1, -1):
                exact.move([p + sign * step * length * d for p, d in zip(at, exact.split(v), strict=True)])
                ends.append(exact.gradient())
            difference = (ends[0] - ends[1]) / (2 * step * length)
            scale = max(float(product.norm()), float(difference.norm()))
            errors.append(float((difference - product).norm()) / scale if scale > 1e-12 else 0.0)
            if errors[-1] < 1e-4:
                return
    finally:
        exact.move(at)
    layers = sorted({type(m).__name__ for m in model.modules() if next(m.parameters(recurse=False), None) is not None})
    raise NmeError(
        f"Hv differs from finite differences of the gradient by {min(errors):.2g} of its norm: second derivatives of an"
        f" operation are wrong, such as torch's weight_norm or a custom autograd Function (layers: {', '.join(layers)})"
    )
