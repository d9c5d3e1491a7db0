"""Map stage: for each recipe, the effects of claims and the share of the NME in the penalty's update."""

import time
from pathlib import Path

import pyarrow as pa

from nme.claims.effects_map import effects_and_shares
from nme.grid.specs import MapSpec
from nme.outputs import parquet
from nme.outputs.provenance import provenance


def write_map(spec: MapSpec, tables: list[Path], output: Path) -> None:
    """Compute the map and write it.

    Args:
        spec: the claims and settings of the map.
        tables: tables of the figures in the map; each file is named after its figure.
        output: the parquet file.

    Raises:
        NmeError: a table is missing, damaged, or was written with different settings.
    """
    began = time.monotonic()
    rows = effects_and_shares(spec, {path.stem: parquet.read(path)[0].to_pandas() for path in tables})
    record = provenance(spec.as_json(), time.monotonic() - began)
    parquet.write(pa.Table.from_pandas(rows, preserve_index=False), output, record)
