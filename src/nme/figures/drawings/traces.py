"""Traces of H, G and N over training; one panel per training method."""

import math

import pandas as pd
from matplotlib.figure import Figure

from nme.figures import style
from nme.figures.curves import over_seeds
from nme.grid.specs import PlotSpec
from nme.methods import METHODS

MARKERS = {"H": "o", "G": "s", "N": "^"}


def draw(table: pd.DataFrame, spec: PlotSpec, record: dict) -> tuple[Figure, pd.DataFrame]:
    """Draw traces, averaged over probes, then with mean and interval over seeds; the vertical axis is linear near 0."""
    by = ["recipe", "panel", "method", "strength", "seed", "step", "operator"]
    traces = table[table["quantity"] == "traces"].groupby(by, as_index=False, sort=False)["value"].mean()
    points = over_seeds(traces.assign(diverged=False), [c for c in by if c != "seed"], "value")
    panels = points[["recipe", "panel", "method", "strength"]].drop_duplicates().to_dict("records")
    figure, grid = style.panels(len(panels))
    linear = 10.0 ** math.floor(math.log10(max(1.0, points["mean"].abs().median())))  # a tick, so it can be read
    for axes, place in zip(grid, panels, strict=True):
        here = points[
            (points[["recipe", "method", "strength"]] == [place[c] for c in ("recipe", "method", "strength")]).all(
                axis=1
            )
        ]
        for symbol, colour in spec.colours.items():
            line = here[here["operator"] == symbol].sort_values("step")
            axes.fill_between(line["step"], line["low"], line["high"], color=colour, alpha=0.18, linewidth=0)
            axes.plot(line["step"], line["mean"], color=colour, marker=MARKERS[symbol], label=f"tr {symbol}")
        axes.axhline(0, color="0.6", linewidth=0.6, zorder=1)
        axes.set_yscale("symlog", linthresh=linear)
        axes.minorticks_off()
        method = METHODS.parse(place["method"])
        strength = f"\n{method.symbol} = {place['strength']:g}" if method.symbol else "\n"
        axes.set_title(f"{place['panel']}\n{method.full_label}{strength}")
    values = points["mean"]
    for axes in grid:  # one scale, set by the means: an interval over runaway seeds would span decades
        axes.set_ylim(2 * min(values.min(), -linear), 2 * max(values.max(), linear))
        # Labels of the linear part would lie on top of each other.
        axes.set_yticks([tick for tick in axes.get_yticks() if tick == 0 or abs(tick) >= linear])
    for axes in grid[::2]:
        axes.set_ylabel("trace (loss / parameter²)")
    style.legend(figure, grid)
    seeds = record["spec"]["seeds"]
    gone = points["members"].min() < seeds
    style.footer(
        figure,
        f"scale {spec.scale}",
        f"mean and 95 % t-interval over {seeds} seed{'s' if seeds > 1 else ''}",
        *(["fewer after a seed has diverged"] if gone else []),
        "training data, eval mode",
        f"vertical axis linear up to ±{linear:g}",
        x_label="training step",
    )
    names = {"mean": "trace", "low": "ci95_low", "high": "ci95_high"}
    return figure, points.drop(columns="diverged").rename(columns=names)
