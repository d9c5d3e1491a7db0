"""Data and models of a few numbers each, in float64, always the same ones."""

import torch
from torch import nn


def normal(*shape, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*shape, classes=3, seed=2):
    return torch.randint(classes, shape, generator=torch.Generator().manual_seed(seed))


class Of(nn.Module):
    """A module by its parts, attributes and forward pass."""

    def __init__(self, forward, **parts):
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)
        self._forward = forward

    def forward(self, *arguments, **keywords):
        return self._forward(self, *arguments, **keywords)


def seeded(build):
    """What ``build`` gives, with the same random numbers each time, and in float64."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build().double()
