"""Claims stage: decide the paper's claims, and write the table for readers."""

import time
from pathlib import Path

import pyarrow as pa

from nme.claims.report import CSS, markdown, note, readers_table, summary_table
from nme.claims.verdicts import decide
from nme.grid.specs import ClaimsSpec
from nme.outputs import parquet
from nme.outputs.files import atomic
from nme.outputs.provenance import provenance


def write_claims(spec: ClaimsSpec, tables: list[Path], output: Path) -> None:
    """Decide the claims and write them as parquet, Markdown and HTML.

    Args:
        spec: the claims.
        tables: tables of the figures in the contrasts; each file is named after its figure.
        output: the parquet file; the other files differ from it in the suffix.

    Raises:
        NmeError: a table is missing, damaged, or was written with different settings.
    """
    began = time.monotonic()
    rows = decide(spec, {path.stem: parquet.read(path)[0].to_pandas() for path in tables})
    summary, table, says = summary_table(rows), readers_table(rows), note(spec, rows)
    with atomic(output.with_suffix(".md")) as path:
        text = f"# Claims\n\n{says}\n\n{markdown(summary)}\n## Effects\n\n{markdown(table)}"
        path.write_text(text, encoding="utf-8")
    with atomic(output.with_suffix(".html")) as path:
        parts = [part.to_html(index=False, escape=False, border=0) for part in (summary, table)]
        page = f"<style>{CSS}</style><h1>Claims</h1><p>{says}</p>{'<h2>Effects</h2>'.join(parts)}"
        path.write_text(f'<!doctype html><meta charset="utf-8"><title>Claims</title>{page}\n', encoding="utf-8")
    record = provenance(spec.as_json(), time.monotonic() - began)
    parquet.write(pa.Table.from_pandas(rows, preserve_index=False), output, record)
