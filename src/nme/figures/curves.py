"""Accuracy against strength: the design of every grid figure."""

from collections.abc import Callable
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t

from nme.activations import ACTIVATIONS
from nme.figures import style
from nme.methods import METHODS

CONFIDENCE = 0.95
SHOWN_ERROR = 2.5  # a panel shows test errors up to this many times the least one


def over_seeds(table: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """Mean and interval over seeds for each combination of ``by``.

    The interval is Student's t with n − 1 degrees of freedom at 95 %. Diverged members have no value: they are
    counted, not averaged.

    Args:
        table: one row a member, with ``value`` and ``diverged``.
        by: columns that tell the points apart.
        value: the column to average.

    Returns:
        Columns ``by``, members, diverged, mean, low, high; low and high are missing for fewer than two values.
    """
    rows = []
    for key, group in table.groupby(by, sort=False):
        values = group.loc[~group["diverged"], value].to_numpy(dtype=float)
        n = len(values)
        mean = values.mean() if n else np.nan
        half = t.ppf(0.5 + CONFIDENCE / 2, n - 1) * values.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
        counts = {"members": len(group), "diverged": int(group["diverged"].sum())}
        rows.append(
            {**dict(zip(by, key, strict=True)), **counts, "mean": mean, "low": mean - half, "high": mean + half}
        )
    return pd.DataFrame(rows)


def _zoom(axes: Axes, points: pd.DataFrame) -> float:
    """Show errors up to ``SHOWN_ERROR`` times the least mean error, and return the accuracy that is.

    A strength that destroys the training would otherwise flatten the differences that a figure is about.
    """
    values = points[["low", "mean", "high"]].to_numpy(dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        axes.set_ylim(0, 100)
        return 0
    high = min(values.max(), 100)
    least_error = max(100 - points["mean"].max(), 1)
    floor = max(values.min(), 100 - SHOWN_ERROR * least_error, 0)
    margin = 0.05 * max(high - floor, 1)
    axes.set_ylim(floor - margin, high + margin)
    return floor


def _note(axes: Axes, points: pd.DataFrame, colours: list[str], top: bool, text: Callable) -> None:
    """A short text for each point at the upper or lower edge of a panel, those of one strength above each other."""
    for strength, group in points.assign(colour=colours).groupby("strength"):
        for i, (_, point) in enumerate(group.iterrows()):
            place = {"xy": (strength, 0.94 - 0.06 * i if top else 0.01 + 0.06 * i)}
            look = {"color": point["colour"], "fontsize": 6, "ha": "center"}
            axes.annotate(text(point), xycoords=axes.get_xaxis_transform(), **place, **look)


def accuracy_against_strength(table: pd.DataFrame, spec: dict, record: dict, label: str) -> tuple[Figure, pd.DataFrame]:
    """A panel a recipe and method, a line an activation: test accuracy (%) against strength.

    The level without a penalty, plain SGD, begins every line and is a dotted line in its colour. Diverged members are a
    cross at the upper edge with their number, a mean far below the others a triangle at the lower edge with its value.

    Args:
        table: ``tables.collect``'s.
        spec: ``grid.plot_spec``.
        record: the table's, for the footer.
        label: of the strength axis, with symbol and unit.
    """
    table = table.assign(test_accuracy=100 * table["test_accuracy"].astype(float))
    points = over_seeds(table, ["recipe", "panel", "activation", "method", "strength"], "test_accuracy")
    names = list(dict.fromkeys(table["activation"]))
    colour = style.colours(spec["activation"], names)
    methods = [m for m in dict.fromkeys(table["method"]) if m != "sgd"] or ["sgd"]
    panels = [(recipe, method) for recipe in dict.fromkeys(table["recipe"]) for method in methods]
    figure = Figure(figsize=(style.PAGE if len(panels) > 1 else style.COLUMN, 6.5 * style.CM))
    grid = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (recipe, method) in zip(grid, panels, strict=True):
        here = points[(points["recipe"] == recipe) & points["method"].isin([method, "sgd"])]
        for name, marker in zip(names, cycle(style.MARKERS), strict=False):
            line = here[here["activation"] == name].sort_values("strength")
            look = {"color": colour[name], "marker": marker, "label": ACTIVATIONS.parse(name).full_label}
            axes.fill_between(line["strength"], line["low"], line["high"], color=colour[name], alpha=0.2, linewidth=0)
            axes.plot(line["strength"], line["mean"], **look)
            for level in line.loc[line["strength"] == 0, "mean"]:
                axes.axhline(level, color=colour[name], linestyle=":", linewidth=0.8)
        floor = _zoom(axes, here)
        drawn = here["activation"].map(colour)
        low, lost = here["mean"] < floor, here["diverged"] > 0
        _note(axes, here[low], drawn[low], False, lambda point: f"▼ {point['mean']:.0f}")
        _note(axes, here[lost], drawn[lost], True, lambda point: f"× {point['diverged']}/{point['members']}")
        style.strength_axis(axes, sorted(points["strength"].unique()), label)
        title = here["panel"].iloc[0]
        axes.set_title(title if len(methods) == 1 else f"{title}\n{METHODS.parse(method).full_label}")
    grid[0].set_ylabel("test accuracy (%)")
    grid[0].legend(loc="lower left")
    seeds, diverged = record["spec"]["seeds"], int(points["diverged"].sum())
    style.footer(
        figure,
        f"scale {record['spec']['scale']}",
        f"mean and 95 % t-interval over {seeds} seed{'s' if seeds > 1 else ''}",
        "dotted: without a penalty",
        f"× loss not finite: {diverged} of {len(table)}" if diverged else "every loss finite",
        "▼ mean below the axis",
    )
    return figure, points.rename(columns={"mean": "test_accuracy_percent", "low": "ci95_low", "high": "ci95_high"})
