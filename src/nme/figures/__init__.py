"""Figures: one module each, ``draw(table, spec, record)`` → the drawing and the numbers in it. No torch here."""

from importlib import import_module
from pathlib import Path

from nme import parquet
from nme.errors import NmeError, unknown
from nme.files import atomic

FORMATS = ("pdf", "png")


def drawable() -> list[str]:
    """Names of the figures that can be drawn: the modules here that define ``draw``."""
    return sorted(p.stem for p in Path(__file__).parent.glob("*.py") if "\ndef draw(" in p.read_text(encoding="utf-8"))


def plot(spec: dict, table: Path, output: Path) -> None:
    """Draw a figure and write ``output`` with the endings .pdf, .png and .csv (the plotted numbers).

    Args:
        spec: ``grid.plot_spec``.
        table: what the figure is drawn from.
        output: a path with any of the endings.

    Raises:
        NmeError: there is no such drawing, or the table is missing or damaged.
    """
    if spec["figure"] not in drawable():
        raise NmeError(unknown("figure", spec["figure"], drawable()))
    from matplotlib import rc_context

    from nme.figures import style

    rows, record = parquet.read(table)
    with rc_context(style.RC):
        figure, numbers = import_module(f"nme.figures.{spec['figure']}").draw(rows.to_pandas(), spec, record)
        for ending in FORMATS:
            with atomic(output.with_suffix(f".{ending}")) as path:
                # No date, so that the same numbers make the same file.
                figure.savefig(path, metadata={"CreationDate": None} if ending == "pdf" else {"Software": None})
    with atomic(output.with_suffix(".csv")) as path:
        numbers.to_csv(path, index=False, float_format="%.6g")
