"""A step in anyone's training loop: from a model, a loss and a batch to what methods take, and to ``.grad``."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from nme.derivatives import batch_norm
from nme.derivatives.batch import Batch, MicroBatches
from nme.derivatives.combining import AnyBatch
from nme.derivatives.evaluation import Evaluation, Facts, Forward, Habits
from nme.derivatives.loss import Loss
from nme.derivatives.losses import loss_of
from nme.derivatives.network_parts import modules_of
from nme.errors import NmeError
from nme.methods.result import Update

# As a parametrisation, and as a hook.
WEIGHT_NORMS = (_WeightNorm, WeightNorm)

# Of batch norm whose running statistics can be frozen; a subclass with its own may do anything.
STOCK_FORWARDS: set[object] = {
    kind.forward
    for kind in (nn.modules.batchnorm._BatchNorm, nn.SyncBatchNorm, batch_norm.BatchNorm1d, batch_norm.BatchNorm2d)
}

Prepared = tuple[nn.Module, AnyBatch, list[nn.Parameter], "torch.dtype | None"]


# What steps have shown of each model, by the kind of step; models by their ids, since any may compare as it likes.
_inspected: dict[int, tuple[ref[nn.Module], dict[Any, Habits]]] = {}
KINDS = 16  # kept for each model


def prepared(
    model: nn.Module,
    loss: Callable[[Tensor, Any], Tensor] | Loss,
    batches: list[Any],
    forward: Forward | None,
    method: type,
    order: int,
    pieces: bool,
) -> Prepared:
    """The model without its wrapper, the batch, the parameters with ``requires_grad``, and autocast's dtype.

    Raises:
        NmeError: something that cannot be used.
    """
    found = loss_of(loss)
    if torch.is_inference_mode_enabled():
        raise NmeError("torch.inference_mode() is on, where nothing has a gradient (expected: outside of it)")
    if not isinstance(model, nn.Module):
        raise NmeError(f"model is {type(model).__name__} (expected a torch.nn.Module)")
    group = None
    if isinstance(model, DistributedDataParallel):
        if not model.require_backward_grad_sync:
            raise NmeError("the model is in no_sync() (expected: all micro-batches in one call of accumulate)")
        group, model = model.process_group, model.module
    if parametrize._cache_enabled:
        raise NmeError("parametrize.cached() is on, and methods move the parameters (expected: inside of forward=)")
    modules = modules_of(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise NmeError("the model has no parameter with requires_grad=True")
    facts = _checked(modules, parameters, order, group is not None)
    autocast = _autocast(facts.device.type)
    if not batches:
        raise NmeError("there are no micro-batches (expected one or more)")
    if isinstance(batches[0], Batch):
        return model, batches[0]._replace(loss=found), parameters, None
    of_model, kinds = _inspected.get(id(model), (None, {}))
    same = of_model is not None and of_model() is model
    habits = kinds.get(_kind_of_step(model, loss, forward, method, parameters)) if same else None
    parts = [_part(batch, found, Evaluation(forward, autocast, order, facts, habits)) for batch in batches]
    whole = parts[0] if group is None and not pieces else MicroBatches(parts, group)
    return model, whole, parameters, autocast


def _kind_of_step(
    model: nn.Module, loss: object, forward: Forward | None, method: type, parameters: list[nn.Parameter]
) -> tuple[Any, ...]:
    return method, _lasting(loss), _lasting(forward), model.training, len(parameters)


def _lasting(function: Any) -> Any:
    """What tells a function from others, also one that is made anew in each step: ids are given again."""
    code = getattr(getattr(function, "__func__", function), "__code__", None)
    if code is not None or function is None:
        return code
    try:
        found = ref(function)
        hash(found)
    except TypeError:
        return object()  # another one at each step
    return found


def inspected(model: nn.Module, loss: object, forward: Forward | None, method: type, batch: AnyBatch) -> None:
    """Remember what this step has shown: the next one of the same kind is not inspected.

    A refused step is not remembered.
    """
    habits = Habits()
    for part in batch.parts():
        if part.evaluation is None or not part.evaluation.inspect:
            return
        habits = habits.or_of(part.evaluation.habits)
    number = id(model)
    of_model, kinds = _inspected.get(number, (None, {}))
    if of_model is None or of_model() is not model:
        kinds = {}
    if len(kinds) >= KINDS:
        kinds.clear()
    parameters = [p for p in model.parameters() if p.requires_grad]
    kinds[_kind_of_step(model, loss, forward, method, parameters)] = habits
    _inspected[number] = ref(model, lambda _: _inspected.pop(number, None)), kinds


def _part(batch: Any, loss: Loss, evaluation: Evaluation) -> Batch:
    if evaluation.forward is not None:
        return Batch(batch, None, None, loss, evaluation)
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        found = f"{len(batch)} parts" if isinstance(batch, tuple | list) else type(batch).__name__
        raise NmeError(f"batch is {found} (expected a pair: inputs, target; or give forward=)")
    return Batch(batch[0], batch[1], None, loss, evaluation)


def _checked(modules: list[nn.Module], parameters: list[nn.Parameter], order: int, distributed: bool) -> Facts:
    owners: list[nn.Module] = []
    batch_norms: list[nn.modules.batchnorm._BatchNorm] = []
    recurrent = False
    for module in modules:
        if order > 1:
            _check_differentiable(module, order)
        kind: type = type(module)
        if not _is_special(kind):
            if module._buffers:
                owners.append(module)
            continue
        if isinstance(module, DataParallel | DistributedDataParallel) or _kind(module) == "FullyShardedDataParallel":
            found = f"{_kind(module)} is not supported"
            raise NmeError(f"{found} (expected a plain model, or the whole model in DistributedDataParallel)")
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            if distributed and isinstance(module, nn.SyncBatchNorm) and module.training:
                raise NmeError("SyncBatchNorm in train mode is not supported (expected another batch norm, or none)")
            if module.training and module.track_running_stats:
                batch_norms.append(module)
                if not _can_be_frozen(module):
                    owners.append(module)
            continue
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
            raise NmeError(f"{_kind(module)} has sparse gradients (expected sparse=False)")
        recurrent = recurrent or isinstance(module, nn.RNNBase)
        if module._buffers:
            owners.append(module)
    others = [p for p in parameters if type(p) is not nn.Parameter]
    if any(isinstance(p, UninitializedParameter) for p in others):
        raise NmeError("a lazy layer has no parameters yet (expected: run the model once before)")
    if any(hasattr(p, "device_mesh") for p in others):
        raise NmeError("sharded parameters (FSDP, DTensor) are not supported (expected DistributedDataParallel)")
    if any(p.dtype == torch.float16 for p in parameters):
        raise NmeError("parameters are float16, whose gradients underflow (expected float32 or bfloat16)")
    return Facts(parameters, modules, owners, batch_norms, recurrent)


def _check_differentiable(module: nn.Module, order: int) -> None:
    if order > 2 and isinstance(module, torch.jit.ScriptModule):
        raise NmeError("third derivatives of a scripted model may be wrong in PyTorch (expected: the eager model)")
    if "_orig_mod" in module._modules or module._compiled_call_impl is not None:
        raise NmeError("a compiled model has no second derivative (give the model that was compiled)")
    hooks = module._forward_pre_hooks
    if isinstance(module, WEIGHT_NORMS) or (hooks and any(isinstance(h, WEIGHT_NORMS) for h in hooks.values())):
        raise NmeError("weight_norm has wrong second derivatives in PyTorch (remove it: remove_parametrizations)")


def _can_be_frozen(module: nn.modules.batchnorm._BatchNorm) -> bool:
    return type(module).forward in STOCK_FORWARDS and "forward" not in vars(module)


@lru_cache(maxsize=1024)  # bounded: parametrizations make a type for each layer
def _is_special(kind: type) -> bool:
    """True if modules of this type may be refused, or treated in their own way."""
    wrapper = issubclass(kind, DataParallel | DistributedDataParallel) or kind.__name__ == "FullyShardedDataParallel"
    return wrapper or issubclass(kind, nn.modules.batchnorm._BatchNorm | nn.Embedding | nn.EmbeddingBag | nn.RNNBase)


def _kind(module: nn.Module) -> str:
    return type(module).__name__


def _autocast(device: str) -> torch.dtype | None:
    if not torch.is_autocast_enabled(device):
        return None
    dtype: torch.dtype = torch.get_autocast_dtype(device)
    if dtype == torch.float16:
        raise NmeError("autocast has dtype float16, whose gradients underflow unscaled (expected torch.bfloat16)")
    return dtype


@contextmanager
def plain_mode(model: nn.Module, autocast: torch.dtype | None, order: int) -> Iterator[None]:
    """Inside, gradients are on, and autocast is off outside of forward passes.

    Raises:
        NmeError: PyTorch has no derivative of this order for a layer.
    """
    recorded = nullcontext() if torch.is_grad_enabled() else torch.enable_grad()
    device = "cpu" if autocast is None else next(model.parameters()).device.type
    with recorded, nullcontext() if autocast is None else torch.autocast(device, enabled=False):
        try:
            yield
        except (RuntimeError, NotImplementedError) as error:
            text = str(error).partition("\n")[0]
            if any(words in text for words in ("3rd+ order", "is not implemented", "double backward")):
                raise NmeError(
                    f"PyTorch has no derivative of order {order} for a layer of the model, or for the loss ({text})"
                ) from error
            if "torch.utils.checkpoint" in text:
                raise NmeError(f"checkpointing does not work here (expected: none; {text})") from error
            raise


def added_to_grad(parameters: list[nn.Parameter], step: Update) -> None:
    """Add the direction to ``.grad``, in the memory order of the parameters, which fused optimizers expect."""
    used = step.used or [True] * len(parameters)
    taken: set[int] = set()
    for p, d, depends in zip(parameters, step.direction, used, strict=True):
        if not depends:
            continue
        if p.grad is not None:
            p.grad += d
            continue
        place = d.data_ptr()
        if place in taken:  # autograd returns one tensor for parameters that are only added to each other
            p.grad = _like(p, d)
        else:
            taken.add(place)
            p.grad = d if d.stride() == p.stride() and d.dtype == p.dtype else _like(p, d)


def _like(parameter: Tensor, direction: Tensor) -> Tensor:
    return torch.empty_like(parameter, requires_grad=False).copy_(direction)
