"""Tables stage: the metrics of a figure's cells, one row a member, final epoch."""

import time
from collections import Counter
from pathlib import Path

import pandas as pd
import pyarrow as pa

from nme import parquet
from nme.grid import Cell, jobs_of_seeds, metrics_path
from nme.provenance import provenance


def collect(spec: dict, root: Path = Path()) -> tuple[pd.DataFrame, dict]:
    """The final epoch of every member of the cells.

    Args:
        spec: ``grid.table_spec``.
        root: the folder that has results/.

    Returns:
        One row a member: the cell's fields, panel (the recipe's title), seed, and the metrics of its last epoch
        (``train.COLUMNS``; null where it diverged); and a summary of the trainings: how many, seconds, versions.

    Raises:
        NmeError: a metrics file is missing or damaged.
    """
    frames, seconds, versions = [], 0.0, Counter()
    for path in spec["cells"]:
        cell = Cell.from_path(path)
        recipe = spec["recipes"][cell.recipe]
        for seeds in jobs_of_seeds(spec["seeds"], recipe["seeds_per_job"]):
            table, record = parquet.read(root / metrics_path(spec["scale"], cell, seeds))
            last = table.to_pandas().sort_values(["seed", "epoch"]).groupby("seed").tail(1)
            fields = {**vars(cell), "strength": float(cell.strength), "panel": recipe["title"]}
            frames.append(last.assign(**fields))
            seconds += record["seconds"]
            versions[f"nme {record['nme']}, torch {record['torch']}, {record['device']}"] += 1
    trained = pd.concat(frames, ignore_index=True)
    front = ["recipe", "panel", "activation", "method", "strength", "seed"]
    summary = {"members": len(trained), "training_seconds": round(seconds, 1), "trained_with": dict(versions)}
    return trained[[*front, *trained.columns.difference(front, sort=False)]], summary


def write_table(spec: dict, output: Path) -> None:
    """Collect a figure's table and write it.

    Args:
        spec: ``grid.table_spec``.
        output: the parquet file.
    """
    began = time.monotonic()
    table, summary = collect(spec)
    record = provenance(spec, time.monotonic() - began, **summary)
    parquet.write(pa.Table.from_pandas(table, preserve_index=False), output, record)
