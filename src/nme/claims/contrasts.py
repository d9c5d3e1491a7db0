"""Contrasts of test accuracies or traces: effects per recipe and seed, counts of diverged members, and tests.

Formulas: docs/theory.md, §8.2; the logit scale: docs/theory.md, §8.8.

The rule is at the top of ``nme.claims.verdicts``. Any figure that shows effects can use ``contrast_effects`` and
``judge_contrast``.
"""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from nme.activations import ACTIVATIONS
from nme.claims.statistics import Diverged, combine, interval, judge, tail_of, trend_weights
from nme.config.figure import SmallestEffect
from nme.errors import NmeError
from nme.grid.specs import ContrastSpec
from nme.methods import METHODS

MEMBER = ["recipe", "activation", "method", "strength", "seed"]
# Accuracies are clipped to half an example of 5,000 from 0 and 1, so that their logits are finite.
HALF_EXAMPLE = 1e-4

Cell = tuple[str, str, float]  # activation, method, strength


class Effect(NamedTuple):
    """A weighted sum of cells, and the label of the compared cells (empty for a contrast's only effect)."""

    label: str
    weights: dict[Cell, float]


def effects_of(contrast: ContrastSpec) -> list[Effect]:
    """The effects of a contrast: one for ``over`` mean and trend, otherwise one per cell of its terms.

    Args:
        contrast: for ``over`` each, any and trend all its terms pair up: they have the same length, or
            one cell that is used again for every cell of the others.
    """
    terms = [(sign, term) for sign, side in ((1, contrast.plus), (-1, contrast.minus)) for term in side]
    number = max(len(term) for _, term in terms)
    if contrast.over == "mean":
        return [Effect("", _weights((c, sign / len(term)) for sign, term in terms for c in term))]
    paired = [(sign, term * number if len(term) == 1 else term) for sign, term in terms]
    if contrast.over == "trend":
        trend = trend_weights(number)
        return [Effect("", _weights((c, sign * w) for sign, term in paired for c, w in zip(term, trend, strict=True)))]
    labels = _labels(next(term for _, term in terms if len(term) == number))
    return [Effect(labels[i], _weights((term[i], sign) for sign, term in paired)) for i in range(number)]


def _weights(cells: Iterable[tuple[tuple, float]]) -> dict[Cell, float]:
    """Total weight of each cell; cells that cancel are left out."""
    total: dict[Cell, float] = {}
    for (activation, method, strength), weight in cells:
        cell = (activation, method, float(strength))
        total[cell] = total.get(cell, 0.0) + weight
    return {cell: weight for cell, weight in total.items() if abs(weight) > 1e-9}


def _labels(term: list) -> list[str]:
    """Label of each cell of a term, with only the varying parts: ``ReLU, σ² = 0.001``."""
    if len(term) == 1:
        return [""]
    varies = [len({cell[i] for cell in term}) > 1 for i in range(3)]
    labels = []
    for activation, method, strength in term:
        named = METHODS.parse(method)
        parts = [ACTIVATIONS.parse(activation).full_label] if varies[0] else []
        parts += [named.full_label] if varies[1] else []
        parts += [f"{named.symbol} = {float(strength):g}"] if varies[2] and named.symbol else []
        labels.append(", ".join(parts))
    return labels


def contrast_effects(table: pd.DataFrame, contrast: ContrastSpec, scale: str = "points") -> pd.DataFrame:
    """Compute the effects of a contrast within each recipe and seed.

    Args:
        table: from ``tables.collect``.
        contrast: with the cells of its terms.
        scale: 'points' of accuracy (of a trace: percent of tr G + |tr N|), or 'logit' (natural logarithm of the odds).

    Returns:
        Rows seeds; columns (recipe, index of the effect in ``effects_of``). NaN where a member diverged. For ``over``
        mean and trend ``.xs(0, axis=1, level=1)`` has a column per recipe.

    Raises:
        NmeError: the table lacks a cell of the contrast.
    """
    found = {}
    for recipe, values in _members(table, contrast, scale).items():
        for i, effect in enumerate(effects_of(contrast)):
            total = pd.Series(0.0, index=values.index)
            found[recipe, i] = sum((w * values[cell] for cell, w in effect.weights.items()), total)
    return pd.DataFrame(found).rename_axis(index="seed", columns=["recipe", "effect"])


def diverged_of(table: pd.DataFrame, contrast: ContrastSpec) -> dict[tuple[str, int], Diverged]:
    """Count diverged members on each side of each effect, by recipe and index of the effect.

    Args:
        table: from ``tables.collect``.
        contrast: with the cells of its terms.

    Raises:
        NmeError: the table lacks a cell of the contrast.
    """
    found = {}
    for recipe, values in _members(table, contrast, "points").items():
        for i, effect in enumerate(effects_of(contrast)):
            sides = [[cell for cell, w in effect.weights.items() if sign * w > 0] for sign in (1, -1)]
            plus, minus = (int(values[side].isna().any(axis=1).sum()) for side in sides)
            found[recipe, i] = Diverged(plus, minus, len(values), len(sides[0]) == len(sides[1]))
    return found


def _members(table: pd.DataFrame, contrast: ContrastSpec, scale: str) -> dict[str, pd.DataFrame]:
    """Value of every member in a contrast, by recipe: rows seeds, columns cells; NaN where the member diverged."""
    if contrast.trace is None:
        accuracy = table["test_accuracy"].astype(float).where(~table["diverged"].astype(bool))
        if scale == "logit":
            accuracy = accuracy.clip(HALF_EXAMPLE, 1 - HALF_EXAMPLE)
            rows = table.assign(value=np.log(accuracy / (1 - accuracy)))
        else:
            rows = table.assign(value=100 * accuracy)
    else:
        rows = _trace_shares(table, contrast.trace.operator, contrast.trace.at)
    needed = {cell: None for effect in effects_of(contrast) for cell in effect.weights}
    found = {}
    for recipe, own in rows.groupby("recipe", sort=False):
        values = own.pivot(index="seed", columns=["activation", "method", "strength"], values="value")
        missing = [cell for cell in needed if cell not in values.columns]
        if missing:
            cell = "/".join([recipe, *missing[0][:2], f"{missing[0][2]:g}"])
            raise NmeError(f"the table has no value of {cell}. Make the table again.")
        found[recipe] = values[list(needed)]
    return found


def _trace_shares(table: pd.DataFrame, operator: str, at: float) -> pd.DataFrame:
    """One row per member; ``value`` is the trace at a time, in percent of tr G + |tr N|; NaN after divergence."""
    chosen = table[(table["quantity"] == "traces") & (table["at"] == at)]
    traces = chosen.pivot_table("value", MEMBER, "operator").reindex(columns=["H", "G", "N"])
    share = 100 * traces[operator] / (traces["G"] + traces["N"].abs())
    return table[MEMBER].drop_duplicates().merge(share.rename("value").reset_index(), how="left", on=MEMBER)


def table_of(tables: dict[str, pd.DataFrame], figure: str) -> pd.DataFrame:
    """Look up the table of a figure.

    Raises:
        NmeError: the table was not given.
    """
    if figure not in tables:
        given = ", ".join(sorted(tables)) or "none"
        raise NmeError(f"the table of {figure} is needed and was not given (given: {given})")
    return tables[figure]


def judge_contrast(
    table: pd.DataFrame, contrast: ContrastSpec, smallest_effect: SmallestEffect, family: int = 1, contrasts: int = 1
) -> list[dict]:
    """Judge a contrast on each recipe: the deciding effect, with intervals and the contrast's p values.

    Args:
        table: from ``tables.collect``.
        contrast: with the cells of its terms.
        smallest_effect: δ in ``points`` and in ``percent``.
        family: number of (claim, recipe) pairs that are decided together, for the simultaneous intervals.
        contrasts: number of the claim's contrasts, also for the simultaneous intervals.

    Returns:
        One dictionary per recipe, with recipe, panel, cell, unit, effect, low, high, low_simultaneous,
        high_simultaneous, effect_logit, p, p_against, diverged_plus, diverged_minus, pairs (seeds in the t-test) and
        seeds. ``cell`` names the deciding cell if cells are tested one by one, otherwise it is empty.

    Raises:
        NmeError: the table lacks a cell of the contrast.
    """
    unit = "points" if contrast.trace is None else "percent"
    smallest = smallest_effect.points if contrast.trace is None else smallest_effect.percent
    values, lost, named = contrast_effects(table, contrast), diverged_of(table, contrast), effects_of(contrast)
    logits = contrast_effects(table, contrast, "logit") if unit == "points" else None
    panels = table.drop_duplicates("recipe").set_index("recipe")["panel"]
    rows = []
    for recipe in values.columns.unique("recipe"):
        own = [values[recipe, i].dropna().to_numpy() for i in range(len(named))]
        found = [judge(v, contrast.expect, smallest, lost[recipe, i]) for i, v in enumerate(own)]
        p, against, shown = combine(found, contrast.over)
        counts = lost[recipe, shown]
        ends = interval(own[shown], tail_of(family, contrasts, len(named), contrast.expect, counts))
        rows.append(
            {
                "recipe": recipe,
                "panel": panels[recipe],
                "cell": named[shown].label,
                "unit": unit,
                **{key: found[shown][key] for key in ("effect", "low", "high")},
                "low_simultaneous": ends[0],
                "high_simultaneous": ends[1],
                "effect_logit": np.nan if logits is None else float(logits[recipe, shown].mean()),
                "p": p,
                "p_against": against,
                "diverged_plus": counts.plus,
                "diverged_minus": counts.minus,
                "pairs": len(own[shown]),
                "seeds": counts.seeds,
            }
        )
    return rows
