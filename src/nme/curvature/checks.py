"""Checks of an operator: the model and loss of the user; one fixed and symmetric operator.

See docs/is-my-number-right.md.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from nme.curvature import rounding
from nme.curvature.batches import cast
from nme.curvature.linearised import Linearised
from nme.curvature.network import Network, brief
from nme.derivatives.graphs import dtypes, leaves, nodes, refuse_once_differentiable
from nme.derivatives.losses import AnyLoss, BinaryCrossEntropy, CrossEntropy, Loss, SquaredError
from nme.errors import NmeError


class Pass(NamedTuple):
    """What one pass over the data gives: products with a vector, the gradient, shape (P,) each, and the loss."""

    hessian: Tensor
    gauss_newton: Tensor
    nme: Tensor
    gradient: Tensor
    loss: Tensor


def vectors(size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Two random vectors (P,), always the same ones."""
    generator = torch.Generator("cpu").manual_seed(0)
    u, v = (torch.randn(size, generator=generator, device="cpu", dtype=torch.float32) for _ in range(2))
    return u.to(device), v.to(device)


def loss_of_output_alone(network: Network, loss: Loss, linearised: Linearised) -> None:
    """Raise if the loss depends on the variables other than by the output, since all derivatives would miss that.

    Raises:
        NmeError: names the parameter; or the loss has no second derivative.
    """
    own = dict(network.model.named_parameters())
    variables = {id(own[name]): name for name in network.names}
    z = linearised.z.detach().clone().requires_grad_()
    value = loss.value(z, linearised.target)
    for leaf in leaves(value):
        if id(leaf) in variables:
            raise NmeError(
                f"the loss reads parameter '{variables[id(leaf)]}' of the model, and derivatives miss that (expected: a"
                " function of output and target; the Hessian of weight decay, λI for λ/2 ‖θ‖², is added afterwards)"
            )
    if isinstance(loss, AnyLoss) and value.requires_grad:
        slopes = torch.autograd.grad(value, [z], create_graph=True, materialize_grads=True)
        refuse_once_differentiable(slopes, "loss")


def hidden_weights(network: Network, output: Tensor, plain: Tensor) -> None:
    """Raise if the output depends on tensors with a gradient that are not the parameters that were replaced.

    Tensors that the model makes anew in each pass are none, unless they are parameters: it differentiates in them. If
    parameters were chosen, only those are looked for.

    Args:
        network: the model.
        output: with replaced parameters.
        plain: with the model's own.

    Raises:
        NmeError: names them.
    """
    if any(node.name() == "CheckpointFunctionBackward" for node in nodes([output])):
        raise NmeError("a checkpoint of the model is reentrant, so derivatives miss its weights (use_reentrant=False)")
    if network.entire and not output.requires_grad:
        raise NmeError("the model's output does not depend on its parameters (no_grad or inference_mode in the model?)")
    replaced, again = {id(p) for p in network.parameters}, leaves(plain)
    own, lasting = {id(p): name for name, p in network.model.named_parameters()}, {id(leaf) for leaf in again}
    foreign = [leaf for leaf in again if isinstance(leaf, nn.Parameter) and id(leaf) not in own]
    for leaf in [leaf for leaf in leaves(output) if id(leaf) in lasting and id(leaf) not in replaced] + foreign:
        which = own.get(id(leaf))
        if not network.entire and which not in network.names:
            continue
        name = f"parameter '{which}'" if which else f"a tensor of shape {tuple(leaf.shape)}"
        problem = "outside its place in the module" if which else "that is not a parameter of the model"
        raise NmeError(f"the model uses {name} {problem} (in a list, dict or closure?), so derivatives miss it")


def same_as_plain(
    network: Network,
    loss: Loss,
    given: Any,
    batch: Any,
    linearised: Linearised,
    recomputed: Callable[[torch.dtype], list[Tensor] | None],
) -> None:
    """Raise unless loss and gradient of a batch are those of the user's loss of the model, differentiated plainly.

    Args:
        network: the model.
        loss: of the operator.
        given: the loss as the user gave it.
        batch: what ``network`` is called with.
        linearised: that batch.
        recomputed: gives the gradients of that batch in a dtype; None if the model cannot be computed in it.

    Raises:
        NmeError: names the parameter, or the two losses.
    """
    # In another dtype, the model's own parameters would lose the hooks of DistributedDataParallel.
    single = network.dtype == torch.float64 and {p.dtype for p in network.model.parameters()} == {torch.float32}
    same = network.copied(torch.float32) if single else network
    with same.copied_into_model() as own, torch.enable_grad():
        output, target = same.plain(batch)
        hidden_weights(network, linearised.z, output)
        target = cast(target, same.device, same.dtype)
        value = loss.value(output, target)
        _finite(value.detach())
        with same.prepared():  # a backward pass may compute parts of the model again
            try:
                gradients = torch.autograd.grad(value, list(own.values()), allow_unused=True)
            except RuntimeError as error:
                raise NmeError(f"the loss of the model cannot be differentiated: {brief(error)}") from error
    limit = rounding.tolerance(same.dtype)
    if isinstance(given, nn.Module) and type(loss) in (CrossEntropy, SquaredError, BinaryCrossEntropy):
        target = loss.target(output, target)
        theirs = deepcopy(given).to(output.device, output.dtype)(output.detach(), target).detach()
        if not torch.allclose(theirs, value.detach(), rtol=limit, atol=limit * 1e-2, equal_nan=True):
            raise NmeError(f"the loss gives {float(theirs):.6g}, its closed form {float(value):.6g}")
    ours = [w.detach() for w in linearised.w]
    plain = [torch.zeros_like(w) if g is None else g for g, w in zip(gradients, ours, strict=True)]
    if single and _differing(plain, ours, limit) and (rounded := recomputed(torch.float32)):
        ours = rounded  # like with like
    differing = _differing(plain, ours, limit)
    summands = linearised.uncancelled() if differing else []
    # Near an optimum the gradient is all rounding.
    unit = rounding.of_sums(same.dtype)
    differing = {k: d for k, d in differing.items() if not d <= unit * float(summands[k].norm())}
    if not differing:
        return
    low = sorted({"torch.bfloat16", "torch.float16"} & set(map(str, dtypes(linearised.z))))
    if same.dtype == torch.float32 and not low:
        differing = rounding.not_explained(differing, plain, network.names, recomputed)
    for k in differing:
        reason = "does the model keep weights in a list, dict, closure or cache? do model or loss draw random numbers?"
        if low:
            reason = f"the model computes in {low[0]}: autocast inside of it?"
        if own[network.names[k]]._backward_hooks:
            reason = "a hook of the parameter changes its gradient"
        raise NmeError(
            f"parameter '{network.names[k]}': its gradient of norm {float(plain[k].norm()):.4g} is"
            f" {float(ours[k].norm()):.4g} where the parameter is replaced by a copy ({reason})"
        )


def _differing(plain: list[Tensor], ours: list[Tensor], limit: float) -> dict[int, float]:
    """Norms of the differences that are more than ``limit`` of a gradient, by number of the parameter."""
    size = max(float(g.norm()) for g in plain)
    differences = {k: float((a - b).norm()) for k, (a, b) in enumerate(zip(plain, ours, strict=True))}
    return {k: d for k, d in differences.items() if not d <= limit * max(float(plain[k].norm()), 1e-2 * size) + 1e-30}


def _finite(loss: Tensor) -> None:
    if not bool(torch.isfinite(loss)):
        raise NmeError(f"the loss is {float(loss):g} (expected a finite number); are there NaN in data or parameters?")


def repeatable_and_symmetric(
    first: Pass, second: Pass, u: Tensor, v: Tensor, dtype: torch.dtype, uncancelled: Callable[[], tuple[float, float]]
) -> None:
    """Raise unless two passes over the data, with u and with v, show one symmetric operator.

    Args:
        first: with u.
        second: with v.
        u: shape (P,).
        v: shape (P,).
        dtype: the least precise one that it computes in.
        uncancelled: gives the size of what the gradient adds up, for a gradient that vanishes, and ⟨z, ∇²_z ℓ · z⟩,
            for a loss that does: relative errors ε of the output z change it by half of ε² times this.

    Raises:
        NmeError: the operator changes from pass to pass, is not symmetric, or has values that are not finite.
    """
    gradient, loss, again, other = first.gradient, first.loss, second.gradient, second.loss
    limit = rounding.tolerance(dtype)
    _finite(loss)
    if not all(torch.isfinite(part).all() for part in (*first, *second)):
        raise NmeError("the derivatives are not all finite (is there a square root, logarithm or division at 0?)")
    moved, difference = float((gradient - again).norm()), float((loss - other).abs())
    allowed, allowed_of_loss = limit * float(gradient.norm()) + 1e-30, limit * float(loss.abs()) + 1e-30
    if moved > allowed or difference > allowed_of_loss:
        size, curvature = uncancelled()
        allowed = max(allowed, rounding.of_sums(dtype) * size)
        allowed_of_loss = max(allowed_of_loss, rounding.of_sums(dtype) ** 2 * curvature)
    if moved > allowed or difference > allowed_of_loss:
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
