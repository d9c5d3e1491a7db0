"""Attention with second derivatives."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch.backends import cuda

_FUSED = [
    (cuda.flash_sdp_enabled, cuda.enable_flash_sdp),
    (cuda.mem_efficient_sdp_enabled, cuda.enable_mem_efficient_sdp),
    (cuda.cudnn_sdp_enabled, cuda.enable_cudnn_sdp),
]


@contextmanager
def plain_attention() -> Iterator[None]:
    """Inside, attention takes PyTorch's MATH kernel, on every device: the others have no second derivative.

    As ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``, in less time.
    """
    math, fused = cuda.math_sdp_enabled(), [enabled() for enabled, _ in _FUSED]
    try:
        cuda.enable_math_sdp(True)
        for _, enable in _FUSED:
            enable(False)
        yield
    finally:
        cuda.enable_math_sdp(math)
        for (_, enable), before in zip(_FUSED, fused, strict=True):
            enable(before)
