"""Vectors in parameter space, as lists of one tensor per parameter: probes, displacements and norms."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from nme.errors import NmeError
from nme.runtime.transfer import send


@contextmanager
def displaced(
    parameters: list[nn.Parameter], displacement: list[Tensor], times: float = 1, reuse: bool = False
) -> Iterator[None]:
    """Inside, the parameters are θ + times · displacement; outside they are θ again, even after an exception.

    Autograd does not notice the change: differentiate a graph inside if and only if it was built inside. With ``reuse``
    the displacement's own memory may be taken, if it is not needed any more.
    """
    before = [p.data for p in parameters]
    # Exchanged, not added in place: one pass over memory instead of three (copy, sum, restore).
    if reuse and times == 1 and all(map(_same_memory_order, displacement, before)):
        moved = displacement
        torch._foreach_add_(moved, before)
    else:
        moved = list(torch._foreach_add(before, displacement, alpha=times))
    del displacement  # perhaps the last reference
    try:
        for p, data in zip(parameters, moved, strict=True):
            p.data = data
        yield
    finally:
        for p, data in zip(parameters, before, strict=True):
            p.data = data


def _same_memory_order(a: Tensor, b: Tensor) -> bool:
    """True if a + b is sure to have it, too: strides of dimensions of size 1 may change, and with them the kernels."""
    return a.stride() == b.stride() and 1 not in a.shape


def rademacher(parameters: list[nn.Parameter], stream: torch.Generator) -> list[Tensor]:
    """Draw a probe u with independent entries ±1 for each parameter; E u uᵀ = I. Each random bit is used."""
    _refuse_complex(parameters)
    count = sum(p.numel() for p in parameters)
    octets = torch.randint(256, (-(-count // 8),), generator=stream, dtype=torch.uint8)
    if parameters[0].device.type == "cpu":
        bits = torch.from_numpy(np.unpackbits(octets.numpy(), count=count))
    else:  # unpacked on the device: a thirty-second of the bytes are copied, and the CPU has little to do
        bits = unpacked(send(octets, parameters[0].device))[:count]
    return _shaped(parameters, bits.float().mul_(2).sub_(1))


def unpacked(octets: Tensor) -> Tensor:
    """The bits of bytes, on their device, in the order of ``numpy.unpackbits``: (n,) ↦ (8 n,), uint8."""
    places = torch.arange(7, -1, -1, dtype=torch.uint8, device=octets.device)
    return octets[:, None].bitwise_right_shift(places).bitwise_and_(1).flatten()


def normal(parameters: list[nn.Parameter], stream: torch.Generator) -> list[Tensor]:
    """Draw a probe ε ~ N(0, I)."""
    _refuse_complex(parameters)
    entries = torch.randn(sum(p.numel() for p in parameters), generator=stream)
    return _shaped(parameters, send(entries, parameters[0].device))


def _refuse_complex(parameters: list[nn.Parameter]) -> None:
    if any(p.is_complex() for p in parameters):
        raise NmeError("parameters are complex, and probes are real (expected: real parameters, torch.view_as_complex)")


def _shaped(parameters: list[nn.Parameter], entries: Tensor) -> list[Tensor]:
    parts = entries.to(parameters[0].dtype).split_with_sizes([p.numel() for p in parameters])
    return [part.view_as(p).to(p.dtype) for part, p in zip(parts, parameters, strict=True)]


def uniform(shape: tuple[int, ...], stream: torch.Generator) -> Tensor:
    """Draw numbers from [0, 1), float64, on the CPU; in pinned memory if the process computes on a GPU."""
    # A copy to the GPU then waits for nothing. PyTorch has no types here.
    pinned = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return torch.rand(shape, generator=stream, dtype=torch.float64, pin_memory=pinned)


@torch.no_grad()
def norm(tensors: list[Tensor]) -> Tensor:
    """Euclidean norm of all entries together, accumulated and returned in float32 or wider; without graph."""
    wide = torch.float32
    for kind in {t.dtype for t in tensors}:
        wide = torch.promote_types(wide, kind)
    # In pieces: on a CPU a sum of 10⁶ squares in float32 is off by 10⁻⁴. PyTorch has no types for ``split``.
    pieces: list[Tensor] = []
    for t in tensors:
        pieces += (t,) if t.numel() <= 2**16 else t.reshape(-1).split(2**16)  # type: ignore[no-untyped-call]
    pieces = [piece if piece.dtype == pieces[0].dtype else piece.to(wide) for piece in pieces]
    size: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(pieces, dtype=wide)))
    return size
