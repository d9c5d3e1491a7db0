"""Accuracy against strength: the design of every grid figure."""

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
        rows.append({**dict(zip(by, key, strict=True)), **counts, "mean": mean, "low": mean - half, "high": mean + half})
    return pd.DataFrame(rows)


def _zoom(axes: Axes, points: pd.DataFrame, colour: dict[str, str]) -> None:
    """Show the upper ``SHOWN_POINTS`` percentage points; a mean below them is a triangle at the edge, with its value.

    A strength that destroys the training would otherwise flatten the differences that a figure is about.
    """
    high = np.nanmax(points["high"].fillna(points["mean"]))
    low = np.nanmin(points["low"].fillna(points["mean"]))
    floor = max(low, points["mean"].max() - SHOWN_POINTS, 0)
    margin = 0.05 * (min(high, 100) - floor)
    axes.set_ylim(floor - margin, min(high, 100) + margin)
    below = points[points["mean"] < floor]
    for place, (_, point) in enumerate(below.sort_values(["strength", "mean"]).iterrows()):
        edge = axes.get_xaxis_transform()
        axes.plot(point["strength"], 0.02, "v", color=colour[point["activation"]], transform=edge, clip_on=False)
        offset = 0.06 + 0.06 * (point["strength"] in list(below.sort_values(["strength", "mean"])["strength"][:place]))
        axes.text(
            point["strength"], offset, f"{point['mean']:.0f}", fontsize=5, ha="center", transform=edge,
            color=colour[point["activation"]],
        )  # fmt: skip


def accuracy_against_strength(
    table: pd.DataFrame, spec: dict, record: dict, label: str
) -> tuple[Figure, pd.DataFrame]:
    """One panel a recipe, one line an activation: test accuracy (%) against strength.

    The level without a penalty is a dotted line in the activation's colour. A point with diverged members is marked by a
    cross at the lower edge with their number.

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
            for _, point in line[line["diverged"] > 0].iterrows():
                edge = axes.get_xaxis_transform()
                axes.plot(point["strength"], 0.03, "x", color=colour[name], transform=edge, clip_on=False)
                text = f"{point['diverged']:.0f}/{point['members']:.0f}"
                axes.text(point["strength"], 0.06, text, fontsize=5, ha="center", transform=edge)
        _zoom(axes, points[points["panel"] == panel], colour)
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
    )
    points = points.rename(columns={"mean": "test_accuracy_percent", "low": "ci95_low", "high": "ci95_high"})
    return figure, points
