"""Map: the effect of each claim against the share of the NME in the penalty's update; one point per recipe."""

import math
import textwrap
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from nme.activations import ACTIVATIONS
from nme.figures import style
from nme.grid.specs import PlotSpec

COLOURS = {False: "#0072B2", True: "#D55E00"}  # True: some training labels are random
WIDEST = 100  # larger intervals leave the axis
LARGE = 15  # if an effect is larger, the vertical axis is logarithmic beyond ±LINEAR
LINEAR = 5
PANEL, HEADING, LEGEND_LINE = 2.1, 1.05, 0.27  # heights in cm
NUMBER_SIZE, NUMBER_FAR = 4.5, 6  # typographic points; a number further from its data point has a line to it
# Possible places of a data point's number: distances from it and angles, in order of preference.
ANGLES = (45, 135, 315, 225, 90, 270, 0, 180, 22, 158, 338, 202, 67, 113, 247, 293)
PLACES = [(distance, angle) for distance in (3, 4, 5.5, 7.5, 10, 13, 17, 22, 28, 35, 44, 55) for angle in ANGLES]

Box = tuple[float, float, float, float]  # left, bottom, right, top; typographic points
NOWHERE: Box = (0, 0, 0, 0)


def draw(table: pd.DataFrame, spec: PlotSpec, record: dict) -> tuple[Figure, pd.DataFrame]:
    """Draw one panel per contrast, with its dependence on the share; each recipe has a number, a colour and a shape."""
    contrasts = [own for _, own in table.groupby(["claim", "contrast"], sort=False)]
    looks, rows = _looks(table), _legend_rows(table)
    height = (PANEL + HEADING) * len(contrasts) + LEGEND_LINE * rows + 1.9
    figure = Figure(figsize=(style.COLUMN, height * style.CM))
    panels = list(figure.subplots(len(contrasts), 1, sharex=True, squeeze=False).flat)
    smallest = record["spec"]["smallest_effect"]
    for axes, own in zip(panels, contrasts, strict=True):
        axes.axhspan(-smallest, smallest, color="0.92", linewidth=0)
        axes.axhline(0, color="0.4", linewidth=0.6)
        for row in own.itertuples():
            bars = {"color": looks[row.recipe]["color"], "linewidth": 0.6, "alpha": 0.6}
            axes.plot([row.share_low, row.share_high], [row.effect] * 2, **bars)
            axes.plot([row.share] * 2, [row.low, row.high], **bars)
            axes.plot(row.share, row.effect, **looks[row.recipe], markersize=3.2, zorder=3)
        _heading(axes, own)
        _effect_axis(axes, own[["low", "high", "effect"]].to_numpy(dtype=float), smallest)
        axes.set_ylabel("effect (points)", fontsize=6)
    _share_axis(panels[-1], table)
    _legend(figure, table, looks, rows)
    seeds, activation = table["seeds"].max(), ACTIVATIONS.parse(record["spec"]["shares"]["activation"])
    style.footer(
        figure,
        f"scale {spec.scale}",
        f"95 % t-intervals over {seeds} seed{'s' if seeds > 1 else ''}",
        "up: as the paper says",
        f"grey: ±{smallest:g} points, the smallest effect of interest",
        *(["orange: with random training labels"] if (table["label_noise"] > 0).any() else []),
        *(["⨯: seeds with a diverged member, plus side : minus side"] if _lost(table).any() else []),
        "each interval of a correlation by itself",
        x_label=f"share ‖N$_{{φ″}}$ĝ‖ / ‖Hĝ‖ of plain SGD, {activation.full_label}",
    )
    figure.draw_without_rendering()  # places the panels, so that the numbers can avoid each other
    for axes, own in zip(panels, contrasts, strict=True):
        _number(figure, axes, own, looks)
    return figure, table


def _looks(table: pd.DataFrame) -> dict[str, dict]:
    """Colour by label noise, shape by kind of network."""
    shapes = dict(zip(dict.fromkeys(table["network"]), cycle(style.MARKERS), strict=False))
    recipes = table.drop_duplicates("recipe").itertuples()
    line = {"linestyle": "", "markeredgewidth": 0.5, "markeredgecolor": "white"}
    return {r.recipe: {"color": COLOURS[r.label_noise > 0], "marker": shapes[r.network], **line} for r in recipes}


def _lost(table: pd.DataFrame) -> pd.Series:
    return table["diverged_plus"] + table["diverged_minus"] > 0


def _heading(axes: Axes, own: pd.DataFrame) -> None:
    """Write three lines above a panel: the claim, the contrast, and the dependence of its effect on the share."""
    first = own.iloc[0]
    contrast = first["contrast"]
    if first["over"] == "mean" and first["cells"] > 1:
        contrast += f" (mean over {first['cells']} trainings)"
    for what in ("effect", "share"):
        missing = own.loc[own[what].isna(), "setting"].astype(str)
        contrast += f"; no {what}: {', '.join(missing)}" if len(missing) else ""
    lines: list[tuple[str, style.Look]] = [
        (first["dependence"], {"fontsize": 5.5}),
        *((line, {"fontsize": 5, "color": "0.4"}) for line in reversed(textwrap.wrap(contrast, 84))),
        *((line, {"fontsize": 6}) for line in reversed(textwrap.wrap(f"{first['claim']}.  {first['says']}", 70))),
    ]
    for i, (text, look) in enumerate(lines):
        place: style.Look = {"xytext": (0, 5 + 7.3 * i), "textcoords": "offset points", "annotation_clip": False}
        words = axes.annotate(text, (0.01, 1), xycoords=("figure fraction", "axes fraction"), **place, **look)
        words.set_in_layout(False)  # they are wider than the axes
    axes.set_title("\n".join(" " for _ in lines), fontsize=5.5, pad=3)  # the place for them


def _effect_axis(axes: Axes, values: np.ndarray, smallest: float) -> None:
    """Set a linear axis for small effects; logarithmic beyond ±``LINEAR`` if large effects would flatten the rest."""
    values = np.clip(values[np.isfinite(values)], -WIDEST, WIDEST)
    low, high = min([*values, -1.3 * smallest]), max([*values, 1.3 * smallest])
    if max(-low, high) <= LARGE:
        margin = 0.08 * (high - low)
        axes.set_ylim(low - margin, high + margin)
        axes.locator_params(axis="y", nbins=4, integer=True)
        return
    axes.set_yscale("symlog", linthresh=LINEAR, linscale=1)
    axes.set_ylim(min(1.3 * low, -LINEAR), max(1.3 * high, LINEAR))
    ticks = [tick for tick in (-50, -15, -5, 0, 5, 15, 50) if 1.3 * low <= tick <= 1.3 * high]
    axes.set_yticks(ticks, [str(tick).replace("-", "−") for tick in ticks])
    axes.minorticks_off()


def _share_axis(axes: Axes, table: pd.DataFrame) -> None:
    """From 0; wide intervals of few seeds would flatten the rest, so they may leave the axis."""
    shares = table["share"].dropna()
    widest = max([*shares], default=1) or 1
    high = max([*table["share_high"].dropna(), widest])
    axes.set_xlim(0, 1.06 * min(high, 1.5 * widest))


def _legend_rows(table: pd.DataFrame) -> int:
    recipes = table.drop_duplicates("recipe")
    return -(-len(recipes) // (2 if recipes["panel"].str.len().max() <= 36 else 1))


def _legend(figure: Figure, table: pd.DataFrame, looks: dict[str, dict], rows: int) -> None:
    """The list of the settings: number, look and title."""
    recipes = table.drop_duplicates("recipe").sort_values("setting").itertuples()
    handles = [Line2D([], [], **looks[r.recipe], markersize=4, label=f"{r.setting}  {r.panel}") for r in recipes]
    columns = -(-len(handles) // rows)
    more = {"handletextpad": 0.2, "labelspacing": 0.3, "columnspacing": 1}
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, fontsize=5, **more)


def _number(figure: Figure, axes: Axes, own: pd.DataFrame, looks: dict[str, dict]) -> None:
    """Write the number of each setting next to its point, at a place that covers no point and no other number."""
    points = own[own["share"].notna() & own["effect"].notna()]
    scale = 72 / figure.dpi
    centres = axes.transData.transform(points[["share", "effect"]].to_numpy(dtype=float)) * scale
    frame = np.array(axes.get_window_extent().extents) * scale
    taken = [(x - 2, y - 2, x + 2, y + 2) for x, y in centres]
    bars = []
    for row in points.itertuples():
        bars.append(_bar(axes, (row.share_low, row.effect), (row.share_high, row.effect), scale))
        bars.append(_bar(axes, (row.share, row.low), (row.share, row.high), scale))
    for row, (x, y) in zip(points.itertuples(), centres, strict=True):
        lost = f"⨯{row.diverged_plus}:{row.diverged_minus}" if row.diverged_plus or row.diverged_minus else ""
        text = f"{row.setting}{lost}"
        width, height = 0.7 * NUMBER_SIZE * len(text) + 0.5, 1.5 * NUMBER_SIZE
        best = (math.inf, 0.0, 0.0, NOWHERE, 0.0)
        for distance, angle in PLACES:
            dx = np.cos(np.radians(angle)) * (distance + width / 2)
            dy = np.sin(np.radians(angle)) * (distance + height / 2)
            box = (x + dx - width / 2, y + dy - height / 2, x + dx + width / 2, y + dy + height / 2)
            inside = (max(frame[0], box[0]), max(frame[1], box[1]), min(frame[2], box[2]), min(frame[3], box[3]))
            covered = sum(_overlap(box, other) for other in taken) + 3 * (width * height - _area(inside))
            covered += 0.3 * sum(_overlap(box, bar) for bar in bars)
            if covered < best[0] - 1e-6:
                best = (covered, dx, dy, box, distance)
            if covered < 1e-6:
                break
        _, dx, dy, box, distance = best
        taken.append(box)
        look: style.Look = {"color": looks[row.recipe]["color"], "fontsize": NUMBER_SIZE}
        look |= {"ha": "center", "va": "center"}
        if distance > NUMBER_FAR:
            look["arrowprops"] = {"arrowstyle": "-", "linewidth": 0.3, "color": "0.5", "shrinkA": 0, "shrinkB": 2}
        stroke = [withStroke(linewidth=1, foreground="white")]
        place: style.Look = {"xytext": (dx, dy), "textcoords": "offset points", "path_effects": stroke, "zorder": 4}
        axes.annotate(text, (row.share, row.effect), **place, **look).set_in_layout(False)


def _bar(axes: Axes, low: tuple[float, float], high: tuple[float, float], scale: float) -> Box:
    """Box of the bar between two points of a panel; empty if there is no interval."""
    if not np.isfinite([low, high]).all():
        return NOWHERE
    (x0, y0), (x1, y1) = axes.transData.transform([low, high]) * scale
    dx, dy = (0.4, 0) if low[0] == high[0] else (0, 0.4)  # half its width
    return (x0 - dx, y0 - dy, x1 + dx, y1 + dy)


def _overlap(one: Box, other: Box) -> float:
    return _area((max(one[0], other[0]), max(one[1], other[1]), min(one[2], other[2]), min(one[3], other[3])))


def _area(box: Box) -> float:
    return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])
