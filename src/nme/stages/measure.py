"""Measure stage: quantities of the networks that a training job saved, one row per quantity and probe."""

import time
from pathlib import Path

import pyarrow as pa
import torch

from nme.activations import ACTIVATIONS
from nme.data.load import load
from nme.data.prepared import class_balanced
from nme.data.training_batches import TrainingBatches
from nme.errors import NmeError
from nme.grid.cells import snapshots as times_of_snapshots
from nme.grid.specs import MeasureSpec
from nme.outputs import parquet
from nme.outputs.provenance import provenance
from nme.quantities import ON_TRAINING_BATCHES, QUANTITIES, Settings
from nme.runtime.device import device_name
from nme.training.snapshots import read_snapshot


def measure(spec: MeasureSpec, manifest: Path, snapshots: Path, output: Path, device: torch.device) -> None:
    """Measure the saved networks of a training job, in eval mode, on a fixed class-balanced part of the training data.

    Quantities in ``ON_TRAINING_BATCHES`` are measured on ``spec.update_batches`` batches of the training data
    instead, which are the same for all networks of a seed. Writes one row per (seed, at, quantity, operator, layer,
    probe, index, statistic), with the training step. A diverged member has no rows after its divergence.

    Args:
        spec: the quantities, and how they are measured.
        manifest: path of the prepared dataset's manifest.
        snapshots: the folder that the training job wrote.
        output: the parquet file.
        device: device that computes.

    Raises:
        NmeError: a file is missing or damaged.
    """
    began = time.monotonic()
    recipe = spec.recipe
    settings = Settings(spec.probes, spec.spectrum_probes, spec.lanczos_steps, spec.micro_batch)
    data, _, contents = load(manifest, device, recipe.resolution, recipe.threads)
    classes = len(contents["classes"])
    size = min(spec.examples, len(data.labels) // classes * classes)
    chosen = torch.from_numpy(class_balanced(data.labels.cpu().numpy(), size, classes, "measurement.examples"))
    batch = data.batch(chosen, "none", torch.Generator())
    model = recipe.model.build(data.shape, classes, ACTIVATIONS.parse(spec.activation)).to(device)
    rows = []
    for seed in spec.seeds:
        training = TrainingBatches(
            data, recipe.batch_size, recipe.micro_batch, recipe.augment, seed, spec.update_batches
        )
        for at in times_of_snapshots(spec.quantities):
            snapshot = read_snapshot(snapshots, seed, at)
            if snapshot is None:
                if at > 0 and seed in _diverged(snapshots.with_name("metrics.parquet")):
                    continue
                raise NmeError(  # an archive of results, say, has no weights
                    f"{snapshots}: the weights of seed {seed} are missing (delete {snapshots.parent} to train it again)"
                )
            model.load_state_dict(snapshot["model"])
            model.eval()
            for name in [name for name, times in spec.quantities.items() if at in times]:
                given = training if name in ON_TRAINING_BATCHES else batch
                for found in QUANTITIES[name](model, given, settings, seed):
                    place = {"seed": seed, "at": at, "step": snapshot["step"], "quantity": name}
                    rows.append(place | vars(found))
    record = provenance(
        spec.as_json(),
        time.monotonic() - began,
        torch=str(torch.__version__),
        device=device_name(device),
        data=contents["splits"],
    )
    parquet.write(pa.Table.from_pylist(rows, schema=_columns()), output, record)


def _diverged(metrics: Path) -> set[int]:
    """Seeds of the members that diverged in a training job."""
    table, _ = parquet.read(metrics)
    return {row["seed"] for row in table.select(["seed", "diverged"]).to_pylist() if row["diverged"]}


def _columns() -> pa.Schema:
    whole, text = pa.int64(), pa.string()
    names = {"seed": whole, "at": pa.float64(), "step": whole, "quantity": text, "operator": text, "layer": text}
    names |= {"probe": whole, "index": whole}
    names |= dict.fromkeys(("value", "weight", "error"), pa.float64())
    return pa.schema({**names, "statistic": text})
