"""Plot stage: draw a figure from its table.

A figure with ``curves`` in its configuration is drawn by ``figures.curves``, any other by the drawing of its name.
"""

from importlib import import_module
from pathlib import Path

from nme import __version__
from nme.errors import NmeError, unknown
from nme.figures import DRAWINGS
from nme.outputs import parquet
from nme.outputs.files import atomic

FORMATS = ("pdf", "png")


def plot(spec: dict, table: Path, output: Path) -> None:
    """Draw a figure and write ``output`` with the endings .pdf, .png and .csv (the plotted numbers).

    Args:
        spec: ``grid.specs.plot_spec``.
        table: what the figure is drawn from.
        output: a path with any of the endings.

    Raises:
        NmeError: there is no such drawing, or the table is missing or damaged.
    """
    if "curves" not in spec and spec["figure"] not in DRAWINGS:
        raise NmeError(unknown("figure", spec["figure"], DRAWINGS))
    module = "curves" if "curves" in spec else f"drawings.{spec['figure']}"
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
