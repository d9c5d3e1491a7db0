"""State of PyTorch and of the model while curvature is computed; all of it is restored afterwards.

``fixed`` is entered where a batch is linearised: results must not depend on what the caller has switched on. Products
use the graph that was made there; ``steady`` protects them from the little that acts on a graph's backward passes, and
costs nothing where there is none of it.
"""

import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from nme.curvature.state import restored
from nme.derivatives.attention import plain_attention
from nme.derivatives.modes import differentiated_twice
from nme.derivatives.running_statistics import frozen_statistics


@contextmanager
def fixed(model: nn.Module, batch_norm: str, device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Inside, the model is in the mode asked for, and PyTorch computes in ``dtype`` with derivatives of second order.

    Gradients are on; autocast, inference mode, TF32, fused attention and compilers are off; new tensors are made on
    ``device`` in ``dtype``; running statistics are frozen. What a forward pass writes to attributes of modules is
    restored, as are the modes.

    Args:
        model: is in eval mode inside, but for batch norm if ``batch_norm`` is 'train'.
        batch_norm: 'eval' or 'train'.
        device: where the model is.
        dtype: of its parameters.
    """
    modules = list(model.modules())
    with ExitStack() as stack:
        stack.enter_context(restored(modules))
        for module in modules:
            if isinstance(module, torch.jit.ScriptModule):  # keeps its mode elsewhere
                stack.callback(setattr, module, "training", module.training)
        stack.enter_context(steady(device))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(plain_attention())
        stack.enter_context(_defaults(device, dtype))
        stack.enter_context(frozen_statistics(model))
        stack.enter_context(differentiated_twice())
        if any(
            issubclass(kind, nn.RNNBase) for kind in set(map(type, modules))
        ):  # fused kernels have no second derivative
            stack.enter_context(_unfused())
        for module in modules:
            module.training = batch_norm == "train" and isinstance(module, nn.modules.batchnorm._BatchNorm)
            if getattr(module, "sparse", False) and isinstance(module, nn.Embedding | nn.EmbeddingBag):
                module.sparse = False  # gradients of parameters are dense
        yield


def steady(device: torch.device) -> AbstractContextManager[object]:
    """Context of a product: inside, autocast, inference mode, TF32 and compilers are off and gradients on."""
    usual = torch.is_grad_enabled() and not torch.is_inference_mode_enabled()
    usual = usual and not torch._C._is_any_autocast_enabled() and _precise(device)
    return _eager() if usual else _steadied({device.type, "cpu"} - {"meta"})


def _eager() -> AbstractContextManager[object]:
    """Context in which compiled modules and functions run as they are: compiled, they have no second derivative."""
    compiling = "torch._dynamo" in sys.modules  # imported by ``torch.compile``, in seconds
    return torch.compiler.set_stance("force_eager") if compiling else nullcontext()


@contextmanager
def _steadied(kinds: set[str]) -> Iterator[None]:
    with ExitStack() as stack:
        stack.enter_context(_eager())
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for kind in kinds:
            stack.enter_context(torch.autocast(kind, enabled=False))
        stack.enter_context(_full_precision())
        yield


def _precisions() -> list[Any]:
    backends: Any = torch.backends
    return [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul, backends.mkldnn.conv]


def _precise(device: torch.device) -> bool:
    """True if products of float32 matrices are computed in float32: neither TF32 nor bfloat16."""
    get = torch._C._get_fp32_precision_getter  # what the properties above read, in a tenth of the time
    if device.type != "cuda":
        return get("mkldnn", "matmul") in ("none", "ieee") and get("mkldnn", "conv") in ("none", "ieee")
    return all(get("cuda", kind) == "ieee" for kind in ("matmul", "conv", "rnn"))


@contextmanager
def _full_precision() -> Iterator[None]:
    parts = _precisions()
    before = [part.fp32_precision for part in parts]
    try:
        for part in parts:
            part.fp32_precision = "ieee"
        yield
    finally:
        for part, own in zip(parts, before, strict=True):
            part.fp32_precision = own


@contextmanager
def _unfused() -> Iterator[None]:
    own = torch._C._get_cudnn_enabled(), torch._C._get_mkldnn_enabled()
    try:
        torch._C._set_cudnn_enabled(False)
        torch._C._set_mkldnn_enabled(False)
        yield
    finally:
        torch._C._set_cudnn_enabled(own[0])
        torch._C._set_mkldnn_enabled(own[1])


@contextmanager
def _defaults(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Inside, tensors are made on this device, in this dtype, and attention takes no fused path."""
    own, fast = torch.get_default_dtype(), torch.backends.mha.get_fastpath_enabled()
    other = device.type != "meta" and torch.get_default_device() not in (device, torch.device("cpu"))
    try:
        torch.set_default_dtype(dtype)
        torch.backends.mha.set_fastpath_enabled(False)
        with device if other else nullcontext():
            yield
    finally:
        torch.set_default_dtype(own)
        torch.backends.mha.set_fastpath_enabled(fast)
