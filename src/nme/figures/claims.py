"""The claims: effect sizes with intervals, a row a claim, coloured by verdict."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nme.figures import style

COLOURS = {"supported": "#009E73", "not supported": "#D55E00", "inconclusive": "#7F7F7F"}
WIDEST = 100  # an effect beyond leaves the axis; its numbers stand above its line
MARKERS = {"supported": "o", "not supported": "X", "inconclusive": "D"}


def draw(table: pd.DataFrame, spec: dict, record: dict) -> tuple[Figure, pd.DataFrame]:
    """A line a contrast, in the order of the claims; the band is ±δ, the smallest effect of interest."""
    lines = table.to_dict("records")
    smallest = record["spec"]["smallest_effect"]
    figure = Figure(figsize=(style.COLUMN, (1.06 * len(lines) + 2.2) * style.CM))
    words, axes = figure.subplots(1, 2, width_ratios=(1.1, 1), sharey=True)
    words.set_axis_off()
    axes.axvspan(-smallest, smallest, color="0.92", linewidth=0)
    axes.axvline(0, color="0.4", linewidth=0.6)
    before = None
    for y, line in enumerate(lines):
        colour = COLOURS[line["verdict"]]
        axes.plot([line["low"], line["high"]], [y, y], color=colour)
        axes.plot(line["effect"], y, color=colour, marker=MARKERS[line["verdict"]], linestyle="")
        value = f"{line['effect']:+.1f} [{line['low']:+.1f}, {line['high']:+.1f}]".replace("-", "−")
        place = {"xy": (0.5, y - 0.18), "xycoords": axes.get_yaxis_transform()}
        paper = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}
        axes.annotate(value, ha="center", va="bottom", fontsize=5.5, color=colour, bbox=paper, **place)
        says = ""
        if line["claim"] != before:
            says = textwrap.fill(line["says"], 38)
            words.text(0, y - 0.36, str(line["claim"]), va="top", fontsize=6, fontweight="bold")
            for part in (axes, words):
                part.axhline(y - 0.5, color="0.85", linewidth=0.5)
        words.text(0.09, y - 0.36, says, va="top", fontsize=5.5, linespacing=1.05)
        words.text(0.09, y + 0.44, line["contrast"], va="bottom", fontsize=5, color="0.4")
        before = line["claim"]
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", left=False, labelleft=False)
    _effect_axis(axes, table[["low", "high", "effect"]].to_numpy(dtype=float))
    claims = table.drop_duplicates("claim")["verdict"].value_counts()
    handles = [
        Line2D([], [], color=c, marker=MARKERS[v], linestyle="", label=f"{v} ({claims.get(v, 0)})")
        for v, c in COLOURS.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    style.footer(
        figure,
        f"scale {spec['scale']}",
        f"paired over {table['seeds'].max()} seeds, 95 % t-interval",
        f"grey: ±{smallest:g} points, the smallest effect of interest",
        "Holm-corrected verdicts by the rule in src/nme/claims.py",
        x_label="effect (accuracy points, or %): the difference in grey",
    )
    return figure, table


def _effect_axis(axes: Axes, values: np.ndarray) -> None:
    """Linear to ±5, logarithmic beyond: a few effects of tens of points would flatten the rest."""
    widest = min(max(np.abs(values[np.isfinite(values)]).max(), 5), WIDEST)
    axes.set_xscale("symlog", linthresh=5, linscale=1)
    positive = [v for v in (5, 50) if v <= widest]
    ticks = [*(-v for v in reversed(positive)), 0, *positive]
    axes.set_xlim(-1.15 * widest, 1.15 * widest)
    axes.set_xticks(ticks, [str(v).replace("-", "−") for v in ticks])
    axes.minorticks_off()
