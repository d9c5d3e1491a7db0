"""Activations of a given model replaced by registered ones, augmented and diminished ones included."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from nme.activations import ACTIVATIONS
from nme.derivatives.activate import Activate
from nme.errors import NmeError

FUNCTIONS = {
    "relu": (functional.relu, functional.relu_, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_),
    "gelu": (functional.gelu,),
    "silu": (functional.silu,),
    "elu": (functional.elu, functional.elu_),
    "leaky_relu": (functional.leaky_relu, functional.leaky_relu_),
    "hardswish": (functional.hardswish,),
    "softplus": (functional.softplus,),
    "clamp": (torch.clamp, torch.clamp_, Tensor.clamp, Tensor.clamp_),
    "clamp_min": (torch.clamp_min, torch.clamp_min_, Tensor.clamp_min, Tensor.clamp_min_),
    "relu6": (functional.relu6,),
    "threshold": (functional.threshold, torch.threshold, torch.threshold_),
    "hardtanh": (functional.hardtanh, functional.hardtanh_),
    "mish": (functional.mish,),
    "selu": (functional.selu, functional.selu_, torch.selu, torch.selu_),
    "celu": (functional.celu, functional.celu_, torch.celu, torch.celu_),
    "rrelu": (functional.rrelu, functional.rrelu_, torch.rrelu, torch.rrelu_),
    "prelu": (functional.prelu, torch.prelu, Tensor.prelu),
}
NAMES = {function: name for name, functions in FUNCTIONS.items() for function in functions}


def replace_activations(
    model: nn.Module,
    activation: str,
    inputs: Any = None,
    kinds: type[nn.Module] | tuple[type[nn.Module], ...] = nn.ReLU,
) -> list[str]:
    """Replace the activation modules of a model by a registered activation, in place (docs/theory.md, §5).

    Args:
        model: any module.
        activation: name with parameters, as ``gelu``, ``beta_gelu-beta=4`` or ``augmented_relu``.
        inputs: inputs of one forward pass, in eval mode, that finds activations called as functions, such as
            ``functional.relu``; None: they are not looked for. A tuple gives several arguments, a dict keywords. Not
            found are those that a model computes from other functions, as x · sigmoid(x).
        kinds: exact types of the modules to replace.

    Returns:
        Names of the modules that were replaced.

    Raises:
        NmeError: unknown activation, no such module, or a function that computes an activation, before any is replaced.
    """
    made = ACTIVATIONS.parse(activation)
    chosen = kinds if isinstance(kinds, tuple) else (kinds,)
    named = ", ".join(kind.__name__ for kind in chosen)
    places = [
        (f"{prefix}.{name}".lstrip("."), parent, name)
        for prefix, parent in model.named_modules()
        for name, child in parent._modules.items()  # a module in several places is replaced in each
        if type(child) in chosen
    ]
    if inputs is not None:
        calls = _functional_calls(model, inputs)
        if calls:
            raise NmeError(f"functions compute activations in {', '.join(calls)} (expected modules: {named})")
    if not places:
        raise NmeError(f"the model has no module of type {named}")
    for _, parent, name in places:
        setattr(parent, name, Activate(made).train(parent.training))
        if hasattr(parent, "activation_relu_or_gelu"):  # an encoder layer's fused path has an activation of its own
            parent.activation_relu_or_gelu = 0
    return [name for name, _, _ in places]


def _functional_calls(model: nn.Module, inputs: Any) -> list[str]:
    """Activations that are computed outside of activation modules, as ``layer1.0 (relu)``."""
    inside: list[tuple[str, nn.Module]] = []
    found: dict[str, None] = {}

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, function: Callable[..., Any], types: Any, arguments: tuple[Any, ...] = (), options: Any = None
        ) -> Any:
            if function in NAMES and inside and not _is_activation(inside[-1][1]):
                found[f"{inside[-1][0] or 'the model'} ({NAMES[function]})"] = None
            return function(*arguments, **(options or {}))

    with _entered(model, inside), Watch(), torch.enable_grad():  # without gradients some layers take fused paths
        if isinstance(inputs, Mapping):
            model(**inputs)
        else:
            model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    return list(found)


def _is_activation(module: nn.Module) -> bool:
    return isinstance(module, Activate) or (
        type(module).__module__ == "torch.nn.modules.activation" and not isinstance(module, nn.MultiheadAttention)
    )


@contextmanager
def _entered(model: nn.Module, inside: list[tuple[str, nn.Module]]) -> Iterator[None]:
    """The model is in eval mode; ``inside`` has the modules whose forward pass runs."""
    modes = [(module, module.training) for module in model.modules()]
    hooks = []
    for name, module in model.named_modules():
        hooks.append(module.register_forward_pre_hook(lambda m, _, name=name: inside.append((name, m))))
        hooks.append(module.register_forward_hook(lambda *_: inside.pop() and None))
    try:
        model.eval()
        yield
    finally:
        for hook in hooks:
            hook.remove()
        for module, training in modes:
            module.training = training
