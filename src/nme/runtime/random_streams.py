"""Random streams: each is a function of the seed, a purpose and a position, so there is no generator state to save.

Separate purposes (init, order, augment, noise) have streams of their own, and a stream does not depend on the
activation, the method or the strength: the same seed means the same start and the same data order in every cell
(docs/theory.md, §8.1).
(PyTorch's CPU generator takes the low 32 bits of a seed, so among 10⁵ streams one pair may coincide; nothing rests on
there being none.)
"""

import hashlib

import torch


def derived_seed(seed: int, purpose: str, *position: int) -> int:
    """A 63-bit seed for one stream."""
    text = "/".join(map(str, (seed, purpose, *position)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, purpose: str, *position: int) -> torch.Generator:
    """A generator on the CPU, so that choices do not depend on the device."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, *position))
