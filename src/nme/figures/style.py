"""Common style of all figures: sizes, fonts, colours, panels, legend, footer.

Figures have the width of a journal's column and are legible there: two panels side by side, most letters of at least 6
points.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nme import __version__

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

Look = dict[str, Any]  # properties of an artist

CM = 1 / 2.54
COLUMN = 8.5 * CM  # width of a journal's column, in inches
PANEL_HEIGHT = 3.9 * CM

RC: dict[RcKeyType, Any] = {
    "font.size": 7,
    "axes.titlesize": 6.5,
    "axes.labelsize": 7,
    "xtick.labelsize": 6,
    "ytick.labelsize": 6,
    "legend.fontsize": 6.5,
    "legend.frameon": False,
    "legend.columnspacing": 1.2,
    "legend.handlelength": 1.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.0,
    "lines.markersize": 3,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # text stays text
}

# Colours for names that config/style.yaml omits: Okabe and Ito's, safe for colour-blind readers.
FALLBACK = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def colours(chosen: dict[str, str], names: list[str]) -> dict[str, str]:
    """Choose a colour for each name: the configured one, or the next free fallback."""
    free = [c for c in FALLBACK if c not in chosen.values()] or list(FALLBACK)
    rest = [name for name in names if name not in chosen]
    return {
        **{n: chosen[n] for n in names if n in chosen},
        **{n: free[i % len(free)] for i, n in enumerate(rest)},
    }


def panels(number: int) -> tuple[Figure, list[Axes]]:
    """Create a figure of a column's width with ``number`` panels, two per row."""
    columns = min(number, 2)
    rows = math.ceil(number / columns)
    figure = Figure(figsize=(COLUMN, rows * PANEL_HEIGHT + 2.2 * CM))
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes in grid[number:]:
        axes.set_visible(False)
    return figure, grid[:number]


def legend(figure: Figure, grid: list[Axes], *more: Artist) -> None:
    """Draw one legend above all panels: every label once, ``more`` last, in as many columns as fit."""
    found: dict[str, Artist] = {}
    for axes in grid:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    found |= {str(artist.get_label()): artist for artist in more}
    columns = max(1, 64 // (5 + max(map(len, found))))
    figure.legend(list(found.values()), list(found), loc="outside upper center", ncols=min(columns, len(found)))


def footer(figure: Figure, *facts: str, x_label: str = "") -> None:
    """Write the common label of the x axes below all panels, then small lines with the facts and the version."""
    wide = int(97 * figure.get_figwidth() / COLUMN)
    lines = [""]
    for fact in [*facts, f"nme {__version__}"]:
        longer = f"{lines[-1]} · {fact}" if lines[-1] else fact
        lines = [*lines[:-1], longer] if len(longer) <= wide else [*lines, fact]
    unit = CM / figure.get_figheight()
    top = 0.08 + 0.19 * len(lines)
    figure.text(0.01, 0.04 * unit, "\n".join(lines), fontsize=4.5, color="0.4", va="bottom", linespacing=1.1)
    if x_label:
        figure.text(0.5, (top + 0.08) * unit, x_label, fontsize=RC["axes.labelsize"], ha="center", va="bottom")
        top += 0.42
    figure.set_layout_engine("constrained", rect=(0, top * unit, 1, 1 - top * unit))


def strength_axis(axes: Axes, strengths: list[float]) -> None:
    """Set a logarithmic axis of strengths that includes 0, at the left end of a short linear part."""
    positive = [s for s in strengths if s > 0]
    if positive:
        axes.set_xscale("symlog", linthresh=min(positive), linscale=0.5)
        axes.set_xlim(-0.3 * min(positive), 1.3 * max(positive))
    _ticks(axes, strengths)


def parameter_axis(axes: Axes, values: list[float]) -> None:
    """Set a logarithmic axis of values > 0, with base 2."""
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(values) / 1.2, max(values) * 1.2)
    _ticks(axes, values)


def time_axis(axes: Axes) -> None:
    """Set a square-root axis of fractions of the training, since most changes are early; a margin on both sides."""
    axes.set_xscale("function", functions=(lambda x: np.sign(x) * np.abs(x) ** 0.5, lambda y: y * np.abs(y)))
    axes.set_xlim(-0.002, 1.08)
    axes.set_xticks((0, 0.1, 0.4, 1), ("0", "0.1", "0.4", "1"))
    axes.minorticks_off()


def _ticks(axes: Axes, values: list[float]) -> None:
    """Set ticks at all values, and labels that cannot touch: a quarter of the axis and a sixth of a decade apart."""
    span = math.log10(max(values) / min(v for v in values if v > 0)) if max(values) > 0 else 0
    apart = 10 ** max(0.17, span / 4)
    shown: list[float] = []
    for value in sorted(values):
        if not shown or shown[-1] == 0 or value >= apart * shown[-1]:
            shown.append(value)
    axes.set_xticks(values, [_short(v) if v in shown else "" for v in values])
    axes.minorticks_off()


def _short(value: float) -> str:
    """Format a number for an axis: below 0.01 as a power of ten.

    >>> _short(0.03), _short(0.003), _short(0.001)
    ('0.03', '3·10$^{-3}$', '10$^{-3}$')
    """
    if value == 0 or value >= 0.01:
        return f"{value:g}"
    exponent = math.floor(math.log10(value) + 1e-9)
    factor = value / 10**exponent
    return f"{'' if round(factor, 6) == 1 else f'{factor:g}·'}10$^{{{exponent}}}$"
