"""Tests and corrections of the rule: against scipy's t-test, hand formulas, enumeration and least squares."""

import warnings
from itertools import combinations
from math import comb

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import pearsonr, rankdata, spearmanr, ttest_1samp

from nme.claims.statistics import (
    Diverged,
    combine,
    combine_contrasts,
    fisher,
    holm,
    interval,
    judge,
    rank_correlation,
    tail_of,
    trend_weights,
    verdicts,
)

DELTA = 1.0
EXPECTATIONS = ("positive", "similar", "not negative", "different")

points = st.floats(-20, 20, allow_subnormal=False)
samples = st.lists(points, min_size=2, max_size=8).filter(lambda values: np.std(values) > 1e-3)
counts = st.integers(2, 8).flatmap(
    lambda n: st.builds(Diverged, st.integers(0, n), st.integers(0, n), st.just(n), st.booleans())
)


def p_above(values, bound: float) -> float:
    """The p value of 'the mean is at most ``bound``'."""
    return ttest_1samp(values, bound, alternative="greater").pvalue


def p_below(values, bound: float) -> float:
    return ttest_1samp(values, bound, alternative="less").pvalue


# --------------------------------------------------------------- one effect


@pytest.mark.parametrize("expect", EXPECTATIONS)
@given(values=samples, delta=st.floats(0.1, 5))
def test_estimate_and_interval_are_those_of_a_t_test(expect, values, delta):
    found = judge(np.array(values), expect, delta)
    expected = ttest_1samp(values, 0).confidence_interval(0.95)
    assert found["effect"] == pytest.approx(np.mean(values), abs=1e-9)
    assert (found["low"], found["high"]) == pytest.approx((expected.low, expected.high), abs=1e-6)


@given(values=samples, tail=st.floats(1e-4, 0.4))
def test_an_interval_leaves_the_tail_beyond_each_end(values, tail):
    expected = ttest_1samp(values, 0).confidence_interval(1 - 2 * tail)
    assert interval(values, tail) == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-6)


@given(values=samples, delta=st.floats(0.1, 5))
def test_positive_is_a_one_sided_test_and_an_effect_that_is_large_enough(values, delta):
    found = judge(np.array(values), "positive", delta)
    assume(abs(np.mean(values) - delta) > 1e-9)
    assert found["p"] == pytest.approx(p_above(values, 0) if np.mean(values) > delta else 1, abs=1e-9)
    assert found["p_against"] == pytest.approx(p_below(values, delta), abs=1e-9)


@given(values=samples, delta=st.floats(0.1, 5))
def test_similar_is_two_one_sided_tests(values, delta):
    """TOST: both 'at most −δ' and 'at least δ' have to be rejected; against it, either of the opposites."""
    found = judge(np.array(values), "similar", delta)
    assert found["p"] == pytest.approx(max(p_above(values, -delta), p_below(values, delta)), abs=1e-9)
    beyond = 2 * min(p_above(values, delta), p_below(values, -delta))
    assert found["p_against"] == pytest.approx(min(1, beyond), abs=1e-9)


@given(values=samples, delta=st.floats(0.1, 5))
def test_different_is_a_two_sided_test_and_an_effect_that_is_large_enough(values, delta):
    found = judge(np.array(values), "different", delta)
    assume(abs(abs(np.mean(values)) - delta) > 1e-9)
    large = abs(np.mean(values)) > delta
    assert found["p"] == pytest.approx(ttest_1samp(values, 0).pvalue if large else 1, abs=1e-9)
    assert found["p_against"] == judge(np.array(values), "similar", delta)["p"]


@given(values=samples, delta=st.floats(0.1, 5))
def test_not_negative_is_a_test_of_non_inferiority(values, delta):
    found = judge(np.array(values), "not negative", delta)
    assert found["p"] == pytest.approx(p_above(values, -delta), abs=1e-9)
    assert found["p_against"] == pytest.approx(p_below(values, -delta), abs=1e-9)


@given(values=samples, expect=st.sampled_from(EXPECTATIONS), delta=st.floats(0.1, 5), diverged=counts)
def test_no_effect_is_decided_for_and_against(values, expect, delta, diverged):
    found = judge(np.array(values), expect, delta, diverged)
    assert not (found["p"] <= 0.05 and found["p_against"] <= 0.05)


def test_an_interval_by_hand():
    """1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.302653, t = 2√3 with 2 degrees: p = 0.037092 one-sided."""
    found = judge(np.array([1.0, 2.0, 3.0]), "positive", DELTA)
    # Against: t = √3 with 2 degrees, p(T < √3) = 1/2 + √3/(2√5) = 0.887298.
    expected = {"effect": 2, "low": 2 - 2.484138, "high": 2 + 2.484138, "p": 0.037092, "p_against": 0.887298}
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("expect", EXPECTATIONS)
@pytest.mark.parametrize("values", [[], [3.0], [-30.0], [3.0, np.nan]], ids=str)
def test_fewer_than_two_seeds_decide_nothing(expect, values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = judge(np.array(values), expect, DELTA)
    assert (found["p"], found["p_against"]) == (1, 1)
    assert np.isnan([found["low"], found["high"]]).all()
    assert found["effect"] == values[0] if values else np.isnan(found["effect"])


@pytest.mark.parametrize("expect", EXPECTATIONS)
@pytest.mark.parametrize("value", [-2.0, 0.0, 0.1 + 0.2, 1.0, 30.0])
def test_seeds_without_any_spread_decide_nothing(expect, value):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = judge(np.array([value, value, value + 1e-12]), expect, DELTA)
    assert found["effect"] == pytest.approx(value)
    assert (found["p"], found["p_against"]) == (1, 1)
    assert np.isnan([found["low"], found["high"]]).all()


# --------------------------------------------------------------- divergence


def enumerated(plus: int, minus: int, seeds: int) -> dict[int, float]:
    """The probability of each count on the plus side if all ways to choose who diverged are equally likely."""
    chosen = list(combinations(range(2 * seeds), plus + minus))
    of = [sum(member < seeds for member in those) for those in chosen]
    return {count: of.count(count) / len(chosen) for count in set(of)}


@pytest.mark.parametrize(("plus", "minus", "seeds"), [(0, 3, 4), (1, 3, 4), (3, 0, 3), (2, 2, 4), (5, 1, 5), (1, 0, 2)])
def test_fisher_is_an_enumeration(plus, minus, seeds):
    chances = enumerated(plus, minus, seeds)
    less, greater = (sum(p for k, p in chances.items() if sign * (k - plus) <= 0) for sign in (1, -1))
    as_rare = sum(p for p in chances.values() if p <= chances[plus] * (1 + 1e-9))
    found = [fisher(plus, minus, seeds, way) for way in ("less", "greater", "two-sided")]
    assert found == pytest.approx([less, greater, as_rare])


def test_divergence_alone_decides():
    """All five seeds of one side diverge: 1 of 252 ways, times 2."""
    nothing = np.full(5, np.nan)
    better, worse = Diverged(0, 5, 5), Diverged(5, 0, 5)
    for expect in ("positive", "not negative"):
        assert judge(nothing, expect, DELTA, better)["p"] == pytest.approx(2 / comb(10, 5))
        assert judge(nothing, expect, DELTA, better)["p_against"] == 1
        assert judge(nothing, expect, DELTA, worse)["p_against"] == pytest.approx(2 / comb(10, 5))
        assert judge(nothing, expect, DELTA, worse)["p"] == 1
    for diverged in (better, worse):
        assert judge(nothing, "different", DELTA, diverged)["p"] == pytest.approx(4 / comb(10, 5))
        assert judge(nothing, "similar", DELTA, diverged)["p_against"] == pytest.approx(4 / comb(10, 5))
        assert judge(nothing, "similar", DELTA, diverged)["p"] == 1
        assert judge(nothing, "different", DELTA, diverged)["p_against"] == 1


VALUES = np.array([4.9, 5.0, 5.1, np.nan])


def test_accuracies_and_divergence_share_the_level():
    alone = judge(VALUES, "positive", DELTA)
    assert alone["p"] == pytest.approx(p_above([4.9, 5, 5.1], 0))
    assert judge(VALUES, "positive", DELTA, Diverged(1, 1, 4))["p"] == pytest.approx(2 * alone["p"])
    assert judge(VALUES, "positive", DELTA, Diverged(0, 1, 4))["p"] == pytest.approx(2 * alone["p"])
    assert judge(VALUES, "positive", DELTA, Diverged(0, 0, 4)) == alone
    # Sides with different numbers of cells have no comparable counts.
    assert judge(VALUES, "positive", DELTA, Diverged(1, 0, 4, comparable=False)) == alone


def test_those_that_are_left_do_not_speak_for_the_side_that_diverged_more():
    for expect in ("positive", "not negative"):
        assert judge(VALUES, expect, DELTA, Diverged(1, 0, 4))["p"] == 1
        assert judge(-VALUES, expect, DELTA, Diverged(0, 1, 4))["p_against"] == 1
        assert judge(-VALUES, expect, DELTA, Diverged(1, 0, 4))["p_against"] < 0.01


def test_those_that_are_left_show_no_similarity_where_counts_differ():
    values = np.array([0.01, -0.01, 0.0, 0.02])
    assert judge(values, "similar", DELTA, Diverged(1, 0, 8))["p"] == pytest.approx(
        judge(values, "similar", DELTA)["p"]
    )
    assert judge(values, "similar", DELTA, Diverged(6, 0, 8))["p"] == 1
    assert judge(values, "different", DELTA, Diverged(6, 0, 8))["p_against"] == 1


# -------------------------------------------------------------- combinations


@given(st.lists(st.floats(-50, 50), min_size=2, max_size=7))
def test_a_trend_is_the_fitted_change_over_the_ranks(values):
    fit = np.polyfit(np.arange(len(values)), values, 1)
    assert trend_weights(len(values)) @ values == pytest.approx(fit[0] * (len(values) - 1), abs=1e-8)


def effects(*pairs: tuple[float, float]) -> list[dict]:
    return [{"p": p, "p_against": against} for p, against in pairs]


def test_each_needs_all_and_any_needs_one():
    found = effects((0.01, 0.9), (0.04, 0.5), (0.02, 0.3))
    assert combine(found, "each") == (0.04, pytest.approx(0.9), 1), "the weakest one decides"
    assert combine(found, "any") == (pytest.approx(0.03), 0.9, 0), "the best one decides"
    found = effects((0.3, 0.01), (1.0, 0.002), (0.9, 0.04))
    assert combine(found, "each") == (1.0, pytest.approx(0.006), 1), "one speaks against"
    assert combine(found, "any") == (pytest.approx(0.9), 0.04, 2), "all speak against"
    for over in ("mean", "trend", "each", "any"):
        assert combine(effects((0.2, 0.7)), over) == (0.2, 0.7, 0)


def test_a_claim_needs_all_contrasts():
    assert combine_contrasts([0.01, 0.03], [0.4, 0.02]) == (0.03, 0.04)
    assert combine_contrasts([0.2], [0.7]) == (0.2, 0.7)


@pytest.mark.parametrize(
    ("p", "corrected"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        # 4·0.005; 3·0.01; 2·0.03; and 0.04, which must not be below the one before it.
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.2, 0.2, 0.2], [0.6, 0.6, 0.6]),
        ([0.5, 0.9], [1, 1]),
        ([0.03], [0.03]),
        ([1, 0.001], [1, 0.002]),
    ],
)
def test_holm_by_hand(p, corrected):
    assert holm(p) == pytest.approx(corrected)


@given(st.lists(st.floats(0, 1, allow_subnormal=False), min_size=1, max_size=8), st.floats(0.001, 0.5))
def test_holm_rejects_what_its_procedure_rejects(p, level):
    """Step down: reject the smallest while p ≤ level/(m − rank); stop at the first that is larger."""
    assume(all(abs(value * (len(p) - i) - level) > 1e-9 for value in p for i in range(len(p))))
    rejected = set()
    for rank, i in enumerate(sorted(range(len(p)), key=lambda i: p[i])):
        if p[i] > level / (len(p) - rank):
            break
        rejected.add(i)
    assert {i for i, corrected in enumerate(holm(p)) if corrected <= level} == rejected


def test_verdicts_are_corrected_in_both_directions():
    assert [v for *_, v in verdicts([0.01, 0.03, 1], [1, 1, 0.01])] == ["supported", "inconclusive", "not supported"]
    assert [v for *_, v in verdicts([0.03], [1])] == ["supported"]
    assert [v for *_, v in verdicts([0.01], [0.01])] == ["inconclusive"]


@given(
    st.lists(samples, min_size=1, max_size=3),
    st.sampled_from(EXPECTATIONS),
    st.sampled_from(["each", "any"]),
    st.integers(1, 30),
    st.integers(1, 3),
)
def test_a_simultaneous_interval_shows_no_verdict_that_holm_does_not_reach(values, expect, over, family, contrasts):
    """An interval wholly below the hypothesis that speaks against: Holm's first step rejects it, too."""
    over = "each" if expect in ("similar", "different") else over
    found = [judge(np.array(v), expect, DELTA) for v in values]
    p, against, _ = combine(found, over)
    ends = [interval(v, tail_of(family, contrasts, len(values), expect, Diverged())) for v in values]
    assume(min(abs(abs(end) - bound) for pair in ends for end in pair for bound in (0, DELTA)) > 1e-6)
    if expect == "positive":
        opposed = [high < DELTA for _, high in ends]
        favoured = [low > 0 and e["effect"] >= DELTA for (low, _), e in zip(ends, found, strict=True)]
    elif expect == "not negative":
        opposed, favoured = [high < -DELTA for _, high in ends], [low > -DELTA for low, _ in ends]
    elif expect == "similar":
        opposed = [low > DELTA or high < -DELTA for low, high in ends]
        favoured = [low > -DELTA and high < DELTA for low, high in ends]
    else:
        opposed = [low > -DELTA and high < DELTA for low, high in ends]
        favoured = [
            (low > 0 or high < 0) and abs(e["effect"]) >= DELTA for (low, high), e in zip(ends, found, strict=True)
        ]
    needed_for, needed_against = (any, all) if over == "any" else (all, any)
    if needed_for(favoured):
        assert family * p <= 0.05 * (1 + 1e-9)
    if needed_against(opposed):
        assert family * contrasts * against <= 0.05 * (1 + 1e-9)


# --------------------------------------------------------- rank correlation


@given(st.lists(st.tuples(points, points), min_size=4, max_size=20))
def test_the_rank_correlation_is_scipys(pairs):
    x, y = np.array(pairs).T
    assume(np.ptp(x) and np.ptp(y))
    r, low, high = rank_correlation(x, y)
    assert r == pytest.approx(spearmanr(x, y).statistic)
    assert r == pytest.approx(pearsonr(rankdata(x), rankdata(y)).statistic)
    if abs(r) > 0.999:
        return
    # scipy's interval has Fisher's error 1/√(n − 3); Bonett and Wright's is larger by a factor.
    fisher_z = pearsonr(rankdata(x), rankdata(y)).confidence_interval(0.95)
    wider = np.sqrt(1 + r**2 / 2)
    for end, found in zip(fisher_z, (low, high), strict=True):
        assert np.arctanh(found) - np.arctanh(r) == pytest.approx(wider * (np.arctanh(end) - np.arctanh(r)), rel=1e-6)
    assert -1 < low < r < high < 1
    assert rank_correlation(4 * x, y) == pytest.approx((r, low, high)), "of ranks"
    assert rank_correlation(-x, y) == pytest.approx((-r, -high, -low))


def test_a_rank_correlation_needs_four_pairs_that_differ():
    up = np.arange(6.0)
    assert np.isnan(rank_correlation(up[:3], [1, 3, 2])).all()
    assert np.isnan(rank_correlation(up, np.ones(6))).all()
    assert np.isnan(rank_correlation([*up[:3], np.nan], [1, 3, 2, 5])).all()
    for y, r in ((up, 1), (-up, -1)):
        found = rank_correlation(up, y)
        assert found[0] == r
        assert np.isnan(found[1:]).all(), "no error can be estimated"
    wild = [1, 3, 2, 6, 5, 4]
    assert rank_correlation([*up, np.nan, 9], [*wild, 4, np.nan]) == rank_correlation(up, wild)


def test_the_interval_of_a_rank_correlation_covers():
    """Spearman's correlation of normal pairs is (6/π)·asin(r/2); 14 pairs."""
    random, pairs, runs = np.random.default_rng(0), 14, 2000
    for r in (0.0, 0.6):
        truth, covered = 6 / np.pi * np.arcsin(r / 2), 0
        for _ in range(runs):
            x, noise = random.normal(size=(2, pairs))
            _, low, high = rank_correlation(x, r * x + np.sqrt(1 - r**2) * noise)
            covered += low <= truth <= high
        assert 0.93 < covered / runs < 0.985, r
