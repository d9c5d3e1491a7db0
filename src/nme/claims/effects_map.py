"""The map: for each recipe, the effects of claims and the share of the NME in the penalty's update.

**Effect** (vertical): the claim's contrast of final test accuracies in points, defined as in ``nme.claims.verdicts``:
within a recipe and a seed, with Student's 95 % interval over the seeds. Positive is as the claim expects. Every
contrast has one effect here. A contrast that the claims test at several strengths (``over`` each or any) enters with
the mean over these strengths, which are fixed beforehand. The best strength would be biased. Seeds with a diverged
member have no effect; they are counted separately.

**Share** (horizontal): ‖N_φ″ĝ‖/‖Hĝ‖ of plain SGD with one activation (docs/theory.md, §7.8). It is the mean over
training batches and over the snapshots after the first step, then over seeds, with Student's 95 % interval. Undefined
values are left out. So is the network before its first step, since it takes part in only one update.

**Dependence**: Spearman's rank correlation of effect and share over the recipes, with a separate 95 % interval for each
contrast (``statistics.rank_correlation``; docs/theory.md, §8.10). It describes these recipes only: they were chosen,
they share data and seeds, and the errors of each effect and share are ignored.
"""

import numpy as np
import pandas as pd

from nme.claims.contrasts import contrast_effects, diverged_of, table_of
from nme.claims.statistics import LEVEL, interval, rank_correlation
from nme.errors import NmeError
from nme.grid.specs import MapSpec


def effects_and_shares(spec: MapSpec, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Compute the effect of each contrast and the share of the NME, on each recipe.

    Args:
        spec: the contrasts, the recipes, and whose shares are taken.
        tables: tables by figure.

    Returns:
        One row per claim, contrast and recipe: claim, says, contrast, over (mean or trend), cells (number of cells in
        the mean or trend), recipe, panel, setting (number of the recipe in the figure), network, label_noise; effect,
        low, high, diverged_plus, diverged_minus, pairs (seeds with an effect), seeds; share, share_low, share_high,
        share_seeds (seeds with a share); and correlation, correlation_low, correlation_high, settings (number of
        recipes in the correlation) and dependence (a sentence), which belong to the contrast and repeat in its rows.

    Raises:
        NmeError: a table is not given, or lacks a cell, a recipe or a share.
    """
    shares = shares_of(table_of(tables, spec.shares.figure), spec.shares.activation)
    numbers = {recipe: i for i, recipe in enumerate(spec.recipes, 1)}
    rows = []
    for claim in spec.claims:
        for contrast in claim.contrasts:
            table = table_of(tables, contrast.figure)
            values, lost = contrast_effects(table, contrast), diverged_of(table, contrast)
            own = []
            for recipe in claim.recipes:
                if (recipe, 0) not in values.columns or recipe not in shares.index:
                    raise NmeError(f"the tables of the map have no recipe {recipe}. Make the tables again.")
                own.append(
                    {
                        "claim": claim.number,
                        "says": claim.says,
                        "contrast": contrast.name,
                        "over": contrast.over,
                        "cells": max(len(term) for term in (*contrast.plus, *contrast.minus)),
                        "recipe": recipe,
                        "panel": spec.recipes[recipe].title,
                        "setting": numbers[recipe],
                        "network": spec.recipes[recipe].network,
                        "label_noise": spec.recipes[recipe].label_noise,
                        **_estimate(values[recipe, 0].to_numpy()),
                        "diverged_plus": lost[recipe, 0].plus,
                        "diverged_minus": lost[recipe, 0].minus,
                        "pairs": int(values[recipe, 0].notna().sum()),
                        "seeds": lost[recipe, 0].seeds,
                        **shares.loc[recipe].to_dict(),
                    }
                )
            pairs = pd.DataFrame(own)[["share", "effect"]].dropna()
            found = rank_correlation(pairs["share"], pairs["effect"])
            names = ("correlation", "correlation_low", "correlation_high")
            correlation = {"settings": len(pairs), "dependence": dependence(*found, len(pairs))}
            rows += [row | dict(zip(names, found, strict=True)) | correlation for row in own]
    return pd.DataFrame(rows)


def shares_of(table: pd.DataFrame, activation: str) -> pd.DataFrame:
    """‖N_φ″ĝ‖/‖Hĝ‖ per recipe: the mean over batches, then over snapshots after the first step, then over seeds.

    Args:
        table: from ``tables.collect``, for a figure that measures update_shares.
        activation: activation of the networks.

    Returns:
        Columns share, share_low, share_high and share_seeds, by recipe; NaN and 0 where no share is defined.
    """
    needed = {"quantity": "update_shares", "statistic": "share", "operator": "N_phi", "activation": activation}
    chosen = table[(table["at"] > 0) & (table["probe"] >= 0) & (table["method"] == "sgd")]
    for column, value in needed.items():
        chosen = chosen[chosen[column] == value]
    snapshots = chosen.groupby(["recipe", "seed", "at"], sort=False)["value"].mean()
    seeds = snapshots.groupby(["recipe", "seed"], sort=False).mean()
    found = {}
    for recipe in table["recipe"].unique():
        own = seeds[seeds.index.get_level_values("recipe") == recipe].dropna().to_numpy(dtype=float)
        mean, low, high = _estimate(own).values()
        found[recipe] = {"share": mean, "share_low": low, "share_high": high, "share_seeds": len(own)}
    return pd.DataFrame.from_dict(found, orient="index").astype({"share_seeds": int})


def _estimate(values: np.ndarray) -> dict[str, float]:
    """Mean and 95 % t-interval of the values that are not NaN."""
    values = values[~np.isnan(values)]
    low, high = interval(values, LEVEL / 2)
    return {"effect": float(values.mean()) if len(values) else np.nan, "low": low, "high": high}


def dependence(r: float, low: float, high: float, settings: int) -> str:
    """Sentence of the map about one contrast.

    >>> dependence(0.62, 0.08, 0.88, 14)
    'rank correlation with the share +0.62 [+0.08, +0.88], 14 settings: rises'
    >>> dependence(float("nan"), float("nan"), float("nan"), 2)
    'rank correlation with the share: not defined for 2 settings'
    """
    number = f"{settings} setting{'' if settings == 1 else 's'}"
    if np.isnan(r):
        return f"rank correlation with the share: not defined for {number}"
    if np.isnan(low):
        return f"rank correlation with the share {r:+.2f} (no interval), {number}".replace("-", "−")
    verdict = "rises" if low > 0 else "falls" if high < 0 else "unclear"
    return f"rank correlation with the share {r:+.2f} [{low:+.2f}, {high:+.2f}], {number}: {verdict}".replace("-", "−")
