"""Figure 6: fraction of nonzero second derivatives of β-GELU, before and after training."""

import pandas as pd
from matplotlib.figure import Figure

from nme.activations import ACTIVATIONS
from nme.figures import style
from nme.figures.curves import over_seeds
from nme.grid.specs import PlotSpec

# Before training is grey, after it is black: neither an activation's colour nor a method's.
LOOKS: dict[int, style.Look] = {
    0: {"color": "#999999", "marker": "o", "linestyle": "--", "label": "before training"},
    1: {"color": "#000000", "marker": "s", "label": "after training"},
}


def draw(table: pd.DataFrame, spec: PlotSpec, record: dict) -> tuple[Figure, pd.DataFrame]:
    """Draw the fraction of nonzero φ'' (%) against β, over all hidden units and a fixed part of the training data."""
    whole = table[(table["quantity"] == "second_derivatives") & (table["layer"] == "")]
    whole = whole.assign(
        beta=[float(ACTIVATIONS.parse(a).values["beta"]) for a in whole["activation"]],
        percent=100 * whole["value"],
        diverged=False,
    )
    points = over_seeds(whole[whole["at"].isin(LOOKS)], ["recipe", "panel", "beta", "at"], "percent")
    recipes = list(dict.fromkeys(points["recipe"]))
    figure, grid = style.panels(len(recipes))
    for axes, recipe in zip(grid, recipes, strict=True):
        here = points[points["recipe"] == recipe]
        for at, look in LOOKS.items():
            line = here[here["at"] == at].sort_values("beta")
            low, high = line["low"].clip(lower=0), line["high"].clip(upper=100)
            axes.fill_between(line["beta"], low, high, color=look["color"], alpha=0.2, linewidth=0)
            axes.plot(line["beta"], line["mean"], **look)
        axes.set_ylim(0, 105)
        style.parameter_axis(axes, sorted(points["beta"].unique()))
        axes.set_title(here["panel"].iloc[0])
    grid[0].set_ylabel("|φ″| > 10$^{-3}$ max |φ″|\n(% of units × examples)")
    style.legend(figure, grid)
    seeds = record["spec"]["seeds"]
    interval = f"mean and 95 % t-interval over {seeds} seed{'s' if seeds > 1 else ''}"
    facts = (f"scale {spec.scale}", interval, "plain SGD", "training data, eval mode")
    style.footer(figure, *facts, x_label="β of β-GELU")
    names = {"mean": "nonzero_percent", "low": "ci95_low", "high": "ci95_high"}
    return figure, points.drop(columns="diverged").rename(columns=names)
