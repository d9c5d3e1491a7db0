"""The figure of steps.py: bars of time over SGD, with the counted operations and their limit; a panel a network.

python benchmarks/steps_figure.py    draws it again from results/bench/steps.parquet
"""

from pathlib import Path

import pandas as pd
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MultipleLocator
from page import ROOT, milliseconds

from nme.config.messages import check
from nme.config.project import Style, read_yaml
from nme.figures import style
from nme.methods import METHODS
from nme.outputs import parquet
from nme.outputs.files import atomic

WIDTH = 2 * style.COLUMN  # both columns of a page
# Methods that differ in an estimator share a colour.
KIN = {"usam": "sam", "gauss_newton_trace_probe": "gauss_newton_trace"}
LABELS = {
    "grad_norm_gn": "gradient penalty,\nNME ablated",
    "gauss_newton_trace": "Gauss-Newton trace,\ndrawn labels",
    "gauss_newton_trace_probe": "Gauss-Newton trace,\nuᵀGu",
    "hessian_trace": "Hessian trace",
}
BAR = 0.8  # of the height of a method's row, for all its bars
CIRCLE = {"markerfacecolor": "white", "markeredgecolor": "black", "markeredgewidth": 0.6}


def look(by: str, variant: str) -> dict:
    """How bars of one kind are drawn, beside their colour."""
    if by != "nme":
        return {"alpha": 0.35, "hatch": "/////", "edgecolor": "white", "linewidth": 0}
    return {"alpha": 1.0 if variant == "eager" else 0.65}


def draw(source: Path, output: Path, copy: Path | None = None) -> None:
    """Draw the table and write ``output`` with the endings .pdf, .png and .csv.

    Args:
        source: results/bench/steps.parquet.
        output: a path with any ending.
        copy: another PNG, for the documentation.
    """
    table, record = parquet.read(source)
    rows = table.to_pandas()
    path = ROOT / "config" / "style.yaml"
    chosen = check(Style, read_yaml(path), str(path)).method
    with rc_context({**style.RC, "hatch.linewidth": 0.6}):
        figure = _figure(rows, record, chosen)
        for ending in ("pdf", "png"):
            with atomic(output.with_suffix(f".{ending}")) as temporary:
                figure.savefig(temporary, metadata={"CreationDate": None} if ending == "pdf" else {"Software": None})
        if copy:
            with atomic(copy) as temporary:
                figure.savefig(temporary, dpi=200, metadata={"Software": None})
    with atomic(output.with_suffix(".csv")) as temporary:
        rows.to_csv(temporary, index=False, float_format="%.6g")


def _figure(rows: pd.DataFrame, record: dict, chosen: dict[str, str]):
    networks = list(dict.fromkeys(rows["network"]))
    methods = ["sgd", *(m for m in METHODS if m != "sgd" and m in set(rows["method"]))]
    methods.sort(key=lambda m: rows.loc[rows["method"] == m, "limit_over_sgd"].mean())
    colours = style.colours(chosen, [KIN.get(m, m) for m in methods])
    bars = rows.groupby(["network", "method"]).size().max()
    figure = style.Figure(figsize=(WIDTH, (2.1 + (0.22 + 0.22 * bars) * len(methods)) * style.CM))
    grid = list(figure.subplots(1, len(networks), sharey=True, sharex=True, squeeze=False).flat)
    kinds = list(dict.fromkeys(zip(rows["by"], rows["variant"], strict=True)))
    for axes, network in zip(grid, networks, strict=True):
        here = rows[rows["network"] == network]
        for place, method in enumerate(methods):
            _bars(axes, here[here["method"] == method], place, colours[KIN.get(method, method)], bars)
        axes.axvline(1, color="0.75", linewidth=0.5, zorder=0)
        sgd = here[(here["method"] == "sgd") & (here["by"] == "nme")].iloc[0]
        axes.set_title(f"{network}\nbatch {sgd['batch_size']}\nSGD {milliseconds(sgd['seconds'])}")
        axes.tick_params(axis="y", length=0)
    longest = rows[["over_sgd", "operations_over_sgd"]].max(axis=None)
    grid[0].set_xlim(0, 1.25 * longest)
    grid[0].xaxis.set_major_locator(MultipleLocator(5))
    grid[0].xaxis.set_minor_locator(MultipleLocator(1))
    grid[0].set_yticks(range(len(methods)), [LABELS.get(m, METHODS.parse(m).label) for m in methods])
    grid[0].set_ylim(len(methods) - 0.45, -0.55)
    _legend(figure, kinds)
    facts = "PyTorch {torch}|{threads} thread|{cpu}|Python {python}".format(**record).split("|")
    turns = f"medians of {rows['turns'].iloc[0]} turns"
    style.footer(figure, *facts, turns, x_label="step time over that of SGD")
    return figure


def _bars(axes: Axes, cases: pd.DataFrame, place: int, colour: str, most: int) -> None:
    """The bars of one method, of at most ``most``: time as a number, too; counted operations and the limit."""
    height = BAR / max(2, most)
    top = place - height * (len(cases) - 1) / 2
    for number, case in enumerate(cases.to_dict("records")):
        y, ours = top + number * height, case["by"] == "nme"
        axes.barh(y, case["over_sgd"], 0.92 * height, color=colour, **look(case["by"], case["variant"]))
        end = case["over_sgd"]
        if ours and case["variant"] == "eager":
            counted, limit = case["operations_over_sgd"], case["limit_over_sgd"]
            axes.vlines(limit, y - 0.6 * height, y + 0.5 * height, color="black", linewidth=1.1, zorder=3)
            axes.plot(counted, y, "o", markersize=2.8, zorder=4, **CIRCLE)
            end = max(end, counted, limit)
        text = {"fontsize": 5, "color": "0.1"} if ours else {"fontsize": 4.5, "color": "0.45"}
        place_of_text = {"xytext": (3.5, 0), "textcoords": "offset points", "va": "center"}
        axes.annotate(f"{case['over_sgd']:.2f}", (end, y), **place_of_text, **text)


def _legend(figure, kinds: list[tuple[str, str]]) -> None:
    names = {"nme": "nme", "straightforward": "straightforward PyTorch"}
    found = {}
    for by, variant in kinds:
        text = names[by] if variant == "eager" else f"{names[by]}, {variant}"
        found[text] = Patch(facecolor="0.35", **look(by, variant))
    found["operations counted"] = Line2D([], [], linestyle="", marker="o", markersize=3, **CIRCLE)
    found["fewest operations known"] = Line2D(
        [], [], linestyle="", marker="|", color="black", markersize=6, markeredgewidth=1.1
    )
    figure.legend(found.values(), found.keys(), loc="outside upper center", ncols=len(found))


if __name__ == "__main__":
    draw(ROOT / "results" / "bench" / "steps.parquet", ROOT / "figures" / "bench.pdf", ROOT / "docs/images/bench.png")
