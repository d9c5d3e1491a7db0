"""Draw docs/images/concept.png: the two sources of curvature, for one weight (docs/concept.md)."""

from math import erf, exp, pi, sqrt
from pathlib import Path

import numpy as np
import yaml
from matplotlib import rc_context
from matplotlib.figure import Figure

from nme.figures.style import RC

ROOT = Path(__file__).resolve().parents[2]


def gelu(w: float) -> float:
    """Return w Φ(w)."""
    return w * (1 + erf(w / sqrt(2))) / 2


def draw(path: Path) -> None:
    """Draw the network with its tangent, and the loss (f − 1)² with the parabolas of H and G at w = 0."""
    colour = yaml.safe_load((ROOT / "config/style.yaml").read_text(encoding="utf-8"))["operator"]
    # f(0) = 0, f'(0) = Φ(0), f''(0) = 2 φ(0)
    slope, bend = 0.5, 2 / sqrt(2 * pi) * exp(0)
    g, n = 2 * slope**2, 2 * (0 - 1) * bend
    w = np.linspace(-1.6, 1.6, 321)
    f = np.array([gelu(x) for x in w])
    larger = {"font.size": 9, "axes.labelsize": 9, "xtick.labelsize": 8, "ytick.labelsize": 8, "lines.linewidth": 1.8}
    with rc_context(RC | larger):
        figure = Figure(figsize=(7.2, 3.0))
        left, right = figure.subplots(1, 2)
        left.plot(w, f, color=colour["H"])
        left.plot(w, slope * w, color=colour["G"], linestyle="--")
        left.axhline(1, color="0.6", linewidth=0.8, linestyle=":")
        left.text(-1.55, 1.04, "target y = 1", color="0.4")
        left.text(0.72, 0.66, "network f(w)", color=colour["H"], ha="right")
        left.text(-0.9, -0.72, "its tangent at 0", color=colour["G"])
        left.set(xlabel="weight w", ylabel="output", ylim=(-1, 1.5), title="The network bends …")
        tangent = 1 - 2 * slope * w
        right.plot(w, (f - 1) ** 2, color=colour["H"], label="loss L(w) = (f(w) − 1)²")
        right.plot(w, tangent + g * w**2 / 2, color=colour["G"], linestyle="--", label=f"parabola with G = {g:.2f}")
        right.plot(
            w, tangent + (g + n) * w**2 / 2, color="0.45", linestyle=":", label=f"with H = G + N = −{-g - n:.2f}"
        )
        at = -1.05
        low, high = 1 - at + (g + n) * at**2 / 2, 1 - at + g * at**2 / 2
        arrow = {"arrowstyle": "-|>", "color": colour["N"], "linewidth": 1.6, "shrinkA": 0, "shrinkB": 0}
        right.annotate("", (at, low), (at, high), arrowprops=arrow)
        right.text(at - 0.06, (low + high) / 2, f"N = −{-n:.2f}", color=colour["N"], va="center", ha="right")
        right.set(xlabel="weight w", ylabel="loss", xlim=(-2.1, 1.7), ylim=(-1.1, 2.6), title="… and bends the loss")
        right.legend(loc="upper right", fontsize=8)
        for axes in (left, right):
            axes.plot(0, axes.lines[0].get_ydata()[160], "o", color=colour["H"], markersize=5)
            axes.title.set_fontsize(9.5)
        part = path.with_name(f".{path.name}")
        figure.savefig(part, dpi=200)
        part.replace(path)


if __name__ == "__main__":
    draw(ROOT / "docs/images/concept.png")
