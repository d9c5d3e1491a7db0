"""Accuracy curves: the drawing of every figure with ``curves`` in config/figures/<name>.yaml."""

from collections.abc import Callable
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from scipy.stats import t

from nme.activations import ACTIVATIONS
from nme.figures import style
from nme.grid.specs import PlotSpec
from nme.methods import METHODS

CONFIDENCE = 0.95
SHOWN_ERROR = 2.5  # a panel shows errors up to this multiple of the smallest one
LEAST_ERROR = 10  # points; near 100 % a small multiple of the smallest error shows next to nothing
LITTLE_MORE = 1.25  # the range of all errors over that of the shown ones, up to which all are shown
SPLITS = {"train_accuracy": "train accuracy", "test_accuracy": "test accuracy"}


def over_seeds(table: pd.DataFrame, by: list[str], value: str) -> pd.DataFrame:
    """Mean and interval over seeds for each combination of ``by``.

    The interval is Student's t with n − 1 degrees of freedom at 95 %. Diverged members have no value: they are
    counted, not averaged.

    Args:
        table: one row per member, with ``value`` and ``diverged``.
        by: columns that distinguish the points.
        value: the column to average.

    Returns:
        Columns ``by``, members, diverged, mean, low, high; low and high are missing for fewer than two values.
    """
    rows = []
    for key, group in table.groupby(by, sort=False):
        values = group.loc[~group["diverged"], value].to_numpy(dtype=float)
        n = len(values)
        mean = values.mean() if n else np.nan
        # ttest_1samp's interval, but without its warning if all seeds agree, which is nothing unusual here.
        half = t.ppf(0.5 + CONFIDENCE / 2, n - 1) * values.std(ddof=1) / np.sqrt(n) if n > 1 else np.nan
        counts = {"members": len(group), "diverged": int(group["diverged"].sum())}
        rows.append(
            {**dict(zip(by, key, strict=True)), **counts, "mean": mean, "low": mean - half, "high": mean + half}
        )
    return pd.DataFrame(rows)


def _with_unpenalised(table: pd.DataFrame) -> pd.DataFrame:
    """Repeat the rows of plain SGD as strength 0 of each method, so that every curve begins there."""
    plain = table[table["method"] == "sgd"]
    methods = [m for m in dict.fromkeys(table["method"]) if m != "sgd"] or ["sgd"]
    penalised = table[table["method"] != "sgd"]
    return pd.concat([p for m in methods for p in (plain.assign(method=m), penalised[penalised["method"] == m])])


def _with_panels(table: pd.DataFrame, columns: str, groups: list[list[str]]) -> pd.DataFrame:
    """Add the columns ``column`` (the panel) and ``accuracy`` (in percent); a row may appear in several panels."""
    if groups:
        parts = [table[table["activation"].isin(g)].assign(column=f"group {i}") for i, g in enumerate(groups)]
    elif columns == "split":
        parts = [table.assign(column=name, accuracy=table[c]) for c, name in SPLITS.items()]
    elif columns == "activation":
        parts = [table.assign(column=[ACTIVATIONS.parse(a).full_label for a in table["activation"]])]
    else:
        parts = [table.assign(column="")]
    table = pd.concat([p if "accuracy" in p else p.assign(accuracy=p["test_accuracy"]) for p in parts])
    return table.assign(accuracy=100 * table["accuracy"].astype(float))


def _zoom(axes: Axes, points: pd.DataFrame) -> float:
    """Show errors up to ``SHOWN_ERROR`` times the smallest mean error or ``LEAST_ERROR``; return the lowest accuracy.

    A strength that destroys the training would otherwise flatten the interesting differences. Where showing all of them
    takes little more room, all are shown. The interval of a mean that is not shown takes no room above.
    """
    values = points[["low", "mean", "high"]].to_numpy(dtype=float)
    values = values[np.isfinite(values)]
    if not len(values):
        axes.set_ylim(0, 100)
        return 0
    least_error = max(100 - points["mean"].max(), LEAST_ERROR)
    lowest, floor = max(values.min(), 0), max(100 - SHOWN_ERROR * least_error, 0)
    high = min(points.loc[points["mean"] >= floor, ["mean", "high"]].max(axis=None), 100)
    if high - lowest <= LITTLE_MORE * (high - floor):
        floor, high = lowest, min(values.max(), 100)
    margin = 0.05 * max(high - floor, 1)
    axes.set_ylim(floor - margin, high + margin)
    return floor


def _note(axes: Axes, points: pd.DataFrame, colours: list[str], top: bool, text: Callable) -> None:
    """Write a short text for each point at the upper or lower edge of a panel, each on its own line."""
    for i, (_, point) in enumerate(points.assign(colour=colours).sort_values("x").iterrows()):
        place = (point["x"], 0.93 - 0.075 * i if top else 0.01 + 0.075 * i)
        look: style.Look = {"color": point["colour"], "fontsize": 5.5, "ha": "center"}
        look["path_effects"] = [withStroke(linewidth=1.5, foreground="white")]  # lines may pass behind it
        axes.annotate(text(point), place, xycoords=axes.get_xaxis_transform(), **look)


def _looks(names: list[str], colours: dict[str, str], label: Callable[[str], str]) -> dict[str, dict]:
    """Style of each line; among lines of the same colour, the first is solid and the others are dashed."""
    looks: dict[str, dict] = {}
    for name, marker in zip(names, cycle(style.MARKERS), strict=False):
        first = colours[name] not in [look["color"] for look in looks.values()]
        looks[name] = {"color": colours[name], "marker": marker, "linestyle": "-" if first else "--"}
        looks[name]["label"] = label(name)
    return looks


def _reference_levels(axes: Axes, here: pd.DataFrame, looks: dict[str, dict], lines: str, x: str) -> None:
    """Draw the level without a penalty as a dotted line, in the activation's colour or in that of plain SGD."""
    if x != "strength":
        return
    levels = here[here["x"] == 0].drop_duplicates("activation")
    for _, point in levels.iterrows():
        colour = looks[point["activation"]]["color"] if lines == "activation" else "0.3"
        axes.axhline(point["mean"], color=colour, linestyle=":", linewidth=0.7, zorder=1)


def draw(table: pd.DataFrame, spec: PlotSpec, record: dict) -> tuple[Figure, pd.DataFrame]:
    """Draw mean accuracies (%) with intervals over seeds, against a strength or a parameter of the activation.

    Every line begins at plain SGD, the level without a penalty, which is also a dotted line. A cross at the upper edge
    shows the number of diverged members; a triangle at the lower edge shows a mean far below the others.

    Args:
        table: from ``tables.collect``.
        spec: one with ``curves``.
        record: record of the table, for the footer.
    """
    curves = spec.curves
    assert curves, "the plot stage chooses this drawing for curves"
    x, lines = curves.x, curves.lines
    if x == "strength":
        table = _with_unpenalised(table).assign(x=lambda rows: rows["strength"])
    else:
        table = table.assign(x=[float(ACTIVATIONS.parse(a).values[x]) for a in table["activation"]])
    table = _with_panels(table, curves.columns, curves.groups)
    points = over_seeds(table, ["recipe", "panel", "column", "activation", "method", "x"], "accuracy")
    names = list(dict.fromkeys(table[lines]))
    registry = ACTIVATIONS if lines == "activation" else METHODS
    looks = _looks(names, style.colours(spec.colours, names), lambda name: registry.parse(name).full_label)
    if x != "strength" and lines == "method":
        looks = _with_strengths(looks, table)

    recipes, columns = list(dict.fromkeys(points["recipe"])), list(dict.fromkeys(points["column"]))
    figure, grid = style.panels(len(recipes) * len(columns))
    panels = [(recipe, column) for recipe in recipes for column in columns]
    below = False
    for axes, (recipe, column) in zip(grid, panels, strict=True):
        here = points[(points["recipe"] == recipe) & (points["column"] == column)]
        for name, look in looks.items():
            line = here[here[lines] == name].sort_values("x")
            if line.empty:
                continue
            low, high = line["low"].clip(lower=0), line["high"].clip(upper=100)
            axes.fill_between(line["x"], low, high, color=look["color"], alpha=0.18, linewidth=0)
            axes.plot(line["x"], line["mean"], **look)
        _reference_levels(axes, here, looks, lines, x)
        floor = _zoom(axes, here)
        below |= bool((here["mean"] < floor).any())
        drawn = here[lines].map(lambda name: looks[name]["color"])
        low, lost = here["mean"] < floor, here["diverged"] > 0
        _note(axes, here[low], drawn[low], False, lambda point: f"▼{point['mean']:.0f}")
        _note(axes, here[lost], drawn[lost], True, lambda point: f"×{point['diverged']}")
        (style.strength_axis if x == "strength" else style.parameter_axis)(axes, sorted(points["x"].unique()))
        title = here["panel"].iloc[0]
        axes.set_title(f"{title}\n{column}" if column and not column.startswith("group") else title)
    for axes in grid[::2]:
        axes.set_ylabel("accuracy (%)" if curves.columns == "split" else "test accuracy (%)")
    style.legend(figure, grid)
    seeds, diverged = record["spec"]["seeds"], int(table["diverged"].sum())
    style.footer(
        figure,
        f"scale {spec.scale}",
        f"mean and 95 % t-interval over {seeds} seed{'s' if seeds > 1 else ''}",
        *(["dotted: without a penalty"] if x == "strength" else []),
        f"×n: n of {seeds} seeds diverged and are left out" if diverged else "no seed diverged",
        *(["▼ mean below the axis"] if below else []),
        x_label=curves.x_label,
    )
    if not curves.groups and curves.columns != "split":  # otherwise recipe and activation suffice
        points = points.drop(columns="column")
    points = points.rename(columns={"x": x, "mean": "accuracy_percent", "low": "ci95_low", "high": "ci95_high"})
    return figure, points


def _with_strengths(looks: dict[str, dict], table: pd.DataFrame) -> dict[str, dict]:
    """Add the strength to the labels of methods with a single strength: ``gradient penalty, ρ = 0.1``."""
    for name, look in looks.items():
        strengths = table.loc[table["method"] == name, "strength"].unique()
        if name != "sgd" and len(strengths) == 1:
            look["label"] += f", {METHODS.parse(name).symbol} = {strengths[0]:g}"
    return looks
