"""What all figures share: sizes, fonts, colours, the footer."""

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nme import __version__

CM = 1 / 2.54
COLUMN = 8.5 * CM  # width of a journal's column, in inches
PAGE = 17 * CM

RC = {
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.6,
    "lines.linewidth": 1.2,
    "lines.markersize": 3.5,
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "savefig.dpi": 300,
    "pdf.fonttype": 42,  # text stays text
}

# For what config/style.yaml does not name: Okabe and Ito's colours, safe for colour-blind readers.
FALLBACK = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


def colours(chosen: dict[str, str], names: list[str]) -> dict[str, str]:
    """A colour for each name: the configured one, else the next free fallback."""
    free = [c for c in FALLBACK if c not in chosen.values()] or list(FALLBACK)
    rest = [name for name in names if name not in chosen]
    return {
        **{n: chosen[n] for n in names if n in chosen},
        **{n: free[i % len(free)] for i, n in enumerate(rest)},
    }


def footer(figure: Figure, *facts: str) -> None:
    """A discreet line below everything: the facts and the version."""
    figure.get_layout_engine().set(rect=(0, 0.045, 1, 0.955))
    figure.text(0.01, 0.008, " · ".join([*facts, f"nme {__version__}"]), fontsize=5, color="0.45", va="bottom")


def strength_axis(axes: Axes, strengths: list[float], label: str) -> None:
    """A logarithmic axis of strengths that shows 0, at the left end of a short linear part."""
    positive = [s for s in strengths if s > 0]
    if positive:
        axes.set_xscale("symlog", linthresh=min(positive), linscale=0.5)
        axes.set_xlim(-0.3 * min(positive), 1.3 * max(positive))
    shown: list[float] = []
    for strength in sorted(strengths):  # labels closer than a factor of 1.4 would touch
        if not shown or shown[-1] == 0 or strength >= 1.4 * shown[-1]:
            shown.append(strength)
    axes.set_xticks(shown, [f"{s:g}" for s in shown])
    axes.minorticks_off()
    axes.set_xlabel(label)
