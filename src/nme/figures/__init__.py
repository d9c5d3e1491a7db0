"""Figures: ``draw(table, spec, record)`` → the drawing and the numbers in it. No torch here.

A figure with ``curves`` in its configuration is drawn by ``curves``, any other by the module of its name.
"""

from importlib import import_module
from pathlib import Path

from nme import __version__, parquet
from nme.errors import NmeError, unknown
from nme.files import atomic

FORMATS = ("pdf", "png")


def drawable() -> list[str]:
    """Names of the figures that have a drawing of their own: the modules here that define ``draw``."""
    modules = Path(__file__).parent.glob("*.py")
    return sorted(p.stem for p in modules if p.stem != "curves" and "\ndef draw(" in p.read_text(encoding="utf-8"))


def plot(spec: dict, table: Path, output: Path) -> None:
    """Draw a figure and write ``output`` with the endings .pdf, .png and .csv (the plotted numbers).

    Args:
        spec: ``grid.plot_spec``.
        table: what the figure is drawn from.
        output: a path with any of the endings.

    Raises:
        NmeError: there is no such drawing, or the table is missing or damaged.
    """
    module = "curves" if "curves" in spec else spec["figure"]
    if module != "curves" and module not in drawable():
        raise NmeError(unknown("figure", spec["figure"], drawable()))
    from matplotlib import rc_context

    from nme.figures import style

    rows, record = parquet.read(table)
    with rc_context(style.RC):
        figure, numbers = import_module(f"nme.figures.{module}").draw(rows.to_pandas(), spec, record)
        for ending in FORMATS:
            with atomic(output.with_suffix(f".{ending}")) as path:
                # No date, so that the same numbers make the same file.
                figure.savefig(path, metadata={"CreationDate": None} if ending == "pdf" else {"Software": None})
    with atomic(output.with_suffix(".csv")) as path:
        numbers = numbers.assign(scale=spec["scale"], version=__version__)
        numbers.to_csv(path, index=False, float_format="%.6g")
