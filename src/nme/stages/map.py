"""Map stage: the effects of claims on each recipe, beside the share of the NME in the penalty's update there."""

import time
from pathlib import Path

import pyarrow as pa

from nme.claims.effects_map import effects_and_shares
from nme.outputs import parquet
from nme.outputs.provenance import provenance


def write_map(spec: dict, tables: list[Path], output: Path) -> None:
    """Compute the map and write it.

    Args:
        spec: ``grid.claims.map_spec``.
        tables: of the figures that it is made from; each file has its figure's name.
        output: the parquet file.

    Raises:
        NmeError: a table is missing, damaged, or not of these settings.
    """
    began = time.monotonic()
    rows = effects_and_shares(spec, {path.stem: parquet.read(path)[0].to_pandas() for path in tables})
    record = provenance(spec, time.monotonic() - began)
    parquet.write(pa.Table.from_pandas(rows, preserve_index=False), output, record)
