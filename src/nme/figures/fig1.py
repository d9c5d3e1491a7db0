"""Figure 1: loss and NME over two weights of one hidden layer."""

import numpy as np
import pandas as pd
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from nme.activations import ACTIVATIONS
from nme.figures import style

BOUNDARY = "#0072B2"
MAP = "YlOrBr"


def draw(table: pd.DataFrame, spec: dict, record: dict) -> tuple[Figure, pd.DataFrame]:
    """A row an activation: the loss left, ‖N‖_F right; boundaries of linear regions on piecewise linear ones."""
    names = list(dict.fromkeys(table["activation"]))
    units = [c for c in table.columns if c.startswith("preactivation_")]
    columns = {"loss": "loss ℓ", "nme": "NME ‖N‖$_F$"}
    figure = Figure(figsize=(style.COLUMN, (3.4 * len(names) + 2.4) * style.CM))
    grid = figure.subplots(len(names), 2, squeeze=False, sharex=True, sharey=True)
    # Both quantities span decades; what is far below the largest value has one colour.
    limits = {c: (1e-4 * table[c].max(), table[c].max()) for c in columns}
    for i, name in enumerate(names):
        plane = table[table["activation"] == name]
        across, up = (np.sort(plane[w].unique()) for w in ("w_a", "w_b"))

        def on_grid(column: str, plane: pd.DataFrame = plane) -> np.ndarray:
            return plane.pivot(index="w_b", columns="w_a", values=column).to_numpy()

        for j, (column, title) in enumerate(columns.items()):
            axes = grid[i, j]
            low, high = limits[column]
            values = np.maximum(on_grid(column), low)
            image = axes.pcolormesh(across, up, values, norm=LogNorm(low, high), cmap=MAP, rasterized=True)
            if ACTIVATIONS.parse(name).piecewise_linear:
                for unit in units:
                    axes.contour(across, up, on_grid(unit), levels=[0], colors=BOUNDARY, linewidths=0.9)
            axes.set_aspect("equal")
            axes.spines[:].set_visible(False)
            if i == 0:
                axes.set_title(title)
            if i == len(names) - 1:
                axes.set_xlabel("weight $w_a$")
                figure.colorbar(image, ax=grid[:, j], location="bottom", aspect=25, pad=0.01, extend="min")
        grid[i, 0].set_ylabel(f"{ACTIVATIONS.parse(name).full_label}\nweight $w_b$")
    style.footer(figure, "all scales", "exact, float64, one datapoint, nothing trained", "blue: a pre-activation is 0")
    return figure, table[["activation", "w_a", "w_b", *columns]]
