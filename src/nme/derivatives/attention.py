"""Attention with second derivatives."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch.backends import cuda

Switch = tuple[Callable[[], bool], Callable[[bool], None]]  # of a kernel: is it allowed, and allow it or not

_KERNELS: list[Switch] = [
    (cuda.math_sdp_enabled, cuda.enable_math_sdp),
    (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
    (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
]


@contextmanager
def plain_attention() -> Iterator[None]:
    """Inside, attention takes PyTorch's MATH kernel, on every device: the others have no second derivative.

    As ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``, in less time.
    """
    before = [allowed() for allowed, _ in _KERNELS]
    try:
        for (_, allow), wanted in zip(_KERNELS, (True, False, False, False), strict=True):
            allow(wanted)
        yield
    finally:
        for (_, allow), own in zip(_KERNELS, before, strict=True):
            allow(own)
