"""Accuracy against strength: the design of every grid figure."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import t

from nme.activations import ACTIVATIONS
from nme.figures import style

CONFIDENCE = 0.95
SHOWN_POINTS = 20


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
            {
                **dict(zip(by, key, strict=True)),
                **counts,
                "mean": mean,
                "low": mean - half,
                "high": mean + half,
            }
        )
    return pd.DataFrame(rows)


def _zoom(axes: Axes, points: pd.DataFrame) -> float:
    """Show the upper ``SHOWN_POINTS`` percentage points, and return the lower end.

    A strength that destroys the training would otherwise flatten the differences that a figure is about.
    """
    high = min(np.nanmax(points["high"].fillna(points["mean"])), 100)
    low = np.nanmin(points["low"].fillna(points["mean"]))
    floor = max(low, points["mean"].max() - SHOWN_POINTS, 0)
    margin = 0.05 * (high - floor)
    axes.set_ylim(floor - margin, high + margin)
    return floor


def _note(axes: Axes, points: pd.DataFrame, colour: dict[str, str], top: bool, text: Callable) -> None:
    """A short text for each point at the upper or lower edge of a panel, those of one strength above each other."""
    for strength, group in points.groupby("strength"):
        for i, (_, point) in enumerate(group.iterrows()):
            place = {"xy": (strength, 0.94 - 0.06 * i if top else 0.01 + 0.06 * i)}
            look = {"color": colour[point["activation"]], "fontsize": 6, "ha": "center"}
            axes.annotate(text(point), xycoords=axes.get_xaxis_transform(), **place, **look)


def accuracy_against_strength(table: pd.DataFrame, spec: dict, record: dict, label: str) -> tuple[Figure, pd.DataFrame]:
    """One panel a recipe, one line an activation: test accuracy (%) against strength.

    The level without a penalty is a dotted line in the activation's colour. Diverged members are a cross at the upper
    edge with their number, a mean far below the others a triangle at the lower edge with its value.

    Args:
        table: ``tables.collect``'s.
        spec: ``grid.plot_spec``.
        record: the table's, for the footer.
        label: of the strength axis, with symbol and unit.
    """
    table = table.assign(test_accuracy=100 * table["test_accuracy"])
    points = over_seeds(table, ["panel", "activation", "strength"], "test_accuracy")
    panels = list(dict.fromkeys(table["panel"]))
    names = list(dict.fromkeys(table["activation"]))
    colour = style.colours(spec["activation"], names)
    width = style.PAGE if len(panels) > 1 else style.COLUMN
    figure, grid = pyplot.subplots(1, len(panels), figsize=(width, 6.5 * style.CM), squeeze=False)
    for axes, panel in zip(grid[0], panels, strict=True):
        for name, marker in zip(names, style.MARKERS, strict=False):
            line = points[(points["panel"] == panel) & (points["activation"] == name)].sort_values("strength")
            title = ACTIVATIONS.parse(name).full_label
            axes.fill_between(line["strength"], line["low"], line["high"], color=colour[name], alpha=0.2, linewidth=0)
            axes.plot(line["strength"], line["mean"], marker=marker, color=colour[name], label=title)
            for level in line.loc[line["strength"] == 0, "mean"]:
                axes.axhline(level, color=colour[name], linestyle=":", linewidth=0.8)
        here = points[points["panel"] == panel]
        floor = _zoom(axes, here)
        _note(axes, here[here["mean"] < floor], colour, False, lambda point: f"▼ {point['mean']:.0f}")
        _note(axes, here[here["diverged"] > 0], colour, True, lambda point: f"× {point['diverged']:.0f}")
        style.strength_axis(axes, sorted(points["strength"].unique()), label)
        axes.set_title(panel)
    grid[0, 0].set_ylabel("test accuracy (%)")
    grid[0, 0].legend(loc="lower left")
    seeds = record["spec"]["seeds"]
    lost = int(points["diverged"].sum())
    style.footer(
        figure,
        f"scale {record['spec']['scale']}",
        f"mean and 95 % t-interval over {seeds} seed{'s' if seeds > 1 else ''}",
        "dotted: without a penalty",
        f"× diverged: {lost} of {len(table)}" if lost else "none diverged",
        "▼ mean below the axis",
    )
    points = points.rename(columns={"mean": "test_accuracy_percent", "low": "ci95_low", "high": "ci95_high"})
    return figure, points
