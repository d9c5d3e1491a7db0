"""Figure 1: loss and NME over two weights of one hidden layer."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.collections import QuadMesh
from matplotlib.colors import FuncNorm, ListedColormap, Normalize
from matplotlib.figure import Figure

from nme.activations import ACTIVATIONS, Activation
from nme.figures import style
from nme.grid.specs import PlotSpec

BOUNDARY = "#0072B2"
LOSS_MAP = ListedColormap(colormaps["Greys"](np.linspace(0, 0.6, 256)))  # lines stay visible on it
NME_MAP = "YlOrBr"
LEVELS = 14  # contour levels of the loss, at equal steps of |z − y|


def draw(table: pd.DataFrame, spec: PlotSpec, record: dict) -> tuple[Figure, pd.DataFrame]:
    """Draw one row per activation: left the loss, right the norm of the two weights' block of N."""
    names = list(dict.fromkeys(table["activation"]))
    figure = Figure(figsize=(style.COLUMN, (3.4 * len(names) + 2.6) * style.CM))
    grid = figure.subplots(len(names), 2, squeeze=False, sharex=True, sharey=True)
    # The root of the loss is |z − y|/√2, linear wherever z is.
    least, most = np.sqrt(table["loss"].min()), np.sqrt(table["loss"].max())
    levels = [root**2 for root in np.linspace(least, most, LEVELS + 2)[1:-1]]
    loss_look: style.Look = {"cmap": LOSS_MAP, "norm": FuncNorm((np.sqrt, np.square), least**2, most**2)}
    for (left, right), name in zip(grid, names, strict=True):
        activation = ACTIVATIONS.parse(name)
        plane = table[table["activation"] == name].pivot(index="w_b", columns="w_a")
        loss = _map(left, plane["loss"], **loss_look)
        _contours(left, plane["loss"], levels, color="0.3", width=0.3)
        highest = plane["nme"].max().max()
        relative = plane["nme"] / (highest or 1.0)
        nme = _map(right, relative, cmap=NME_MAP, norm=Normalize(0, 1))
        units = [plane[c] for c in table.columns if c.startswith("preactivation_")]
        _boundaries(left, right, units, activation)
        says = f"max ‖N‖ = {highest:.2g}" if highest else "N = 0"
        box = {"boxstyle": "square,pad=0.2", "facecolor": "white", "alpha": 0.85, "linewidth": 0}
        right.text(0.04, 0.05, says, transform=right.transAxes, fontsize=6, bbox=box)
        left.set_ylabel(f"{activation.full_label}\nweight $w_b$")
    for axes in grid.flat:
        axes.label_outer(remove_inner_ticks=True)
    for axes in grid[-1]:
        axes.set_xlabel("weight $w_a$")
    columns = [
        (loss, "loss ℓ = ½(z − y)²", "ℓ"),
        (nme, "NME ‖N‖$_F$ of $w_a$ and $w_b$", "‖N‖$_F$ / the panel's maximum"),
    ]
    for column, (image, title, label) in enumerate(columns):
        grid[0, column].set_title(title)
        bar = figure.colorbar(image, ax=grid[:, column], location="bottom", aspect=25, pad=0.01)
        bar.set_label(label)
    style.footer(
        figure,
        "all scales",
        "exact, float64, one datapoint, nothing trained",
        "thick blue: a pre-activation is 0",
        "inside thin blue: one is within 1/β of 0",
    )
    return figure, table[["activation", "w_a", "w_b", "loss", "nme"]]


def _map(axes: Axes, plane: pd.DataFrame, **look: Any) -> QuadMesh:
    """Draw a colour map without a frame."""
    axes.set_aspect("equal")
    axes.spines[:].set_visible(False)
    return axes.pcolormesh(plane.columns, plane.index, plane, rasterized=True, **look)


def _boundaries(left: Axes, right: Axes, units: list[pd.DataFrame], activation: Activation) -> None:
    """Draw the boundaries of linear regions; for β-GELU, outline the area with a pre-activation within 1/β of 0.

    Pre-activations that the two weights do not change are left out.
    """
    moving = [unit for unit in units if unit.min().min() < unit.max().max()]
    if activation.piecewise_linear:
        for unit in moving:
            _contours(left, unit, [0], BOUNDARY, 0.9)
            _contours(right, unit, [0], BOUNDARY, 0.9)
    elif moving and "beta" in activation.values:
        nearest = pd.DataFrame(np.min(np.abs(moving), axis=0), moving[0].index, moving[0].columns)
        _contours(right, nearest, [1 / float(activation.values["beta"])], BOUNDARY, 0.4)


def _contours(axes: Axes, plane: pd.DataFrame, levels: Sequence[float], color: str, width: float) -> None:
    """Draw the levels that the plane reaches."""
    values = plane.to_numpy()
    reached = [level for level in levels if values.min() < level < values.max()]
    if reached:
        axes.contour(plane.columns, plane.index, values, levels=reached, colors=color, linewidths=width, linestyles="-")
