"""Mechanism: share of the NME in the gradient penalty's update over training; one row per recipe."""

from itertools import cycle

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nme.activations import ACTIVATIONS
from nme.figures import style
from nme.figures.curves import over_seeds
from nme.grid.specs import PlotSpec

LOOKS = {
    "H": ("o", "Hĝ"),
    "G": ("s", "Gĝ"),
    "N": ("^", "Nĝ"),
    "N_phi": ("D", "N$_{φ″}$ĝ"),
}
STATISTICS = {"share": "share of ‖Hĝ‖", "cosine": "cosine with ĝ"}
PLACE = ["recipe", "panel", "activation", "at", "statistic", "operator"]


def draw(table: pd.DataFrame, spec: PlotSpec, record: dict) -> tuple[Figure, pd.DataFrame]:
    """Draw columns with shares of ‖Hĝ‖ and cosines with ĝ; one colour per operator, one line style per activation."""
    means = table[(table["quantity"] == "update_shares") & (table["probe"] == -1)]
    points = over_seeds(means.dropna(subset="value").assign(diverged=False), PLACE, "value")
    recipes = list(dict.fromkeys(means["recipe"]))
    dashes = dict(zip(dict.fromkeys(means["activation"]), cycle(("-", "--", ":", "-.")), strict=False))
    figure, grid = style.panels(2 * len(recipes))
    panels = [(recipe, statistic) for recipe in recipes for statistic in STATISTICS]
    for axes, (recipe, statistic) in zip(grid, panels, strict=True):
        here = points[(points["recipe"] == recipe) & (points["statistic"] == statistic)]
        axes.axhline(0, color="0.6", linewidth=0.6, zorder=1)
        for (operator, activation), line in here.groupby(["operator", "activation"], sort=False):
            marker, label = LOOKS[operator]
            look = {"color": spec.colours[operator], "linestyle": dashes[activation]}
            line = line.sort_values("at")
            axes.fill_between(line["at"], line["low"], line["high"], color=look["color"], alpha=0.15, linewidth=0)
            axes.plot(line["at"], line["mean"], **look, marker=marker, markersize=2.2, label=label)
        style.time_axis(axes)
        axes.set_ylabel(STATISTICS[statistic])
        axes.set_title(means.loc[means["recipe"] == recipe, "panel"].iloc[0])
    for statistic, column in zip(STATISTICS, (grid[::2], grid[1::2]), strict=True):
        limits = _limits(points[points["statistic"] == statistic])
        for axes in column:
            axes.set_ylim(*limits)
    lines = [
        Line2D([], [], color="0.3", linestyle=dash, label=ACTIVATIONS.parse(name).full_label)
        for name, dash in dashes.items()
    ]
    style.legend(figure, grid[1::-1], *lines)
    seeds = record["spec"]["seeds"]
    style.footer(
        figure,
        f"scale {spec.scale}",
        f"mean and 95 % t-interval over {seeds} seed{'s' if seeds > 1 else ''}",
        *(["fewer after a seed has diverged"] if points["members"].min() < seeds else []),
        "plain SGD",
        "training batches, train mode",
        "horizontal axis: square root",
        x_label="fraction of the training",
    )
    names = {"mean": "value", "low": "ci95_low", "high": "ci95_high"}
    return figure, points.drop(columns="diverged").rename(columns=names)


def _limits(points: pd.DataFrame) -> tuple[float, float]:
    """Limits that include all means, with a margin. Intervals may leave the axis: with few seeds they are very wide."""
    low, high = min([*points["mean"], 0]), max([*points["mean"], 1])
    margin = 0.06 * (high - low)
    return low - margin, high + margin
