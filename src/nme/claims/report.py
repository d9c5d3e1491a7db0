"""The claims tables for readers, as Markdown and HTML."""

import html
from typing import Protocol

import numpy as np
import pandas as pd

from nme.grid.specs import ClaimsSpec


class Row(Protocol):
    """A row from ``decide``, as ``DataFrame.itertuples`` gives it."""

    unit: str
    cell: str
    effect: float
    low: float
    high: float
    low_simultaneous: float
    high_simultaneous: float
    effect_logit: float
    diverged_plus: int
    diverged_minus: int
    seeds: int


def overall(claim: pd.DataFrame) -> str:
    """The verdict of a claim over its recipes: one word if they agree, otherwise each verdict with its recipes.

    Args:
        claim: the rows of one claim from ``decide``.
    """
    first = claim.drop_duplicates("recipe")
    if first["verdict"].nunique() == 1:
        return first["verdict"].iloc[0]
    # Use the recipe's own name if several recipes share a title.
    names = first["panel"].where(~first["panel"].duplicated(keep=False), first["recipe"])
    groups = [(v, names[first["verdict"] == v]) for v in ("supported", "not supported", "inconclusive")]
    return "; ".join(f"{verdict} on {' and '.join(where)}" for verdict, where in groups if len(where))


def readers_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The detailed table for readers: one row per claim, with a line per contrast and recipe.

    Args:
        rows: from ``decide``.
    """
    found = []
    for number, claim in rows.groupby("claim", sort=False):
        effects = []
        for contrast, own in claim.groupby("contrast", sort=False):
            effects.append(f"{contrast} (expected {own['expect'].iloc[0]}):")
            effects += [f"– {r.panel}: {_line(r)}" for r in own.itertuples()]
        first = claim.drop_duplicates("recipe")
        found.append(
            {
                "": number,
                "claim": claim["says"].iloc[0],
                "figure": claim["figure"].iloc[0],
                "effect [95 % interval] {simultaneous interval}": "<br>".join(map(html.escape, effects)),
                "p for, against (Holm)": "<br>".join(
                    html.escape(f"{r.panel}: {r.p_holm:.2g}, {r.p_against_holm:.2g}") for r in first.itertuples()
                ),
                "verdict": html.escape(overall(claim)),
            }
        )
    return pd.DataFrame(found)


def summary_table(rows: pd.DataFrame) -> pd.DataFrame:
    """The summary: one row per claim, one column per recipe with the verdict, the effects and 95 % intervals.

    A claim's only effect is named below it, of several each in its place.

    Args:
        rows: from ``decide``.
    """
    recipes = rows.drop_duplicates("recipe")[["recipe", "panel"]]
    found = []
    for number, claim in rows.groupby("claim", sort=False):
        contrasts = claim["contrast"].unique()
        names = [html.escape(contrasts[0])] if len(contrasts) == 1 else []
        line = {"claim": "<br>".join([f"{number}. {claim['says'].iloc[0]}", *names])}
        for recipe, panel in recipes.itertuples(index=False):
            own = claim[claim["recipe"] == recipe]
            title = panel if (recipes["panel"] == panel).sum() == 1 else recipe
            effects = [_short(r) for r in own.itertuples()]
            if not names:
                effects = [f"{html.escape(name)}: {text}" for name, text in zip(own["contrast"], effects, strict=True)]
            line[html.escape(title)] = "<br>".join([f"<b>{own['verdict'].iloc[0]}</b>", *effects]) if len(own) else "–"
        found.append(line)
    return pd.DataFrame(found)


def signed(value: float, digits: int = 1) -> str:
    """The number with its sign and these digits after the point, as ``−0.2``; 0 has no sign."""
    rounded = round(float(value), digits)
    return f"{rounded:+.{digits}f}".replace("-", "−") if rounded else f"{0:.{digits}f}"


def _short(row: Row) -> str:
    unit = "" if row.unit == "points" else " %"
    chosen = f" at {row.cell}" if row.cell else ""
    interval = f" [{signed(row.low)}, {signed(row.high)}]" if np.isfinite(row.low) else ""
    return f"{signed(row.effect)}{unit}{interval}{chosen}" if np.isfinite(row.effect) else "no pair of seeds"


def _line(row: Row) -> str:
    unit = "points" if row.unit == "points" else "%"
    effect = f"{signed(row.effect)} {unit}" if np.isfinite(row.effect) else "no pair of seeds without divergence"
    parts = [effect, f" at {row.cell}" if row.cell else ""]
    if np.isfinite(row.low):
        parts += [f" [{signed(row.low)}, {signed(row.high)}]"]
        parts += [f" {{{signed(row.low_simultaneous)}, {signed(row.high_simultaneous)}}}"]
    if np.isfinite(row.effect_logit):
        parts += [f", logit {signed(row.effect_logit, 2)}"]
    if row.diverged_plus or row.diverged_minus:
        parts += [f", diverged {row.diverged_plus} against {row.diverged_minus} of {row.seeds} seeds"]
    return "".join(parts)


def note(spec: ClaimsSpec, rows: pd.DataFrame) -> str:
    """Note for readers of the table: its size, the rule, and the conditions of the error rates."""
    pairs = rows.drop_duplicates(["claim", "recipe"])
    counts = pairs["verdict"].value_counts()
    smallest = spec.smallest_effect
    return (
        f"Scale {spec.scale}, {_seeds(rows)}. A verdict per claim and recipe: "
        f"{', '.join(f'{n} {verdict}' for verdict, n in counts.items())}. "
        f"Smallest effect of interest: {smallest.points:g} points, {smallest.percent:g} % of a trace. "
        f"Holm's method corrects for {len(pairs)} verdicts, at 5 % in favour and at 5 % against (together 10 %). "
        "The number of seeds was chosen beforehand; adding seeds until a verdict appears would invalidate it. "
        "Results are conditional on one test set per dataset. "
        "The rule is at the head of src/nme/claims/verdicts.py and in docs/science.md."
    )


def _seeds(rows: pd.DataFrame) -> str:
    claims = rows.groupby("seeds")["claim"].unique()
    if len(claims) == 1:
        return f"{claims.index[0]} paired seeds"
    by_number = [f"{n} for claim {', '.join(map(str, claims[n]))}" for n in claims.index[::-1]]
    return f"paired seeds: {'; '.join(by_number)}"


CSS = "body{font:14px sans-serif;margin:2em} td,th{padding:.4em .8em;text-align:left;vertical-align:top}"


def markdown(table: pd.DataFrame) -> str:
    """Format the table as Markdown."""
    rows = [[text.replace("|", "\\|") for text in row] for row in table.astype(str).to_numpy().tolist()]
    lines = [list(table.columns), ["---"] * len(table.columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)
