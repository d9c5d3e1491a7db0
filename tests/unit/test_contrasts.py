"""Contrasts: effects per recipe and seed by hand, divergence counted, and the effect that decides."""

import warnings

import numpy as np
import pytest
from claims_examples import PENALTY, SAM, SGD, SMALLEST, STRONG, contrast_of, differing, table_of, traces_of
from scipy.stats import ttest_1samp

from nme.claims.contrasts import contrast_effects, diverged_of, effects_of, judge_contrast
from nme.claims.statistics import Diverged
from nme.config.figure import SmallestEffect
from nme.errors import NmeError


def test_an_effect_is_a_difference_within_a_seed_and_a_recipe():
    table = table_of({PENALTY: {"one": [71, 83], "other": [90, 91]}, SGD: {"one": [70, 80], "other": [80, 85]}})
    found = contrast_effects(table, contrast_of([PENALTY], [SGD]))
    assert found["one", 0].tolist() == pytest.approx([1, 3])
    assert found["other", 0].tolist() == pytest.approx([10, 6])
    assert found.xs(0, axis=1, level=1).columns.tolist() == ["one", "other"]
    assert found.index.tolist() == [0, 1]


def test_terms_are_summed_and_for_a_mean_the_cells_of_a_term_averaged():
    cells = {SGD: 50, PENALTY: 60, SAM: 70, ("gelu", "sgd", "0"): 20}
    table = table_of({cell: {"one": [value, value]} for cell, value in cells.items()})
    contrast = contrast_of([[SGD, PENALTY], SAM], [("gelu", "sgd", "0")])
    assert contrast_effects(table, contrast)["one", 0].tolist() == pytest.approx([55 + 70 - 20] * 2)


@pytest.mark.parametrize("over", ["each", "any"])
def test_cells_pair_up_one_by_one_and_a_single_one_is_used_again(over):
    table = table_of({SGD: {"one": [50, 51]}, PENALTY: {"one": [60, 60]}, STRONG: {"one": [70, 75]}})
    contrast = contrast_of([[PENALTY, STRONG]], [SGD], over=over)
    found = contrast_effects(table, contrast)
    assert found["one", 0].tolist() == pytest.approx([10, 9])
    assert found["one", 1].tolist() == pytest.approx([20, 24])
    assert [effect.label for effect in effects_of(contrast)] == ["ρ = 0.1", "ρ = 0.3"]


def test_labels_name_what_differs():
    cells = [(a, "weight_noise", s) for a in ("relu", "gelu") for s in ("0.001", "0.01")]
    contrast = contrast_of([cells], [], "similar")
    expected = [f"{a}, σ² = {s}" for a in ("ReLU", "GELU") for s in ("0.001", "0.01")]
    assert [effect.label for effect in effects_of(contrast)] == expected
    assert [effect.label for effect in effects_of(contrast_of([PENALTY], [SGD], "similar"))] == [""]


def test_a_trend_is_the_fitted_change_of_each_seed():
    cells = [SGD, PENALTY, STRONG, ("relu", "grad_norm", "0.5")]
    values = np.array([[70, 72, 69, 80], [60, 66, 61, 58]], dtype=float)
    table = table_of({cell: {"one": column.tolist()} for cell, column in zip(cells, values.T, strict=True)})
    found = contrast_effects(table, contrast_of([cells], [], over="trend"))["one", 0]
    assert found.tolist() == pytest.approx([3 * np.polyfit(range(4), row, 1)[0] for row in values])
    falls = contrast_effects(table, contrast_of([], [cells], over="trend"))["one", 0]
    assert falls.tolist() == pytest.approx((-found).tolist())


def test_the_logit_scale_does_not_shrink_at_the_ceiling():
    """Halving the error is log 2 in odds, up to the change of the accuracies: 98 → 99 % and 80 → 90 %."""
    table = table_of({PENALTY: {"one": [99, 90, 100]}, SGD: {"one": [98, 80, 100]}})
    found = contrast_effects(table, contrast_of([PENALTY], [SGD]), "logit")["one", 0]
    assert found[0] == pytest.approx(np.log((0.99 / 0.01) / (0.98 / 0.02)))
    assert found[1] == pytest.approx(np.log((0.9 / 0.1) / (0.8 / 0.2)))
    assert found[2] == 0, "finite"
    (row,) = judge_contrast(table, contrast_of([PENALTY], [SGD]), SMALLEST)
    assert row["effect_logit"] == pytest.approx(found.mean())


def test_a_seed_with_a_diverged_member_leaves_only_the_effects_it_is_in():
    table = table_of({SGD: {"one": [50, 51]}, PENALTY: {"one": [None, 60]}, STRONG: {"one": [70, 75]}})
    contrast = contrast_of([[PENALTY, STRONG]], [SGD], over="any")
    found = contrast_effects(table, contrast)
    assert np.isnan(found["one", 0][0])
    assert found["one", 0][1] == pytest.approx(9)
    assert found["one", 1].tolist() == pytest.approx([20, 24])
    assert diverged_of(table, contrast) == {("one", 0): Diverged(1, 0, 2), ("one", 1): Diverged(0, 0, 2)}


def test_divergence_is_counted_in_seeds_on_each_side():
    cells = {SGD: [50, 50, None, 50], PENALTY: [None, None, 1, 1], STRONG: [None, 1, None, 1], SAM: [1, 1, 1, 1]}
    table = table_of({cell: {"one": values} for cell, values in cells.items()})
    found = diverged_of(table, contrast_of([[PENALTY, STRONG]], [[SGD, SAM]]))
    assert found == {("one", 0): Diverged(3, 1, 4)}
    assert not diverged_of(table, contrast_of([[PENALTY, STRONG]], [SGD]))["one", 0].comparable
    # In a trend the sides are the ends: a fall over the strengths has the weak ones on its plus side.
    trend = contrast_of([], [[SGD, PENALTY, STRONG]], over="trend")
    assert diverged_of(table, trend)["one", 0] == Diverged(1, 2, 4)


def test_two_recipes_may_have_one_title():
    table = table_of({SGD: {"one": [60, 61], "other": [50, 53]}, PENALTY: {"one": [61, 64], "other": [55, 55]}}, "Same")
    rows = judge_contrast(table, contrast_of([PENALTY], [SGD]), SMALLEST)
    assert [row["recipe"] for row in rows] == ["one", "other"]
    assert [row["effect"] for row in rows] == pytest.approx([2, 3.5])
    assert {row["panel"] for row in rows} == {"Same"}


def test_a_missing_cell_is_one_message():
    with pytest.raises(NmeError, match=r"one/relu/sam/0\.1\. Make the table again"):
        contrast_effects(table_of({SGD: {"one": [1, 2]}}), contrast_of([SAM], [SGD]))


def test_pairing_is_by_seed_and_not_by_the_order_of_rows():
    plain = [40.0, 55.0, 63.0, 78.0, 90.0]
    better = [value + gain for value, gain in zip(plain, [1.9, 2.1, 2.0, 2.2, 1.8], strict=True)]
    table = table_of({SGD: {"one": plain}, PENALTY: {"one": better}})
    (row,) = judge_contrast(table, contrast_of([PENALTY], [SGD]), SMALLEST)
    assert row["p"] == pytest.approx(ttest_1samp(np.subtract(better, plain), 0, alternative="greater").pvalue)
    assert (row["seeds"], row["pairs"]) == (5, 5)
    mixed = table.sample(frac=1, random_state=0)
    assert judge_contrast(mixed, contrast_of([PENALTY], [SGD]), SMALLEST)[0] == pytest.approx(row)


def test_a_randomisation_test_agrees():
    """Flip the signs of the paired differences in all ways: an independent p value, for a clear effect and for none."""
    random = np.random.default_rng(3)
    for shift in (0.8, 0.0):
        values = random.normal(shift, 1, 12)
        smallest = SmallestEffect(points=1e-9)
        (row,) = judge_contrast(differing(one=values.tolist()), contrast_of([PENALTY], [SGD]), smallest)
        signs = 1 - 2 * ((np.arange(2**12)[:, None] >> np.arange(12)) & 1)
        exact = np.mean((signs * values).mean(axis=1) >= values.mean() - 1e-12)
        expected = row["p"] if values.mean() > 0 else 1 - ttest_1samp(values, 0, alternative="less").pvalue
        assert exact == pytest.approx(expected, abs=0.02)


def test_the_row_shows_the_cell_that_decides():
    plain = [60.0, 63.0, 66.0]
    strengths = {PENALTY: [2.0, 2.1, 1.9], STRONG: [-0.3, 0.9, 0.2]}
    cells = {SGD: {"one": plain}}
    cells |= {c: {"one": [p + d for p, d in zip(plain, ds, strict=True)]} for c, ds in strengths.items()}
    table = table_of(cells)
    (best,) = judge_contrast(table, contrast_of([[PENALTY, STRONG]], [SGD], over="any"), SMALLEST)
    assert (best["cell"], best["effect"]) == ("ρ = 0.1", pytest.approx(2))
    assert best["p"] == pytest.approx(2 * ttest_1samp([2.0, 2.1, 1.9], 0, alternative="greater").pvalue)
    (worst,) = judge_contrast(table, contrast_of([[PENALTY, STRONG]], [SGD], "different"), SMALLEST)
    assert worst["cell"] == "ρ = 0.3"
    assert worst["p"] == 1, "its estimate is below δ"


def test_the_simultaneous_interval_divides_the_level():
    """Four pairs, two contrasts of a claim, two cells: 5 % / 16 beyond each end."""
    values = [[2.0, 2.6, 1.9], [1.0, 2.0, 1.4]]
    cells = {SGD: {"one": [60.0] * 3}, PENALTY: {"one": [60 + v for v in values[0]]}}
    table = table_of(cells | {STRONG: {"one": [60 + v for v in values[1]]}})
    (row,) = judge_contrast(table, contrast_of([[PENALTY, STRONG]], [SGD], over="any"), SMALLEST, 4, 2)
    shown = values[0] if row["cell"] == "ρ = 0.1" else values[1]
    expected = ttest_1samp(shown, 0).confidence_interval(1 - 2 * 0.05 / 16)
    assert (row["low_simultaneous"], row["high_simultaneous"]) == pytest.approx((expected.low, expected.high))
    assert row["low_simultaneous"] < row["low"]


# ------------------------------------------------------------------- traces

TRACE = {"operator": "H", "at": 1.0}


def test_a_trace_is_the_mean_of_its_probes_at_the_end_in_percent_of_all_curvature():
    table = traces_of({PENALTY: {"one": [(30, -50), (10, 30)], "other": [(20, -20), (5, -15)]}})
    found = contrast_effects(table, contrast_of([], [PENALTY], trace=TRACE))
    assert found["one", 0].tolist() == pytest.approx([25, -100])
    assert found["other", 0].tolist() == pytest.approx([0, 50])
    found = contrast_effects(table, contrast_of([PENALTY], [], trace={**TRACE, "operator": "N"}))
    assert found["one", 0].tolist() == pytest.approx([-62.5, 75])


def test_a_trace_has_its_own_smallest_effect():
    """3 % of a trace is above 1, and below 5."""
    table = traces_of({PENALTY: {"one": [(50 - 1.4, -50 - 1.5), (50 - 1.5, -50 - 1.6), (50 - 1.5, -50 - 1.5)]}})
    contrast = contrast_of([], [PENALTY], trace=TRACE)
    (row,) = judge_contrast(table, contrast, SMALLEST)
    assert row["effect"] == pytest.approx(3, abs=0.1)
    assert row["unit"] == "percent"
    assert np.isnan(row["effect_logit"])
    assert row["p"] == 1
    assert row["p_against"] < 0.01
    assert judge_contrast(table, contrast, SmallestEffect(percent=2))[0]["p"] < 0.01


def test_a_diverged_member_has_no_trace_and_its_seed_is_left_out():
    table = traces_of({PENALTY: {"one": [(10, -30), None, (30, -10)], "other": [(0, -40), (40, 0), (0, -40)]}})
    one, other = judge_contrast(table, contrast_of([], [PENALTY], trace=TRACE), SMALLEST)
    assert (one["pairs"], one["seeds"], one["diverged_minus"]) == (2, 3, 1)
    assert one["effect"] == pytest.approx(0)
    assert (other["pairs"], other["diverged_minus"]) == (3, 0), "recipes do not leave out each other's seeds"


@pytest.mark.parametrize("kept", [None, (10, -30)], ids=["none", "one"])
def test_without_traces_nothing_is_decided(kept):
    table = traces_of({SGD: {"one": [(40, 1)] * 3}, PENALTY: {"one": [kept, None, None]}})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = judge_contrast(table, contrast_of([], [PENALTY], trace=TRACE), SMALLEST)
    assert (row["p"], row["p_against"]) == (1, 1)
