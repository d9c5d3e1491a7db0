"""Attention with second derivatives."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_FUSED = [
    (torch._C._get_flash_sdp_enabled, torch._C._set_sdp_use_flash),
    (torch._C._get_mem_efficient_sdp_enabled, torch._C._set_sdp_use_mem_efficient),
    (torch._C._get_cudnn_sdp_enabled, torch._C._set_sdp_use_cudnn),
    (torch._C._get_overrideable_sdp_enabled, torch._C._set_sdp_use_overrideable),
]


@contextmanager
def plain_attention() -> Iterator[None]:
    """Inside, attention takes PyTorch's MATH kernel: the others have no second derivative.

    As ``torch.nn.attention.sdpa_kernel(SDPBackend.MATH)``, in less time.
    """
    math, fused = torch._C._get_math_sdp_enabled(), [enabled() for enabled, _ in _FUSED]
    try:
        torch._C._set_sdp_use_math(True)
        for _, enable in _FUSED:
            enable(False)
        yield
    finally:
        torch._C._set_sdp_use_math(math)
        for (_, enable), before in zip(_FUSED, fused, strict=True):
            enable(before)
