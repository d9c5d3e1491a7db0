"""Share of the NME over training, extreme eigenvalues, and spectral densities; one column per activation."""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nme.activations import ACTIVATIONS
from nme.figures import style
from nme.figures.curves import over_seeds
from nme.figures.drawings.traces import MARKERS
from nme.grid.specs import PlotSpec

PLACE = ["recipe", "panel", "activation"]
LINES = {"share": "solid: ‖N‖$_F$ / ‖H‖$_F$", "blocks": "dashed: its diagonal blocks"}


def draw(table: pd.DataFrame, spec: PlotSpec, record: dict) -> tuple[Figure, pd.DataFrame]:
    """Draw three rows: share of the NME, extreme eigenvalues, spectral density at the end of the training."""
    shares = over_seeds(_shares(table).assign(diverged=False), [*PLACE, "quantity", "step"], "value")
    extremes = over_seeds(_extremes(table).assign(diverged=False), [*PLACE, "quantity", "operator", "step"], "value")
    places = table[PLACE].drop_duplicates().to_dict("records")
    figure = Figure(figsize=(style.COLUMN, 3 * style.PANEL_HEIGHT + 2.2 * style.CM))
    grid = figure.subplots(3, len(places), squeeze=False)
    for place, (top, middle, bottom) in zip(places, grid.T, strict=True):
        top.set_title(f"{place['panel']}\n{ACTIVATIONS.parse(place['activation']).full_label}")
        _draw_shares(top, _at(shares, place), spec.colours["N"])
        _draw_extremes(middle, _at(extremes, place), spec.colours)
        _draw_densities(bottom, _at(table, place), spec.colours)
    for row in grid:
        for axes in row[1:]:
            axes.sharey(row[0])
    for axes, label in zip(
        grid[:, 0], ("share of the NME", "extreme eigenvalues\n(loss / parameter²)", "spectral density"), strict=True
    ):
        axes.set_ylabel(label)
    style.legend(figure, list(grid[1]))
    seeds, measured = record["spec"]["seeds"], f"{' · '.join(LINES.values())}"
    style.footer(
        figure,
        f"scale {spec.scale}",
        f"mean and 95 % t-interval over {seeds} seed{'s' if seeds > 1 else ''}",
        "plain SGD",
        "training data, eval mode",
        f"above: {measured}",
        "below: after training",
    )
    return figure, pd.concat([shares, extremes]).drop(columns="diverged").rename(
        columns={"mean": "value", "low": "ci95_low", "high": "ci95_high"}
    )


def _at(rows: pd.DataFrame, place: dict) -> pd.DataFrame:
    return rows[(rows["recipe"] == place["recipe"]) & (rows["activation"] == place["activation"])]


def _shares(table: pd.DataFrame) -> pd.DataFrame:
    """‖N‖_F/‖H‖_F and ‖blocks of N‖_F/‖H‖_F of each member and step, from the probes' mean squares."""
    squares = table[table["quantity"] == "squared_norms"]
    by = [*PLACE, "seed", "step"]
    whole = squares[squares["layer"] == ""].groupby([*by, "operator"])["value"].mean().unstack("operator")
    blocks = squares[squares["layer"] != ""].groupby([*by, "layer"])["value"].mean().groupby(by).sum()
    found = {"share": np.sqrt(whole["N"] / whole["H"]), "blocks": np.sqrt(blocks / whole["H"])}
    return pd.concat([v.rename("value").reset_index().assign(quantity=name) for name, v in found.items()])


def _extremes(table: pd.DataFrame) -> pd.DataFrame:
    """Smallest and largest Ritz value of each member, step and operator."""
    ritz = table[table["quantity"] == "spectrum"].groupby([*PLACE, "seed", "step", "operator"])["value"]
    found = {"smallest": ritz.min(), "largest": ritz.max()}
    return pd.concat([v.reset_index().assign(quantity=name) for name, v in found.items()])


def _draw_shares(axes: Axes, points: pd.DataFrame, colour: str) -> None:
    for name, style_of in (("share", "-"), ("blocks", "--")):
        line = points[points["quantity"] == name].sort_values("step")
        axes.fill_between(line["step"], line["low"], line["high"], color=colour, alpha=0.18, linewidth=0)
        axes.plot(line["step"], line["mean"], color=colour, marker=MARKERS["N"], linestyle=style_of)
    axes.set_ylim(bottom=-0.03)
    axes.set_xlabel("training step")


def _draw_extremes(axes: Axes, points: pd.DataFrame, colours: dict[str, str]) -> None:
    for symbol, colour in colours.items():
        for name in ("largest", "smallest"):
            line = points[(points["operator"] == symbol) & (points["quantity"] == name)].sort_values("step")
            axes.fill_between(line["step"], line["low"], line["high"], color=colour, alpha=0.15, linewidth=0)
            label = symbol if name == "largest" else None
            axes.plot(line["step"], line["mean"], color=colour, marker=MARKERS[symbol], label=label)
    axes.axhline(0, color="0.6", linewidth=0.6, zorder=1)
    axes.set_yscale("symlog", linthresh=1)
    axes.minorticks_off()
    axes.set_xlabel("training step")


def _draw_densities(axes: Axes, table: pd.DataFrame, colours: dict[str, str]) -> None:
    """Draw each Ritz value as a Gaussian of 1 % of the shown range, averaged over probes and seeds."""
    last = table[(table["quantity"] == "spectrum") & (table["at"] == table["at"].max())]
    low, high = last["value"].min(), last["value"].max()
    at = np.linspace(low - 0.05 * (high - low), high + 0.05 * (high - low), 600)
    width = 0.01 * (high - low)
    highest = 0.0
    for symbol, colour in colours.items():
        rows = last[last["operator"] == symbol]
        runs = len(rows[["seed", "probe"]].drop_duplicates())
        bumps = np.exp(-0.5 * ((at[:, None] - rows["value"].to_numpy()) / width) ** 2) / (width * np.sqrt(2 * np.pi))
        density = bumps @ rows["weight"].to_numpy() / runs
        axes.plot(at, density, color=colour)
        highest = max(highest, density.max())
    axes.set_yscale("log")
    axes.set_ylim(1e-6 * highest, 3 * highest)
    axes.set_xlabel("eigenvalue")
