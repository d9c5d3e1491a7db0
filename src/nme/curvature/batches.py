"""Data as users have them, as batches for a model: forms, micro-batches, and what cannot be used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from inspect import signature
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader, Dataset

from nme.derivatives.nested import mapped
from nme.errors import NmeError


class Batches:
    """Data as an iterable of batches, read in one pass each time.

    A batch is a pair (inputs, target); inputs are a tensor, or a tuple or dict of tensors, the model's arguments. With
    ``whole`` a batch is anything.

    Args:
        data: batches; a single batch may be given as a pair of tensors or arrays, or as a dict. With ``whole``, a
            single batch is a tuple or dict, and a list is a list of batches.
        model: whose arguments the inputs are.
        micro_batch: most examples at once.
        whole: batches are passed on as they are, but for arrays, which become tensors.

    Raises:
        NmeError: data that can be iterated only once, a ``Dataset``, or nothing that can be iterated.
    """

    def __init__(self, data: Any, model: nn.Module, micro_batch: int | None = None, whole: bool = False):
        if isinstance(data, Iterator):
            raise NmeError("data can be iterated only once (give a list, a DataLoader, or a pair of tensors)")
        if isinstance(data, Dataset) and not isinstance(data, DataLoader):
            raise NmeError("data is a Dataset of single examples (give DataLoader(dataset, batch_size=...))")
        if isinstance(data, Mapping) or (_is_single_whole(data) if whole else _is_pair(data) and _is_single(*data)):
            data = [data]
        if isinstance(data, Tensor | np.ndarray | str) or not isinstance(data, Iterable):
            found = type(data).__name__
            raise NmeError(f"data is {found} (allowed: batches (inputs, target), a DataLoader, a pair of tensors)")
        self.data, self.model, self.micro_batch, self.whole = data, model, micro_batch, whole

    @property
    def in_memory(self) -> bool:
        """True if a second pass gives the same objects."""
        return isinstance(self.data, list | tuple)

    @property
    def is_one(self) -> bool:
        """True if it is known that there is one batch, or parts of one."""
        return isinstance(self.data, list | tuple) and len(self.data) == 1

    def __iter__(self) -> Iterator[Any]:
        for number, batch in enumerate(self.data):
            if self.whole:
                yield mapped(batch, _tensor)
                continue
            if not _is_pair(batch):
                found = type(batch).__name__ + (f" of {len(batch)}" if isinstance(batch, Sequence) else "")
                several = "; a single pair whose target is no tensor goes in a list: [(inputs, target)]"
                raise NmeError(
                    f"batch {number} is a {found} (allowed: a pair (inputs, target), or give forward={several})"
                )
            inputs, target = arguments(batch[0], self.model), mapped(batch[1], _tensor)
            labelled = isinstance(target, Tensor) and target.dim() > 0
            examples = len(target) if labelled else _examples(inputs)
            if examples == 0:
                continue
            size = self.micro_batch
            if not size or size >= examples or not labelled:
                yield inputs, target
                continue
            for at in range(0, examples, size):
                part = slice(at, at + size)
                yield mapped(inputs, partial(_cut, part=part, examples=examples)), target[part]

    def check_parts(self, output: Callable[[Any], Tensor]) -> None:
        """Raise if an example's output depends on which others are in its part. Two examples at once, at least.

        Raises:
            NmeError: it does, or inputs cannot be cut.
        """
        for inputs, target in Batches(self.data, self.model):
            count = len(target) if isinstance(target, Tensor) and target.dim() else 0
            if count < 2:
                continue
            size = self.micro_batch or count
            if size >= count:
                continue  # is not cut
            more = min(max(size, 2), 4)
            few = 2 if more > 2 else 1  # one alone may lose a dimension by ``squeeze``
            alone, among = (
                output((mapped(inputs, partial(_cut, part=slice(n), examples=count)), target[:n])).detach()
                for n in (few, more)
            )
            if not alone.dim():
                raise NmeError("the model's output is one number, so micro_batch cannot cut it (leave micro_batch out)")
            among, limit = among[:few], 1e-3 if alone.dtype == torch.float32 else 1e-7
            if alone.shape != among.shape or (alone - among).abs().max() > limit * among.abs().max():
                raise NmeError(
                    "outputs of the model depend on which examples are computed together, so micro_batch would change"
                    " them (statistics of the batch, or an input that all examples share? leave micro_batch out)"
                )
            return


def arguments(inputs: Any, model: nn.Module) -> Any:
    """Inputs as a tensor, or as a tuple or dict of the model's arguments; a list counts as a tuple.

    ``DataLoader`` turns tuples into lists, so a list cannot be refused; but a list whose entries would be optional
    arguments of the model may be meant as one argument.

    Raises:
        NmeError: it is not known whether a list is one argument or several.
    """
    inputs = mapped(inputs, _tensor)
    if isinstance(inputs, PackedSequence):
        return (inputs,)
    if not isinstance(inputs, list):
        return inputs
    if any(parameter.default is not parameter.empty for parameter in _positional(model)[: len(inputs)]):
        raise NmeError(
            f"inputs are a list of {len(inputs)}: one argument of the model, or several? (give a tuple or dict for"
            " several, or forward=)"
        )
    return tuple(inputs)


def cast(value: Any, device: torch.device, dtype: torch.dtype) -> Any:
    """Copies of the tensors of a nesting on the device, those of floating point in this dtype."""

    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        own = leaf.detach().to(device, dtype if leaf.is_floating_point() else leaf.dtype)
        return own.clone() if own.is_inference() or _shares_memory(own, leaf) else own  # the model may write into it

    return mapped(value, move)


def _positional(model: nn.Module) -> list[Any]:
    try:
        parameters = signature(model.forward).parameters.values()
    except (TypeError, ValueError):  # compiled code has none
        return []
    return [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]


def _cut(leaf: Any, part: slice, examples: int) -> Any:
    """Some examples of an input; what has no examples is the same for all."""
    if not isinstance(leaf, Tensor) or not leaf.dim():
        return leaf
    if leaf.layout is not torch.strided or len(leaf) != examples:
        raise NmeError(
            f"an input has shape {tuple(leaf.shape)}, which micro_batch cannot cut into {examples} examples (allowed:"
            " inputs with as many rows as the target; make what all examples share a buffer of the model)"
        )
    return leaf[part]


def constant(target: Any) -> None:
    """Raise if a tensor of the target requires a gradient, which no derivative would contain.

    Raises:
        NmeError: says what to do.
    """

    def look(leaf: Any) -> None:
        if isinstance(leaf, Tensor) and leaf.requires_grad:
            raise NmeError(
                "the target requires a gradient (expected a constant: detach it, or return what depends on parameters"
                " as a part of the output)"
            )

    mapped(target, look)


def has_independent_examples(model: nn.Module) -> None:
    """Raise if a layer's statistics are those of the batch in eval mode, too, so that parts of it give other outputs.

    Raises:
        NmeError: names the layer.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is None:
            raise NmeError(f"layer '{name}' has no running statistics, so micro_batch would change them (leave it out)")


def _shares_memory(a: Tensor, b: Tensor) -> bool:
    return a.layout is not torch.strided or a.is_nested or a.data_ptr() == b.data_ptr()


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2


def _is_single(inputs: Any, target: Any) -> bool:
    """True if this is one batch, and not two."""
    return _is_tensor(target) and (_is_tensor(inputs) or isinstance(inputs, Mapping | tuple))


def _is_single_whole(data: Any) -> bool:
    """True for a tuple.

    One of nothing but tuples and dicts may be one batch or several, and so may a list of tensors of one length.

    Raises:
        NmeError: it is such a tuple or list.
    """
    tensors = isinstance(data, list) and len(data) > 1 and all(_is_tensor(part) and len(part.shape) for part in data)
    if tensors and len({len(part) for part in data}) == 1:
        raise NmeError(
            "data is a list of tensors of one length: one batch or several, with forward= (give a tuple for one batch,"
            " and a list of tuples or dicts for several)"
        )
    if not isinstance(data, tuple):
        return False
    if data and all(isinstance(part, tuple | list | Mapping) for part in data) and not hasattr(data, "_fields"):
        raise NmeError("data is a tuple of batches, or one batch, with forward= (give a list of batches)")
    return True


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray)


def _tensor(value: Any) -> Any:
    """An array of numbers as a tensor; anything else as it is."""
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "biufc":
        return value
    native = np.asarray(value, dtype=value.dtype.newbyteorder("="), order="C")
    try:
        return torch.from_numpy(native)
    except TypeError as error:
        raise NmeError(f"an array has dtype {value.dtype}, which PyTorch does not have") from error


def _examples(inputs: Any) -> int:
    if isinstance(inputs, Mapping):
        inputs = tuple(inputs.values())
    if isinstance(inputs, tuple):
        return _examples(inputs[0]) if inputs else 0
    return len(inputs) if isinstance(inputs, Tensor) and inputs.dim() else 1
