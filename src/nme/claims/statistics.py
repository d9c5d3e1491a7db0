"""Tests, intervals and corrections for the rule that decides claims; ``nme.claims.verdicts`` explains the rule.

Formulas: docs/theory.md, §8.

These functions are independent of tables and configurations: they take arrays with one number per seed, NaN if a member
of the seed diverged.
"""

from functools import cache
from typing import NamedTuple

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit
from scipy.stats import fisher_exact, spearmanr

LEVEL = 0.05
# Points or percent. Accuracies of real runs differ by multiples of 0.01 points, so a smaller spread is rounding.
NO_SPREAD = 1e-6
LEAST_PAIRS = 4  # for a rank correlation, whose standard error has n − 3 in the denominator
TWO_SIDED = ("similar", "different")


class Diverged(NamedTuple):
    """Numbers of seeds in which a member on each side of a contrast diverged.

    Attributes:
        plus: seeds in which a member of a cell with positive weight diverged.
        minus: the same for cells with negative weight.
        seeds: number of trained seeds.
        comparable: True if both sides have the same number of cells, so that their counts can be compared.
    """

    plus: int = 0
    minus: int = 0
    seeds: int = 0
    comparable: bool = True

    @property
    def tested(self) -> bool:
        """True if the counts enter the verdict."""
        return self.comparable and self.plus + self.minus > 0


def judge(values: np.ndarray, expect: str, smallest: float, diverged: Diverged = Diverged()) -> dict:  # noqa: B008
    """Estimate and test one effect by the rule in ``nme.claims.verdicts`` (docs/theory.md, §8.3).

    Args:
        values: the effect per seed, in points or percent; NaN if a member diverged, which excludes the seed.
        expect: positive, similar, different or not negative.
        smallest: δ, the smallest effect of interest, in the unit of ``values``.
        diverged: counts of diverged members. If they are not 0, Fisher's exact test of the counts joins the t-test.

    Returns:
        effect, low and high (Student's 95 % interval), and p and p_against, the p values for and against the
        expectation. With fewer than two seeds or without any spread there is no interval (NaN), and accuracies give
        p = 1 both ways.
    """
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    low, high = interval(values, LEVEL / 2)
    effect = float(values.mean()) if len(values) else np.nan
    p, against = _of_values(values, expect, smallest)
    if diverged.tested:
        p, against = _with_divergence(p, against, expect, diverged)
    return {"effect": effect, "low": low, "high": high, "p": p, "p_against": against}


def _of_values(values: np.ndarray, expect: str, smallest: float) -> tuple[float, float]:
    """The p values of the t-tests for and against."""
    if not _has_spread(values):
        return 1.0, 1.0
    # As in scipy.stats.ttest_1samp, which takes 30 times as long: level and power are simulated with 10⁵ calls.
    effect, freedom = values.mean(), len(values) - 1
    error = values.std(ddof=1) / np.sqrt(len(values))

    def above(bound: float) -> float:
        """The p value of 'effect ≤ bound'."""
        return float(stdtr(freedom, (bound - effect) / error))

    def below(bound: float) -> float:
        """The p value of 'effect ≥ bound'."""
        return float(stdtr(freedom, (effect - bound) / error))

    if expect == "positive":
        return above(0) if effect >= smallest else 1.0, below(smallest)
    if expect == "not negative":
        return above(-smallest), below(-smallest)
    inside = max(above(-smallest), below(smallest))
    if expect == "similar":
        return inside, min(1.0, 2 * min(above(smallest), below(-smallest)))
    return min(1.0, 2 * min(above(0), below(0))) if abs(effect) >= smallest else 1.0, inside


def _with_divergence(p: float, against: float, expect: str, diverged: Diverged) -> tuple[float, float]:
    """Combine the p values of accuracies and of divergence: twice the smaller one if both may decide.

    The accuracies of the remaining members decide nothing in favour of the side that diverged more often, and show no
    similarity if the counts differ significantly. See docs/theory.md, §8.4.
    """
    plus, minus, seeds, _ = diverged
    if expect in TWO_SIDED:
        counts = fisher(plus, minus, seeds, "two-sided")
        similar, different = (p, against) if expect == "similar" else (against, p)
        similar = 1.0 if counts <= LEVEL else similar
        different = min(1.0, 2 * min(different, counts))
        return (similar, different) if expect == "similar" else (different, similar)
    p, against = (1.0 if plus > minus else p), (1.0 if minus > plus else against)
    return (
        min(1.0, 2 * min(p, fisher(plus, minus, seeds, "less"))),
        min(1.0, 2 * min(against, fisher(plus, minus, seeds, "greater"))),
    )


@cache
def fisher(plus: int, minus: int, seeds: int, alternative: str) -> float:
    """The p value of Fisher's exact test of ``plus`` of ``seeds`` against ``minus`` of ``seeds``.

    ``alternative`` refers to the plus side: it diverges 'less' often, more often ('greater') or differently
    ('two-sided').

    >>> round(fisher(0, 5, 5, "less") * 252, 6)
    1.0
    """
    return min(1.0, float(fisher_exact([[plus, seeds - plus], [minus, seeds - minus]], alternative).pvalue))


def interval(values: np.ndarray, tail: float) -> tuple[float, float]:
    """Student's t interval of the mean of ``values``, with probability ``tail`` beyond each end.

    NaN at both ends if there are fewer than two values or all are equal.
    """
    values = np.asarray(values, dtype=float)
    values = values[~np.isnan(values)]
    if not _has_spread(values):
        return np.nan, np.nan
    half = -stdtrit(len(values) - 1, tail) * values.std(ddof=1) / np.sqrt(len(values))
    return float(values.mean() - half), float(values.mean() + half)


def _has_spread(values: np.ndarray) -> bool:
    return len(values) > 1 and values.max() - values.min() > NO_SPREAD


def trend_weights(number: int) -> np.ndarray:
    """Weights of ``number`` values in rank order whose sum is the fitted change from the first to the last.

    The change is the slope of the least-squares line over the ranks, times ``number`` − 1. The weights sum to 0. See
    docs/theory.md, §8.2.

    >>> [float(round(w, 3)) for w in trend_weights(4)]
    [-0.9, -0.3, 0.3, 0.9]
    """
    ranks = np.arange(number) - (number - 1) / 2
    return (number - 1) * ranks / (ranks**2).sum()


def combine(found: list[dict], over: str) -> tuple[float, float, int]:
    """Combine the p values of a contrast's effects, and choose the effect to show (docs/theory.md, §8.5).

    Args:
        found: results of ``judge`` for each effect.
        over: 'each' needs all effects as expected (intersection-union; against: Bonferroni over them); 'any' needs one
            (Bonferroni; against: intersection-union). With a single effect, 'each', 'any', 'mean' and 'trend' are the
            same.

    Returns:
        p, p_against, and the index of the deciding effect: the source of the smaller of these two p values.
    """
    p, against = (np.array([effect[key] for effect in found]) for key in ("p", "p_against"))
    if over == "any":
        total, opposed = min(1.0, len(p) * p.min()), against.max()
        # If p values are equal, for example because no effect reaches δ, the other direction decides.
        order = np.lexsort((-against, p)) if total <= opposed else np.lexsort((p, -against))
    else:
        total, opposed = p.max(), min(1.0, len(p) * against.min())
        order = np.lexsort((against, -p)) if total <= opposed else np.lexsort((-p, against))
    return float(total), float(opposed), int(order[0])


def combine_contrasts(p: list[float], against: list[float]) -> tuple[float, float]:
    """The p values for and against a claim: all contrasts must hold; a single failure (Bonferroni) contradicts it."""
    return max(p), min(1.0, len(against) * min(against))


def holm(p: list[float]) -> list[float]:
    """Correct p values by Holm's step-down method; they stay in the given order (docs/theory.md, §8.6).

    >>> [round(x, 3) for x in holm([0.01, 0.04, 0.03])]
    [0.03, 0.06, 0.06]
    """
    order = np.argsort(p, kind="stable")
    corrected, highest = [0.0] * len(p), 0.0
    for rank, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = highest
    return corrected


def verdicts(p: list[float], against: list[float]) -> list[tuple[float, float, str]]:
    """Holm's p value for and against each hypothesis of a family, and its verdict.

    The probability of a wrong 'supported' anywhere is at most 5 %, and so is the probability of a wrong 'not
    supported'; together at most 10 %.
    """
    found = []
    for supports, opposes in zip(holm(p), holm(against), strict=True):
        decided = {(True, False): "supported", (False, True): "not supported"}
        verdict = decided.get((supports <= LEVEL, opposes <= LEVEL), "inconclusive")
        found.append((supports, opposes, verdict))
    return found


def rank_correlation(x: np.ndarray, y: np.ndarray) -> tuple[float, float, float]:
    """Spearman's rank correlation of pairs with its 95 % interval (docs/theory.md, §8.10).

    The interval is Fisher's: atanh(r) has the standard error √((1 + r²/2)/(n − 3)) of Bonett and Wright (2000). The
    pairs are assumed to be independent.

    Args:
        x: one number per pair.
        y: one number per pair; pairs with a NaN are left out.

    Returns:
        The correlation and both ends. All are NaN with fewer than ``LEAST_PAIRS`` pairs or if x or y is constant. The
        ends are also NaN if the ranks agree completely or are completely reversed: the error has no estimate then.
    """
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    both = ~(np.isnan(x) | np.isnan(y))
    x, y = x[both], y[both]
    if len(x) < LEAST_PAIRS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return np.nan, np.nan, np.nan
    r = float(spearmanr(x, y).statistic)
    if abs(r) > 1 - 1e-12:
        return round(r), np.nan, np.nan
    half = -ndtri(LEVEL / 2) * np.sqrt((1 + r**2 / 2) / (len(x) - 3))
    return r, float(np.tanh(np.arctanh(r) - half)), float(np.tanh(np.arctanh(r) + half))


def tail_of(family: int, contrasts: int, effects: int, expect: str, diverged: Diverged) -> float:
    """One effect's share of the 5 %, for each end of its simultaneous interval (docs/theory.md, §8.7).

    The shares of all effects of all claims sum to at most 5 %, so all lower ends hold together with 95 %, and so do all
    upper ends. Holm's method confirms every verdict that such an interval shows.

    Args:
        family: number of (claim, recipe) pairs.
        contrasts: number of the claim's contrasts.
        effects: number of the contrast's effects.
        expect: the contrast's expectation; two-sided tests halve the share.
        diverged: counts of diverged members; a test of these counts halves the share.
    """
    halves = (expect in TWO_SIDED) + diverged.tested
    return LEVEL / (family * contrasts * effects * 2**halves)
