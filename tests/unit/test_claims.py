"""Claims: tests and intervals against scipy's, verdicts by the stated rule, and the table as it is written."""

import json
import re
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp, ttest_ind

from nme import parquet
from nme.claims import decide, effects, holm, judge, write_claims, written
from nme.errors import NmeError

DELTA = 1.0
EXPECTATIONS = ("positive", "similar", "not negative", "different")

points = st.floats(-20, 20, allow_subnormal=False)
samples = st.lists(points, min_size=2, max_size=8).filter(lambda values: np.std(values) > 1e-3)


def p_above(values, bound: float) -> float:
    """The p value of 'the mean is at most ``bound``'."""
    return ttest_1samp(values, bound, alternative="greater").pvalue


def p_below(values, bound: float) -> float:
    return ttest_1samp(values, bound, alternative="less").pvalue


# ------------------------------------------------------------- one contrast


@pytest.mark.parametrize("expect", EXPECTATIONS)
@given(values=samples, delta=st.floats(0.1, 5))
def test_estimate_and_interval_are_those_of_a_t_test(expect, values, delta):
    found = judge(np.array(values), expect, delta)
    interval = ttest_1samp(values, 0).confidence_interval(0.95)
    assert found["effect"] == pytest.approx(np.mean(values), abs=1e-9)
    assert (found["low"], found["high"]) == pytest.approx((interval.low, interval.high), abs=1e-6)


@given(values=samples, delta=st.floats(0.1, 5))
def test_positive_is_a_one_sided_test_and_an_effect_that_is_large_enough(values, delta):
    found = judge(np.array(values), "positive", delta)
    assume(abs(np.mean(values) - delta) > 1e-9)
    assert found["p"] == pytest.approx(p_above(values, 0) if np.mean(values) > delta else 1, abs=1e-9)
    assert found["p_against"] == pytest.approx(p_below(values, delta), abs=1e-9)


@given(values=samples, delta=st.floats(0.1, 5))
def test_similar_is_two_one_sided_tests(values, delta):
    """TOST: both 'at most −δ' and 'at least δ' have to be refuted; against it, either of the opposites."""
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


@given(values=samples, expect=st.sampled_from(EXPECTATIONS), delta=st.floats(0.1, 5))
def test_nothing_speaks_for_and_against(values, expect, delta):
    found = judge(np.array(values), expect, delta)
    assert not (found["p"] <= 0.05 and found["p_against"] <= 0.05)


def test_an_interval_by_hand():
    """1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.302653, t = 2√3 with 2 degrees: p = 0.037092 one-sided."""
    found = judge(np.array([1.0, 2.0, 3.0]), "positive", DELTA)
    # Against: t = √3 with 2 degrees, p(T < √3) = 1/2 + √3/(2√5) = 0.887298.
    expected = {"effect": 2, "low": 2 - 2.484138, "high": 2 + 2.484138, "p": 0.037092, "p_against": 0.887298}
    assert found == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("expect", EXPECTATIONS)
@pytest.mark.parametrize("values", [[], [3.0], [-30.0]], ids=str)
def test_fewer_than_two_seeds_decide_nothing(expect, values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = judge(np.array(values), expect, DELTA)
    assert (found["p"], found["p_against"]) == (1, 1)
    assert np.isnan([found["low"], found["high"]]).all()
    assert found["effect"] == values[0] if values else np.isnan(found["effect"])


@pytest.mark.parametrize(
    ("expect", "value", "p", "against"),
    [
        ("positive", 2, 0, 1),
        ("positive", 0.5, 1, 0),
        ("positive", 0, 1, 0),
        ("similar", 0, 0, 1),
        ("similar", 2, 1, 0),
        ("similar", -2, 1, 0),
        ("different", 0, 1, 0),
        ("different", -2, 0, 1),
        ("not negative", 0, 0, 1),
        ("not negative", -2, 1, 0),
    ],
)
def test_seeds_without_any_spread(expect, value, p, against):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = judge(np.full(5, float(value)), expect, DELTA)
    assert found == {"effect": value, "low": value, "high": value, "p": p, "p_against": against}


# --------------------------------------------------------------------- Holm


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


# ------------------------------------------------------------------ effects

PANELS = {"one": 0.1, "other": 0.5}
SGD, PENALTY, SAM = ("relu", "sgd", "0"), ("relu", "grad_norm", "0.1"), ("relu", "sam", "0.1")


def table_of(values: dict[tuple, dict[str, list[float | None]]]) -> pd.DataFrame:
    """Accuracies in percent of each cell's seeds in each panel; None has diverged."""
    rows = [
        {
            "recipe": f"recipe_{panel}",
            "panel": panel,
            "activation": activation,
            "method": method,
            "strength": float(strength),
            "seed": seed,
            "chance": PANELS[panel],
            "test_accuracy": None if value is None else value / 100,
            "diverged": value is None,
        }
        for (activation, method, strength), panels in values.items()
        for panel, accuracies in panels.items()
        for seed, value in enumerate(accuracies)
    ]
    return pd.DataFrame(rows)


def contrast_of(plus, minus, expect="positive", **more) -> dict:
    terms = {"plus": [[cell] for cell in plus], "minus": [[cell] for cell in minus]}
    return {"name": "difference", "expect": expect, "trace": None, "table": "t", **terms, **more}


def test_an_effect_is_a_difference_within_a_seed_and_a_panel():
    table = table_of({PENALTY: {"one": [71, 83], "other": [90, 91]}, SGD: {"one": [70, 80], "other": [80, 85]}})
    found = effects(table, contrast_of([PENALTY], [SGD]))
    assert found["one"].tolist() == pytest.approx([1, 3])
    assert found["other"].tolist() == pytest.approx([10, 6])


def test_terms_are_summed_and_the_cells_of_a_term_averaged():
    cells = {SGD: 50, PENALTY: 60, SAM: 70, ("gelu", "sgd", "0"): 20}
    table = table_of({cell: {"one": [value, value]} for cell, value in cells.items()})
    contrast = contrast_of([], [("gelu", "sgd", "0")]) | {"plus": [[SGD, PENALTY], [SAM]]}
    assert effects(table, contrast)["one"].tolist() == pytest.approx([55 + 70 - 20] * 2)


def test_a_diverged_member_counts_as_chance():
    table = table_of({PENALTY: {"one": [70, None], "other": [None, 60]}, SGD: {"one": [50, 50], "other": [50, 50]}})
    found = effects(table, contrast_of([PENALTY], [SGD]))
    assert found["one"].tolist() == pytest.approx([20, 10 - 50])
    assert found["other"].tolist() == pytest.approx([50 - 50, 10])


def test_a_missing_cell_is_one_message():
    with pytest.raises(NmeError, match=r"relu/sam/0\.1; make it again"):
        effects(table_of({SGD: {"one": [1, 2]}}), contrast_of([SAM], [SGD]))


def traces_of(values: dict[tuple, dict[str, list[tuple[float, float] | None]]]) -> pd.DataFrame:
    """Traces of G and N at the end of each cell's seeds, by two probes, among other values; None has diverged."""
    rows = []
    for (activation, method, strength), panels in values.items():
        for panel, traces in panels.items():
            for seed, pair in enumerate(traces):
                place = {"recipe": panel, "panel": panel, "activation": activation, "method": method, "seed": seed}
                place |= {"strength": float(strength), "quantity": "traces"}
                other = {"quantity": "squared_norms", "operator": "H", "at": 1.0, "probe": 0, "value": 1e6}
                rows += [place | {"operator": "H", "at": 0.0, "probe": 0, "value": -1e6}]
                if pair is not None:
                    ends = zip("GNH", (*pair, sum(pair)), strict=True)
                    ends = [(o, probe, v + sign) for o, v in ends for probe, sign in ((0, -1), (1, 1))]
                    rows += [place | {"operator": o, "at": 1.0, "probe": p, "value": v} for o, p, v in ends]
                    rows += [place | other]
    return pd.DataFrame(rows)


TRACE = {"operator": "H", "at": 1.0}


def test_a_trace_is_the_mean_of_its_probes_at_the_end_in_percent_of_all_curvature():
    table = traces_of({PENALTY: {"one": [(30, -50), (10, 30)], "other": [(20, -20), (5, -15)]}})
    found = effects(table, contrast_of([], [PENALTY], trace=TRACE))
    assert found["one"].tolist() == pytest.approx([25, -100])
    assert found["other"].tolist() == pytest.approx([0, 50])
    found = effects(table, contrast_of([PENALTY], [], trace={**TRACE, "operator": "N"}))
    assert found["one"].tolist() == pytest.approx([-62.5, 75])


def test_a_diverged_member_has_no_trace_and_its_seed_is_left_out():
    table = traces_of({PENALTY: {"one": [(10, -30), None, (30, -10)]}})
    claim = {"number": 1, "says": "", "figure": "f", "contrasts": [contrast_of([], [PENALTY], trace=TRACE)]}
    (row,) = decide(spec_of(claim), {"t": table}).to_dict("records")
    assert (row["seeds"], row["effect"]) == (2, pytest.approx(0))
    # Also where it has diverged in one panel only: the panels' mean is of the same seeds.
    other = traces_of({PENALTY: {"other": [(0, -40), (40, 0), (0, -40)]}})
    (row,) = decide(spec_of(claim), {"t": pd.concat([table, other])}).to_dict("records")
    assert (row["seeds"], row["effect"]) == (2, pytest.approx(50))


@pytest.mark.parametrize("kept", [None, (10, -30)], ids=["none", "one"])
def test_without_traces_a_claim_is_inconclusive(kept):
    table = traces_of({SGD: {"one": [(40, 1)] * 3}, PENALTY: {"one": [kept, None, None]}})
    claim = {"number": 1, "says": "", "figure": "f", "contrasts": [contrast_of([], [PENALTY], trace=TRACE)]}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = decide(spec_of(claim), {"t": table}).to_dict("records")
    assert (row["verdict"], row["p"]) == ("inconclusive", 1)


# ----------------------------------------------------------------- verdicts


def spec_of(*claims: dict) -> dict:
    return {"scale": "tiny", "smallest_effect": DELTA, "claims": list(claims), "version": 1}


def claim_of(expect: str, number: int = 1, table: str = "t", contrasts: int = 1) -> dict:
    every = [contrast_of([PENALTY], [SGD], expect, table=table, name=f"no. {i}") for i in range(contrasts)]
    return {"number": number, "says": f"Claim {number}.", "figure": "fig2", "contrasts": every}


def differing(differences: list[float], panel: str = "one") -> pd.DataFrame:
    """A table where the penalty's accuracy differs from plain SGD's by so many points."""
    plain = [60 + 3 * seed for seed in range(len(differences))]
    return table_of({SGD: {panel: plain}, PENALTY: {panel: [p + d for p, d in zip(plain, differences, strict=True)]}})


def verdict_of(differences: list[float], expect: str) -> str:
    (row,) = decide(spec_of(claim_of(expect)), {"t": differing(differences)}).to_dict("records")
    return row["verdict"]


@pytest.mark.parametrize(
    ("differences", "verdicts"),
    [
        # Clearly above δ; clearly below −δ; about 0 without doubt; about 0, but who knows.
        ([4.9, 5.0, 5.1, 5.2], ("supported", "not supported", "supported", "supported")),
        ([-4.9, -5.0, -5.1, -5.2], ("not supported", "not supported", "not supported", "supported")),
        ([-0.1, 0.0, 0.1, 0.05], ("not supported", "supported", "supported", "not supported")),
        ([-9, 8, -6, 7], ("inconclusive", "inconclusive", "inconclusive", "inconclusive")),
        # Above 0 without doubt, and of no interest.
        ([0.48, 0.5, 0.52, 0.5], ("not supported", "supported", "supported", "not supported")),
        # About δ itself: above 0, yet not surely of interest, nor surely not.
        ([0.9, 1.3, 0.8, 1.2], ("supported", "inconclusive", "supported", "supported")),
        # Significantly below 0, which is not yet below −δ.
        ([-0.4, -1.0, -0.2, -1.2], ("not supported", "inconclusive", "inconclusive", "inconclusive")),
    ],
    ids=str,
)
def test_the_three_verdicts_of_every_expectation(differences, verdicts):
    assert tuple(verdict_of(differences, expect) for expect in EXPECTATIONS) == verdicts


def test_pairing_by_seed_decides():
    """Seeds differ by far more than methods do: an unpaired test of the same accuracies sees nothing."""
    plain = [40.0, 55.0, 63.0, 78.0, 90.0]
    better = [value + gain for value, gain in zip(plain, [1.9, 2.1, 2.0, 2.2, 1.8], strict=True)]
    table = table_of({SGD: {"one": plain}, PENALTY: {"one": better}})
    (row,) = decide(spec_of(claim_of("positive")), {"t": table}).to_dict("records")
    assert row["verdict"] == "supported"
    assert row["p"] == pytest.approx(ttest_1samp(np.subtract(better, plain), 0, alternative="greater").pvalue)
    assert ttest_ind(better, plain, alternative="greater").pvalue > 0.4
    # And the pairing is by seed, not by the order of the rows.
    (shuffled,) = decide(spec_of(claim_of("positive")), {"t": table.sample(frac=1, random_state=0)}).to_dict("records")
    assert shuffled == pytest.approx(row)


def test_panels_are_averaged_within_a_seed():
    """Each panel alone decides nothing; what one loses in a seed the other gains."""
    one, other = [12.0, -8.0, 9.0, -5.0], [-8.0, 12.0, -5.0, 9.0]
    table = pd.concat([differing(one, "one"), differing(other, "other")])
    (row,) = decide(spec_of(claim_of("positive")), {"t": table}).to_dict("records")
    assert row["effect"] == pytest.approx(2)
    assert (row["low"], row["high"]) == pytest.approx((2, 2))
    assert row["verdict"] == "supported"
    assert row["by_panel"] == "one: +2.0; other: +2.0"
    assert row["seeds"] == 4
    assert verdict_of(one, "positive") == verdict_of(other, "positive") == "inconclusive"


def test_divergence_decides_a_claim():
    """Leaving the diverged seeds out would support it."""
    table = table_of({SGD: {"one": [60, 61, 62, 63]}, PENALTY: {"one": [65, 66.1, None, None]}})
    (row,) = decide(spec_of(claim_of("positive")), {"t": table}).to_dict("records")
    assert row["effect"] == pytest.approx(np.mean([5, 5.1, 10 - 62, 10 - 63]))
    assert row["verdict"] != "supported"
    assert verdict_of([5, 5.1], "positive") == "supported"


def test_a_claim_needs_all_its_contrasts():
    tables = {"good": differing([4.9, 5.0, 5.1, 5.2]), "unclear": differing([-9, 8, -6, 7])}
    tables["bad"] = differing([-4.9, -5.0, -5.1, -5.2])

    def verdict(*names: str) -> tuple[str, float]:
        claim = claim_of("positive", contrasts=len(names))
        for contrast, name in zip(claim["contrasts"], names, strict=True):
            contrast["table"] = name
        rows = decide(spec_of(claim), tables)
        assert len(set(rows["verdict"])) == len(set(rows["p_holm"])) == 1, "the claim's, in all its rows"
        assert rows["p_holm"].iloc[0] == rows["p"].max()
        return rows["verdict"].iloc[0]

    assert verdict("good", "good") == "supported"
    assert verdict("good", "unclear") == "inconclusive"
    assert verdict("good", "bad") == verdict("bad", "unclear") == "not supported"


def test_both_verdicts_are_corrected_for_the_number_of_claims():
    """Each claim alone would be refuted at 5 %; among twelve that say nothing, it is not."""
    tables = {"t": differing([-0.2, 0.9, -0.6, 0.5])}
    assert verdict_of([-0.2, 0.9, -0.6, 0.5], "positive") == "not supported"
    rows = decide(spec_of(*(claim_of("positive", number=n) for n in range(12))), tables)
    assert (rows["p_against"] < 0.05).all()
    assert set(rows["verdict"]) == {"inconclusive"}


def test_verdicts_are_corrected_for_the_number_of_claims():
    """p = 0.03 alone supports a claim; among three such claims none is."""
    values = [2.0 + e for e in (-1.5, 1.5, -0.5, 0.5)]
    p = ttest_1samp(values, 0, alternative="greater").pvalue
    assert 0.05 / 3 < p < 0.05
    assert verdict_of(values, "positive") == "supported"
    rows = decide(spec_of(*(claim_of("positive", number=i) for i in (1, 2, 3))), {"t": differing(values)})
    assert set(rows["verdict"]) == {"inconclusive"}
    assert rows["p_holm"].tolist() == pytest.approx([3 * p] * 3)
    assert rows["p"].tolist() == pytest.approx([p] * 3)


def test_one_seed_is_inconclusive():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = decide(spec_of(claim_of("positive"), claim_of("similar", 2)), {"t": differing([5.0])})
    assert rows["verdict"].tolist() == ["inconclusive"] * 2
    assert rows["effect"].tolist() == pytest.approx([5] * 2)
    assert rows[["low", "high"]].isna().all(axis=None)


# ------------------------------------------------------------------ writing


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """The files of three claims, one of two contrasts, and the rows that they are made of."""
    monkeypatch.chdir(tmp_path)
    tables = {"t.parquet": differing([4.9, 5.0, 5.1, 5.2]), "u.parquet": differing([-9, 8, -6, 7])}
    for path, table in tables.items():
        parquet.write(pa.Table.from_pandas(table, preserve_index=False), tmp_path / path, {})
    claims = [
        claim_of("positive", 1, "t.parquet"),
        claim_of("similar", 7, "t.parquet", contrasts=2),
        claim_of("positive", 9, "u.parquet"),
    ]
    spec = spec_of(*claims)
    write_claims(spec, tmp_path / "out" / "claims.parquet")
    return tmp_path / "out", decide(spec, tables), spec


def test_three_files_are_written(outputs):
    folder, rows, spec = outputs
    assert {path.name for path in folder.iterdir()} == {"claims.parquet", "claims.md", "claims.html"}
    table, record = parquet.read(folder / "claims.parquet")
    pd.testing.assert_frame_equal(table.to_pandas(), rows)
    assert record["spec"] == json.loads(json.dumps(spec))


def test_the_markdown_has_a_row_a_claim(outputs):
    folder, rows, _ = outputs
    text = (folder / "claims.md").read_text()
    lines = [line for line in text.splitlines() if line.startswith("|")]
    columns = lines[0].count("|")
    assert all(line.count("|") == columns for line in lines), "a table"
    assert set(lines[1]) <= {"|", "-", " "}
    body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[0] for row in body] == ["1", "7", "9"]
    assert [row[-1] for row in body] == ["supported", "not supported", "inconclusive"]
    assert [row[1] for row in body] == ["Claim 1.", "Claim 7.", "Claim 9."]
    assert body[1][3].count("<br>") == 1, "its two contrasts"
    first = rows.iloc[0]
    assert f"{first['effect']:+.1f} [{first['low']:+.1f}, {first['high']:+.1f}]" in body[0][3]
    for part in ("Scale tiny", "4 paired seeds", "1 supported", "1 not supported", "1 inconclusive", "1 points"):
        assert part in text


def test_the_page_says_the_same(outputs):
    folder, *_ = outputs
    page = (folder / "claims.html").read_text()
    for part in ("Claim 1.", "Claim 7.", "Claim 9.", "not supported", "inconclusive", "Scale tiny"):
        assert part in page
    assert page.count("<tr") == 1 + 3
    assert not re.search(r"<(script|link|img)", page), "one file"


def test_a_missing_table_is_one_message_and_nothing_is_written(tmp_path):
    with pytest.raises(NmeError, match=r"no/table\.parquet: missing"):
        write_claims(spec_of(claim_of("positive", table="no/table.parquet")), tmp_path / "claims.parquet")
    assert list(tmp_path.iterdir()) == []


def test_written_claims_of_one_seed_have_no_crash(tmp_path):
    table = differing([5.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = written(decide(spec_of(claim_of("positive")), {"t": table}))
    assert found["verdict"].tolist() == ["inconclusive"]
