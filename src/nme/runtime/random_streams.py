"""Random streams: each is a function of the seed, a purpose and a position, so there is no generator state to save.

Each purpose (init, order, augment, noise) has its own stream, and a stream does not depend on the activation, the
method or the strength: the same seed means the same initialisation and the same data order in every cell
(docs/theory.md, §8.1).
(PyTorch's CPU generator takes the low 32 bits of a seed, so two of 10⁵ streams may coincide; no result relies on their
being distinct.)
"""

import hashlib

import torch


def derived_seed(seed: int, purpose: str, *position: int) -> int:
    """63-bit seed for one stream."""
    text = "/".join(map(str, (seed, purpose, *position)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def stream(seed: int, purpose: str, *position: int) -> torch.Generator:
    """Generator on the CPU, so that random choices do not depend on the device."""
    return torch.Generator().manual_seed(derived_seed(seed, purpose, *position))
