"""Plot stage: draw a figure from its table.

``figures.curves`` draws every figure with ``curves`` in its configuration; every other figure has a drawing of its
own name.
"""

from importlib import import_module
from pathlib import Path

from nme import __version__
from nme.grid.specs import PlotSpec
from nme.outputs import parquet
from nme.outputs.files import atomic

FORMATS = ("pdf", "png")


def plot(spec: PlotSpec, table: Path, output: Path) -> None:
    """Draw a figure and write ``output`` with the suffixes .pdf, .png and .csv (the plotted numbers).

    Args:
        spec: which figure, its curves and colours.
        table: the figure's table.
        output: a path with any of the suffixes.

    Raises:
        NmeError: the table is missing or damaged.
    """
    module = "curves" if spec.curves else f"drawings.{spec.figure}"
    from matplotlib import rc_context

    from nme.figures import style

    rows, record = parquet.read(table)
    with rc_context(style.RC):
        figure, numbers = import_module(f"nme.figures.{module}").draw(rows.to_pandas(), spec, record)
        for ending in FORMATS:
            with atomic(output.with_suffix(f".{ending}")) as path:
                # No date: the same numbers give the same file.
                figure.savefig(path, metadata={"CreationDate": None} if ending == "pdf" else {"Software": None})
    with atomic(output.with_suffix(".csv")) as path:
        numbers = numbers.assign(scale=spec.scale, version=__version__)
        numbers.to_csv(path, index=False, float_format="%.6g")
