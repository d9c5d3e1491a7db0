"""Result tables: parquet files with their provenance in the metadata."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from nme.errors import NmeError
from nme.outputs.files import atomic


def write(table: pa.Table, path: Path, record: dict) -> None:
    """Write the table atomically, with ``record`` under the key ``nme`` of the file's metadata."""
    metadata = {**(table.schema.metadata or {}), b"nme": json.dumps(record, ensure_ascii=False).encode()}
    with atomic(path) as temporary:
        pq.write_table(table.replace_schema_metadata(metadata), temporary)


def read(path: Path) -> tuple[pa.Table, dict]:
    """Read the table and its record.

    Raises:
        NmeError: the file is missing or is not such a table.
    """
    with _clear_errors(path):
        table = pq.read_table(path)
        return table, json.loads(table.schema.metadata[b"nme"])


def read_record(path: Path) -> dict:
    """Read only the record; raises the same errors as ``read``."""
    with _clear_errors(path):
        return json.loads(pq.read_schema(path).metadata[b"nme"])


@contextmanager
def _clear_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NmeError(f"{path}: missing. Run the stage that writes it first.") from None
    except (OSError, pa.ArrowInvalid, KeyError, TypeError, ValueError) as error:
        raise NmeError(f"{path}: not a result table of nme ({error}). Delete it and run its stage again.") from None
