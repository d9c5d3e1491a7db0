"""Verdicts on the paper's claims, on each recipe, with intervals, by one rule (docs/theory.md, §8).

A claim is data (``config/figures/claims.yaml``): one or more contrasts. A contrast is a difference of final test
accuracies in points, taken within a recipe and a seed. The same seed has the same initial weights and the same order of
the data in every cell, so seeds are paired. Intervals and tests are Student's t over the seeds.

Accuracies enter in points; the table also has them on the logit scale, which does not shrink near 100 %. A contrast may
instead compare traces at the end of the training, in percent of tr G + |tr N| of the same network, hence within ±100.

**Strengths.** ``over`` sets the use of several cells in a term:

    mean    their mean is one effect
    trend   one effect: the change from the first to the last cell on the line fitted over their ranks
    each    one effect per cell: all must be as expected (intersection-union); against: any of them (Bonferroni)
    any     one effect per cell: one must be as expected (Bonferroni); against: all of them (intersection-union)

**Tests.** δ is the smallest effect of interest (``smallest_effect``, in the unit of the effect). For each expectation,
the table lists the hypothesis whose rejection supports it, and the hypothesis whose rejection contradicts it:

    positive      for: effect ≤ 0, and the estimate is at least δ     against: effect ≥ δ
    similar       for: |effect| ≥ δ                                   against: |effect| ≤ δ
    different     for: effect = 0, and the estimate is at least ±δ    against: |effect| ≥ δ
    not negative  for: effect ≤ −δ                                    against: effect ≥ −δ

Effects without any spread over the seeds decide nothing.

**Divergence** is a separate outcome. A seed in which a member of the effect diverged leaves the t-test. The plus side
consists of the cells with positive weight, the minus side of the cells with negative weight. A side counts a seed if
any of its members diverged. If a member diverged and both sides have the same number of cells, Fisher's exact test
compares the counts. If a difference in divergence points in the tested direction, the effect's p is twice the smaller p
of the two tests. Fisher's test is one-sided for ``positive`` and ``not negative`` (diverging less is better), otherwise
two-sided. The remaining accuracies decide nothing in favour of the side that diverged more often. They show no
similarity if the two-sided test of the counts is significant at 5 %.

**Verdicts** are per claim and recipe, for the recipes that all contrasts of the claim have. A claim is *supported* on a
recipe if all its contrasts are as expected: its p is the largest p of its contrasts. It is *not supported* if the data
contradict any contrast: its p is the smallest p against a contrast times the number of contrasts. Both are tested at
5 %, corrected by Holm's method for all pairs of a claim and a recipe. Otherwise it is *inconclusive*. The probability
of any wrong verdict in favour is at most 5 %, and so is the probability of any wrong verdict against, together at most
10 %. Simultaneous intervals divide the 5 % in the same way: all lower ends hold together with 95 %, and so do all upper
ends.

**Choose the number of seeds before you look.** Adding seeds until a verdict appears is optional stopping, and the error
rates above no longer hold. Results are conditional on one test set per dataset: no interval includes its noise.
"""

import pandas as pd

from nme.claims.contrasts import judge_contrast, table_of
from nme.claims.statistics import combine_contrasts, verdicts
from nme.errors import NmeError
from nme.grid.specs import ClaimsSpec


def decide(spec: ClaimsSpec, tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """Decide all claims on all their recipes.

    Args:
        spec: the claims, their contrasts and recipes, and the smallest effects.
        tables: tables by figure.

    Returns:
        One row per claim, recipe and contrast: claim, says, figure, contrast, expect, over; the columns of
        ``judge_contrast``; and p_holm, p_against_holm and verdict, which belong to the claim on the recipe and repeat
        in its rows.

    Raises:
        NmeError: a table is not given, or lacks a cell or a recipe of a contrast.
    """
    family = sum(len(claim.recipes) for claim in spec.claims)
    rows: dict[tuple[int, str], list[dict]] = {}
    for claim in spec.claims:
        for contrast in claim.contrasts:
            sizes = (family, len(claim.contrasts))
            judged = judge_contrast(table_of(tables, contrast.figure), contrast, spec.smallest_effect, *sizes)
            by_recipe = {row["recipe"]: row for row in judged}
            for recipe in claim.recipes:
                if recipe not in by_recipe:
                    raise NmeError(f"the table of {contrast.figure} has no recipe {recipe}. Make the table again.")
                head = {"claim": claim.number, "says": claim.says, "figure": claim.figure}
                head |= {"contrast": contrast.name, "expect": contrast.expect, "over": contrast.over}
                rows.setdefault((claim.number, recipe), []).append(head | by_recipe[recipe])
    pairs = [combine_contrasts(*([r[key] for r in own] for key in ("p", "p_against"))) for own in rows.values()]
    decided = verdicts([p for p, _ in pairs], [against for _, against in pairs])
    for own, (p, against, verdict) in zip(rows.values(), decided, strict=True):
        for row in own:
            row |= {"p_holm": p, "p_against_holm": against, "verdict": verdict}
    return pd.DataFrame([row for own in rows.values() for row in own])
