"""Tables stage: the metrics of a figure's cells, one row per member, final epoch."""

import time
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa

from nme.config.messages import check
from nme.config.scale import Training
from nme.errors import NmeError
from nme.grid.cells import Cell, jobs_of_seeds
from nme.grid.paths import measured_path, metrics_path
from nme.grid.specs import STAGE_VERSION, TableSpec
from nme.outputs import parquet
from nme.outputs.provenance import provenance

FRONT = ["recipe", "panel", "activation", "method", "strength", "seed"]


def collect(spec: TableSpec, root: Path = Path()) -> tuple[pd.DataFrame, dict]:
    """Collect the final epoch of every member of the cells, or every measured value if the figure measures.

    Args:
        spec: the cells, their seeds, and titles of panels.
        root: the folder that contains results/.

    Returns:
        Rows with the cell's fields, panel (the recipe's title), chance (the accuracy of guessing) and seed; and either
        the metrics of the last epoch (``train.COLUMNS``; null after divergence), one row per member, or the rows of
        ``measure.measure``. Also a summary of the jobs: number of members, seconds, versions.

    Raises:
        NmeError: a file is missing or damaged, was made with other settings than the spec's or by another version of
            its stage, or its data are not those of the recipe's other jobs. Snakemake knows none of this of results
            that were unpacked from an archive.
    """
    frames, seconds = [], 0.0
    data: dict[str, tuple[dict, Path]] = {}
    versions: Counter[str] = Counter()
    path_of = measured_path if spec.measurement else metrics_path
    for path in spec.cells:
        cell = Cell.from_path(path)
        recipe = spec.recipes[cell.recipe]
        for seeds in jobs_of_seeds(spec.seeds, recipe.seeds_per_job):
            file = root / path_of(spec.scale, cell, seeds)
            table, record = parquet.read(file)
            _require_settings(spec, cell, seeds, record["spec"], file)
            same, first = data.setdefault(cell.recipe, (record["data"], file))
            if record["data"] != same:
                raise NmeError(f"{file}: made from other data than {first} (make all jobs of '{cell.recipe}' from one)")
            rows = table.to_pandas()
            if not spec.measurement:
                rows = rows.sort_values(["seed", "epoch"]).groupby("seed").tail(1)
            fields = {**vars(cell), "strength": float(cell.strength)}
            frames.append(rows.assign(**fields, panel=recipe.title, chance=recipe.chance))
            seconds += record["seconds"]
            versions[f"nme {record['nme']}, torch {record['torch']}, {record['device']}"] += 1
    found = pd.concat([f for f in frames if len(f)] or frames[:1], ignore_index=True)
    members = len(found[[c for c in FRONT if c != "panel"]].drop_duplicates())
    summary = {"members": members, "seconds_of_jobs": round(seconds, 1), "made_with": dict(versions)}
    return found[[*FRONT, *found.columns.difference(FRONT, sort=False)]], summary


def _require_settings(spec: TableSpec, cell: Cell, seeds: range, made_with: dict, file: Path) -> None:
    """Compare the settings that a job was made with to those of the spec (not the times of its measurements)."""
    job: dict[str, Any] = {
        "activation": cell.activation,
        "method": cell.method,
        "strength": cell.strength,
        "seeds": list(seeds),
        "version": STAGE_VERSION["measure" if spec.measurement else "train"],
    }
    if spec.measurement:
        job |= spec.measurement.model_dump()
    training, trained = spec.recipes[cell.recipe].training, check(Training, made_with["recipe"], str(file))
    pairs = [
        # A measurement names no method, and only the settings of its quantities.
        ({key: value for key, value in job.items() if key in made_with}, made_with),
        (training.model_dump(), trained.model_dump()),
    ]
    for wanted, found in pairs:
        for key, value in wanted.items():
            if found[key] != value:
                raise NmeError(f"{file}: made with {key} {found[key]}, not {value} (delete it to make it again)")


def write_table(spec: TableSpec, output: Path) -> None:
    """Collect a figure's table and write it.

    Args:
        spec: the cells, their seeds, and titles of panels.
        output: the parquet file.
    """
    began = time.monotonic()
    table, summary = collect(spec)
    record = provenance(spec.as_json(), time.monotonic() - began, **summary)
    parquet.write(pa.Table.from_pandas(table, preserve_index=False), output, record)
