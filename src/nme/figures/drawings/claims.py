"""Claims: effects with intervals, one row per contrast, one marker per recipe, coloured by verdict."""

import textwrap

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nme.figures import style
from nme.grid.specs import PlotSpec

COLOURS = {"supported": "#009E73", "not supported": "#D55E00", "inconclusive": "#7F7F7F"}
WIDEST = 100  # larger effects and intervals leave the axis; their numbers are next to it
# Heights in cm: a row's words, with and without the claim's sentence, and each recipe's line.
SENTENCE, NAME, PER_RECIPE = 1.1, 0.45, 0.31


def draw(table: pd.DataFrame, spec: PlotSpec, record: dict) -> tuple[Figure, pd.DataFrame]:
    """Draw one row per contrast in the order of the claims; the grey band is ±δ, the smallest effect of interest."""
    smallest = record["spec"]["smallest_effect"]
    contrasts = table.drop_duplicates(["claim", "contrast"])[["claim", "contrast"]].to_records(index=False).tolist()
    recipes = table.drop_duplicates("recipe").set_index("recipe")["panel"].to_dict()
    markers = dict(zip(recipes, style.MARKERS * len(recipes), strict=False))
    first = [i == 0 or contrasts[i - 1][0] != claim for i, (claim, _) in enumerate(contrasts)]
    shown = [table[(table["claim"] == c) & (table["contrast"] == n)].to_dict("records") for c, n in contrasts]
    heights = [
        max(SENTENCE if new else NAME, 0.3 + PER_RECIPE * len(own)) for new, own in zip(first, shown, strict=True)
    ]
    tops = np.cumsum([0, *heights])
    figure = Figure(figsize=(style.COLUMN, (tops[-1] + 2.5 + 0.3 * max(3, len(recipes))) * style.CM))
    words, axes, numbers = figure.subplots(1, 3, width_ratios=(1.16, 0.82, 0.26), sharey=True)
    words.set_axis_off()
    numbers.set_axis_off()
    axes.axvspan(-smallest["points"], smallest["points"], color="0.92", linewidth=0)
    axes.axvline(0, color="0.4", linewidth=0.6)
    for top, height, new, own in zip(tops, heights, first, shown, strict=False):
        for i, line in enumerate(own):
            y = top + height / 2 + PER_RECIPE * (i - (len(own) - 1) / 2)
            _effect(axes, y, line, markers[line["recipe"]])
            numbers.text(0, y, _number(line), va="center", fontsize=4.5, color=COLOURS[line["verdict"]])
        if new:
            words.text(0, top + 0.08, str(own[0]["claim"]), va="top", fontsize=6, fontweight="bold")
            says = textwrap.fill(own[0]["says"], 38)
            words.text(0.105, top + 0.08, says, va="top", fontsize=5.5, linespacing=1.05)
            for part in (words, axes, numbers):
                part.axhline(top, color="0.85", linewidth=0.5)
        words.text(0.105, top + height - 0.05, own[0]["contrast"], va="bottom", fontsize=4.5, color="0.4")
    axes.set_ylim(tops[-1], 0)
    axes.spines["left"].set_visible(False)
    axes.tick_params(axis="y", left=False, labelleft=False)
    _effect_axis(axes, table[["low", "high", "effect"]].to_numpy(dtype=float))
    _legend(figure, table, {markers[recipe]: title for recipe, title in recipes.items()})
    style.footer(
        figure,
        f"scale {spec.scale}",
        f"paired over {table['seeds'].max()} seeds",
        "thick: 95 % t-interval, thin: simultaneous",
        f"grey: ±{smallest['points']:g} points, the smallest effect of interest (of a trace {smallest['percent']:g} %)",
        "⨯: seeds with a diverged member, plus side : minus side",
        "Holm-corrected verdicts per claim and recipe by the rule in src/nme/claims/verdicts.py",
        x_label="effect (accuracy points, or %): the difference in grey",
    )
    return figure, table


def _effect(axes: Axes, y: float, line: dict, marker: str) -> None:
    """Draw the estimate, its 95 % interval and its simultaneous interval."""
    colour = COLOURS[line["verdict"]]
    axes.plot([line["low_simultaneous"], line["high_simultaneous"]], [y, y], color=colour, linewidth=0.4)
    axes.plot([line["low"], line["high"]], [y, y], color=colour, linewidth=1.2)
    face = "white" if line["verdict"] == "inconclusive" else colour
    axes.plot(line["effect"], y, color=colour, marker=marker, markerfacecolor=face, markeredgewidth=0.7, linestyle="")


def _number(line: dict) -> str:
    diverged = f" ⨯{line['diverged_plus']}:{line['diverged_minus']}"
    shown = f"{line['effect']:+.1f}".replace("-", "−") if np.isfinite(line["effect"]) else "none"
    return shown + (diverged if line["diverged_plus"] or line["diverged_minus"] else "")


def _legend(figure: Figure, table: pd.DataFrame, markers: dict[str, str]) -> None:
    """Draw a column with the colours and counts of the verdicts, and a column with the marker of each recipe."""
    counts = table.drop_duplicates(["claim", "recipe"])["verdict"].value_counts()
    faces = {v: "white" if v == "inconclusive" else c for v, c in COLOURS.items()}
    verdicts = [
        Line2D([], [], color=c, marker="o", markerfacecolor=faces[v], label=f"{v} ({counts.get(v, 0)})")
        for v, c in COLOURS.items()
    ]
    recipes = [Line2D([], [], color="0.3", marker=m, linestyle="", label=title) for m, title in markers.items()]
    nothing = [Line2D([], [], linestyle="", label=" ")]
    rows = max(len(verdicts), len(recipes))
    handles = [*verdicts, *nothing * (rows - len(verdicts)), *recipes, *nothing * (rows - len(recipes))]
    figure.legend(handles=handles, loc="outside upper center", ncols=2, fontsize=5.5)


def _effect_axis(axes: Axes, values: np.ndarray) -> None:
    """Set an axis that is linear to ±5 and logarithmic beyond: effects of tens of points would flatten the rest."""
    finite = np.abs(values[np.isfinite(values)])
    widest = min(max([5, *finite]), WIDEST)
    axes.set_xscale("symlog", linthresh=5, linscale=1)
    positive = [v for v in (5, 50) if v <= widest]
    ticks = [*(-v for v in reversed(positive)), 0, *positive]
    axes.set_xlim(-1.15 * widest, 1.15 * widest)
    axes.set_xticks(ticks, [str(v).replace("-", "−") for v in ticks])
    axes.minorticks_off()
