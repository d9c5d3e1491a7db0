"""Result tables: parquet files that carry their provenance."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nme.errors import NmeError
from nme.outputs.files import atomic


def write(table: pa.Table, path: Path, record: dict) -> None:
    """Write the table with ``record`` under the key ``nme`` of the file's metadata; whole or not at all."""
    metadata = {**(table.schema.metadata or {}), b"nme": json.dumps(record, ensure_ascii=False).encode()}
    with atomic(path) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary)


def read(path: Path) -> tuple[pa.Table, dict]:
    """The table and its record.

    Raises:
        NmeError: the file is missing or is no such table.
    """
    with _explained(path):
        table = pq.read_table(path)
        return table, json.loads(table.schema.metadata[b"nme"])


def read_record(path: Path) -> dict:
    """The record alone; raises as ``read`` does."""
    with _explained(path):
        return json.loads(pq.read_schema(path).metadata[b"nme"])


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NmeError(f"{path}: missing; make it first") from None
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise NmeError(f"{path}: not a result table of nme ({error}); delete it and make it again") from None
