"""Measure stage: curvature quantities of the networks that a training job kept, one row a quantity and probe.

To add a quantity: write a function and decorate it. Configurations, the stage and tests pick it up from ``QUANTITIES``.

This module is imported to check a configuration, where torch may be absent, so torch is imported where it computes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path

    import torch
    from torch import nn

    from nme.products import Batch


class Value(NamedTuple):
    """One measured number.

    Attributes:
        operator: H, G or N; empty where it is of none of them.
        layer: empty: of the whole network.
        probe: number of the random probe; -1: of none.
    """

    value: float
    operator: str = ""
    layer: str = ""
    probe: int = -1


Quantity = Callable[["nn.Module", "Batch", dict, int], Iterator[Value]]

QUANTITIES: dict[str, Quantity] = {}


def quantity(function: Quantity) -> Quantity:
    """Decorator: measure it under the function's name."""
    QUANTITIES[function.__name__] = function
    return function


@quantity
def second_derivatives(model: nn.Module, batch: Batch, settings: dict, seed: int) -> Iterator[Value]:
    """Fraction of hidden units and examples with |φ''| > 1e-3·max |φ''|, per layer and in all (paper.md §4, Figure 6).

    A network without hidden units yields nothing.
    """
    from nme.curvature.sparsity import nonzero_second_derivatives

    counts = nonzero_second_derivatives(model, batch.inputs)
    for layer, (nonzero, units) in counts.items():
        yield Value(nonzero / units, layer=layer)
    if counts:
        nonzero, units = map(sum, zip(*counts.values(), strict=True))
        yield Value(nonzero / units)


def measure(spec: dict, manifest: Path, snapshots: Path, output: Path, device: torch.device) -> None:
    """Measure the kept networks of a training job, in eval mode, on a fixed class-balanced part of the training data.

    Writes one row a (seed, at, quantity, operator, layer, probe), with the training step. A member that diverged has
    no rows from then on.

    Args:
        spec: ``grid.measure_spec``.
        manifest: of the prepared dataset.
        snapshots: the folder that the training job wrote.
        output: the parquet file.
        device: where to compute.

    Raises:
        NmeError: a file is missing or damaged.
    """
    import pyarrow as pa
    import torch

    from nme import batches, parquet
    from nme.activations import ACTIVATIONS
    from nme.checkpoint import read_snapshot
    from nme.config import Recipe, check
    from nme.device import device_name
    from nme.prepare import class_balanced
    from nme.provenance import provenance

    began = time.monotonic()
    recipe = check(Recipe, spec["recipe"], "recipe")
    data, _, described = batches.load(manifest, device)
    classes = len(described["classes"])
    size = min(spec["examples"], len(data.labels) // classes * classes)
    chosen = torch.from_numpy(class_balanced(data.labels.cpu().numpy(), size, classes, "measurement.examples"))
    batch = data.batch(chosen.to(device), "none", torch.Generator())
    model = recipe.model.build(tuple(data.inputs.shape[1:]), classes, ACTIVATIONS.parse(spec["activation"])).to(device)
    rows = []
    for seed in spec["seeds"]:
        for at in spec["at"]:
            snapshot = read_snapshot(snapshots, seed, at)
            if snapshot is None:
                continue
            model.load_state_dict(snapshot["model"])
            model.eval()
            for name in spec["quantities"]:
                for found in QUANTITIES[name](model, batch, spec, seed):
                    place = {"seed": seed, "at": at, "step": snapshot["step"], "quantity": name}
                    rows.append(place | found._asdict())
    record = provenance(
        spec,
        time.monotonic() - began,
        torch=str(torch.__version__),
        device=device_name(device),
        data=described["splits"],
    )
    parquet.write(pa.Table.from_pylist(rows, schema=_columns()), output, record)


def _columns() -> object:
    import pyarrow as pa

    whole, text = pa.int64(), pa.string()
    names = {"seed": whole, "at": pa.float64(), "step": whole, "quantity": text, "operator": text, "layer": text}
    return pa.schema({**names, "probe": whole, "value": pa.float64()})
