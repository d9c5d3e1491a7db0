"""The claims: effect sizes with intervals, a row a claim, coloured by verdict."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nme.figures import style

COLOURS = {"supported": "#009E73", "not supported": "#D55E00", "inconclusive": "#7F7F7F"}
MARKERS = {"supported": "o", "not supported": "X", "inconclusive": "D"}


def draw(table: pd.DataFrame, spec: dict, record: dict) -> tuple[Figure, pd.DataFrame]:
    """A line a contrast, in the order of the claims; the band is ±δ, the smallest effect of interest."""
    lines = table.to_dict("records")
    smallest = record["spec"]["smallest_effect"]
    figure = Figure(figsize=(2 * style.COLUMN, (0.85 * len(lines) + 2.2) * style.CM))
    words, axes = figure.subplots(1, 2, width_ratios=(1.15, 1), sharey=True)
    words.set_axis_off()
    axes.axvspan(-smallest, smallest, color="0.92", linewidth=0)
    axes.axvline(0, color="0.4", linewidth=0.6)
    # A few effects of tens of points would flatten the rest.
    axes.set_xscale("symlog", linthresh=5, linscale=2)
    for y, line in enumerate(lines):
        colour = COLOURS[line["verdict"]]
        axes.plot([line["low"], line["high"]], [y, y], color=colour)
        axes.plot(line["effect"], y, color=colour, marker=MARKERS[line["verdict"]], linestyle="")
        value = f"{line['effect']:+.1f} [{line['low']:+.1f}, {line['high']:+.1f}]"
        axes.annotate(value, (1.01, y), xycoords=axes.get_yaxis_transform(), va="center", fontsize=6, color=colour)
        first = y == 0 or lines[y - 1]["claim"] != line["claim"]
        if first and y:
            for part in (axes, words):
                part.axhline(y - 0.5, color="0.85", linewidth=0.5)
        says = textwrap.fill(line["says"], 44) if first else ""
        words.text(0, y, f"{line['claim']}" if first else "", va="center", fontweight="bold")
        words.text(0.05, y, says, va="center", fontsize=6)
        words.text(1, y, textwrap.fill(line["contrast"], 30), va="center", ha="right", fontsize=6, color="0.3")
    axes.set_ylim(len(lines) - 0.5, -0.5)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", left=False, labelleft=False)
    values = table[["low", "high", "effect"]].to_numpy(dtype=float)
    widest = np.nanmax(np.abs(values[np.isfinite(values)]))
    ticks = [v for v in (1, 2, 5, 10, 20, 50, 100) if v <= max(widest, 5)]
    axes.set_xlim(-1.1 * max(widest, 5), 1.1 * max(widest, 5))
    axes.set_xticks([-v for v in reversed(ticks)] + [0, *ticks], [*(f"−{v}" for v in reversed(ticks)), "0", *map(str, ticks)])
    axes.minorticks_off()
    axes.set_xlabel("effect (accuracy points), positive: as the contrast says")
    handles = [
        Line2D([], [], color=c, marker=MARKERS[v], label=f"{v} ({len(table[table['verdict'] == v]['claim'].unique())})")
        for v, c in COLOURS.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3)
    style.footer(
        figure,
        f"scale {spec['scale']}",
        f"paired over {table['seeds'].max()} seeds, 95 % t-interval",
        f"grey: ±{smallest:g} points, the smallest effect of interest",
        "verdict: Holm-corrected, rule in src/nme/claims.py",
    )
    return figure, table
