"""Norms of diagonal blocks of the NME (docs/theory.md, §7.4)."""

from itertools import islice

import torch
from torch import Tensor

from nme.curvature.curvature import Curvature
from nme.curvature.estimators import Estimate, Probes, known_curvature, root_of_mean
from nme.errors import NmeError, unknown

AT_ONCE = 8  # probes in one pass over the data; memory is two vectors each


def nme_block_norms(
    curvature: Curvature, blocks: dict[str, list[str]], probes: int, generator: torch.Generator
) -> dict[str, Estimate]:
    """‖N_ll‖_F of the diagonal block of each layer (docs/theory.md, §7.4).

    In a network whose output is linear in the parameters of any one layer but for activations (no batch norm), the
    diagonal blocks of N consist of terms with second derivatives of activations only (docs/theory.md, §1.3). They are
    not all of them: the second derivative in a later layer also couples the layers before it.
    Cost: 6 F a layer and probe, and 3 F a batch for every eight probes.


    Args:
        curvature: of all parameters.
        blocks: names of the parameters of each block, ``layers(model)`` or some of them; blocks do not overlap.
        probes: K.
        generator: of the probes; the same ones for every block.

    Raises:
        NmeError: a block has a parameter that ``curvature`` is not of, or that another block has.
    """
    known_curvature(curvature)
    masks = _masks(curvature, blocks)
    squares: dict[str, list[float]] = {block: [] for block in masks}
    drawn = Probes(curvature.size, probes, generator, "rademacher", curvature.dtype)
    stream = iter(drawn)
    while several := list(islice(stream, AT_ONCE)):
        found = curvature.nme_block_products(torch.stack(several, 1), list(masks.values()))
        for k in range(len(several)):
            for block, mask in masks.items():
                squares[block].append(found[mask, k].double().square().sum().item())
    return {block: root_of_mean(samples) for block, samples in squares.items()}


def _masks(curvature: Curvature, blocks: dict[str, list[str]]) -> dict[str, Tensor]:
    """Entries of each block, (P,), bool."""
    names_of_all = [name for names in blocks.values() for name in names]
    if len(set(names_of_all)) < len(names_of_all):
        raise NmeError("blocks overlap: a parameter is in two of them (allowed: each in one)")
    for block, names in blocks.items():
        for name in names:
            if name not in curvature.names:
                raise NmeError(f"block '{block}': {unknown('parameter', name, curvature.names)}")
    named = list(zip(curvature.names, (p.numel() for p in curvature.parameters), strict=True))
    return {
        block: torch.cat([torch.full((n,), name in names) for name, n in named]).to(curvature.device)
        for block, names in blocks.items()
        if names
    }
