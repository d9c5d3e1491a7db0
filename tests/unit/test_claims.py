"""Claims: verdicts per recipe by the stated rule, corrected together, and the table as it is written."""

import html
import re
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from claims_examples import PENALTY, SGD, STRONG, claim_of, contrast_of, differing, spec_of, table_of, traces_of
from scipy.stats import ttest_1samp, ttest_ind

from nme.claims.report import overall, readers_table, signed
from nme.claims.verdicts import decide
from nme.errors import NmeError
from nme.outputs import parquet
from nme.stages.claims import write_claims

EXPECTATIONS = ("positive", "similar", "not negative", "different")
GOOD, BAD, UNCLEAR = [4.9, 5.0, 5.1, 5.2], [-4.9, -5.0, -5.1, -5.2], [-9, 8, -6, 7]


def simple(expect: str = "positive", number: int = 1, recipes=("one",), **more) -> dict:
    """A claim about the penalty against plain SGD."""
    return claim_of(contrast_of([PENALTY], [SGD], expect, **more), number=number, recipes=recipes)


def verdict_of(differences: list[float], expect: str) -> str:
    (row,) = decide(spec_of(simple(expect)), {"t": differing(one=differences)}).to_dict("records")
    return row["verdict"]


# ----------------------------------------------------------------- verdicts


@pytest.mark.parametrize(
    ("differences", "verdicts"),
    [
        # Clearly above δ; clearly below −δ; about 0 without doubt; about 0, but who knows.
        (GOOD, ("supported", "not supported", "supported", "supported")),
        (BAD, ("not supported", "not supported", "not supported", "supported")),
        ([-0.1, 0.0, 0.1, 0.05], ("not supported", "supported", "supported", "not supported")),
        (UNCLEAR, ("inconclusive", "inconclusive", "inconclusive", "inconclusive")),
        # Above 0 without doubt, and of no interest.
        ([0.48, 0.5, 0.52, 0.5], ("not supported", "supported", "supported", "not supported")),
        # About δ itself: above 0, yet not surely of interest, nor surely not.
        ([0.9, 1.3, 0.8, 1.2], ("supported", "inconclusive", "supported", "supported")),
        # Significantly below 0, which is not yet below −δ.
        ([-0.4, -1.0, -0.2, -1.2], ("not supported", "inconclusive", "inconclusive", "inconclusive")),
        # Without any spread nothing is known.
        ([5.0, 5.0, 5.0, 5.0], ("inconclusive",) * 4),
        ([0.0, 0.0, 0.0, 0.0], ("inconclusive",) * 4),
    ],
    ids=str,
)
def test_the_three_verdicts_of_every_expectation(differences, verdicts):
    assert tuple(verdict_of(differences, expect) for expect in EXPECTATIONS) == verdicts


def test_pairing_by_seed_decides():
    """Seeds differ by far more than methods do: an unpaired test of the same accuracies sees nothing."""
    plain = [40.0, 55.0, 63.0, 78.0, 90.0]
    better = [value + gain for value, gain in zip(plain, [1.9, 2.1, 2.0, 2.2, 1.8], strict=True)]
    (row,) = decide(spec_of(simple()), {"t": table_of({SGD: {"one": plain}, PENALTY: {"one": better}})}).to_dict(
        "records"
    )
    assert row["verdict"] == "supported"
    assert ttest_ind(better, plain, alternative="greater").pvalue > 0.4


@pytest.mark.parametrize("expect", EXPECTATIONS)
def test_opposite_effects_do_not_cancel(expect):
    """+5 points on one recipe and −5 on the other is no similarity: each has the verdict that it has alone."""
    rows = decide(spec_of(simple(expect, recipes=("one", "other"))), {"t": differing(one=GOOD, other=BAD)})
    assert rows["recipe"].tolist() == ["one", "other"]
    assert rows["effect"].tolist() == pytest.approx([5.05, -5.05])
    assert rows["verdict"].tolist() == [verdict_of(GOOD, expect), verdict_of(BAD, expect)]


def test_a_saturated_recipe_does_not_halve_an_effect():
    rows = decide(spec_of(simple(recipes=("one", "other"))), {"t": differing(one=GOOD, other=[0, 0, 0, 0])})
    assert rows["effect"].tolist() == pytest.approx([5.05, 0])
    assert overall(rows) == "supported on Panel one; inconclusive on Panel other"


def test_each_recipe_counts_in_the_correction():
    """p = 0.03 alone supports a claim; with two recipes, or three claims, it supports none."""
    values = [2.0 + e for e in (-1.5, 1.5, -0.5, 0.5)]
    p = ttest_1samp(values, 0, alternative="greater").pvalue
    assert 0.05 / 2 < p < 0.05
    assert verdict_of(values, "positive") == "supported"
    rows = decide(spec_of(simple(recipes=("one", "other"))), {"t": differing(one=values, other=values)})
    assert rows["p_holm"].tolist() == pytest.approx([2 * p] * 2)
    assert rows["p"].tolist() == pytest.approx([p] * 2)
    assert set(rows["verdict"]) == {"inconclusive"}
    rows = decide(spec_of(*(simple(number=i) for i in (1, 2, 3))), {"t": differing(one=values)})
    assert rows["p_holm"].tolist() == pytest.approx([3 * p] * 3)
    assert set(rows["verdict"]) == {"inconclusive"}


def test_verdicts_against_are_corrected_too():
    values = [-0.2, 0.9, -0.6, 0.5]
    assert verdict_of(values, "positive") == "not supported"
    rows = decide(spec_of(*(simple(number=n) for n in range(1, 13))), {"t": differing(one=values)})
    assert (rows["p_against"] < 0.05).all()
    assert set(rows["verdict"]) == {"inconclusive"}


def test_a_claim_needs_all_its_contrasts():
    tables = {"good": differing(one=GOOD), "unclear": differing(one=UNCLEAR), "bad": differing(one=BAD)}

    def verdict(*names: str) -> str:
        claim = claim_of(*(contrast_of([PENALTY], [SGD], figure=name) for name in names))
        rows = decide(spec_of(claim), tables)
        assert len(set(rows["verdict"])) == len(set(rows["p_holm"])) == 1, "the claim's, in all its rows"
        assert rows["p_holm"].iloc[0] == rows["p"].max()
        return rows["verdict"].iloc[0]

    assert verdict("good", "good") == "supported"
    assert verdict("good", "unclear") == "inconclusive"
    assert verdict("good", "bad") == verdict("bad", "unclear") == "not supported"


def test_similar_is_needed_at_each_strength_and_not_for_their_mean():
    plain = [60.0, 63.0, 66.0, 69.0]
    up, down = ([p + d for p, d in zip(plain, own, strict=True)] for own in (GOOD, BAD))
    table = table_of({SGD: {"one": plain}, PENALTY: {"one": up}, STRONG: {"one": down}})
    claim = claim_of(contrast_of([[PENALTY, STRONG]], [SGD], "similar"))
    (row,) = decide(spec_of(claim), {"t": table}).to_dict("records")
    assert row["verdict"] == "not supported"
    claim = claim_of(contrast_of([[PENALTY, STRONG]], [SGD], "different"))
    assert decide(spec_of(claim), {"t": table})["verdict"].tolist() == ["supported"]


def test_one_strength_is_enough_for_any_and_its_mean_is_not():
    plain = [60.0, 63.0, 66.0, 69.0]
    up, down = ([p + d for p, d in zip(plain, own, strict=True)] for own in (GOOD, BAD[::-1]))
    table = table_of({SGD: {"one": plain}, PENALTY: {"one": up}, STRONG: {"one": down}})
    of = {over: claim_of(contrast_of([[PENALTY, STRONG]], [SGD], over=over)) for over in ("any", "each", "mean")}
    found = {over: decide(spec_of(claim), {"t": table})["verdict"].item() for over, claim in of.items()}
    assert found == {"any": "supported", "each": "not supported", "mean": "not supported"}


def test_divergence_is_an_outcome_of_its_own():
    """The seeds that are left would support the claim; more of the penalty's diverged, so they do not."""
    (row,) = decide(spec_of(simple()), {"t": differing(one=[5, 5.1, None, None])}).to_dict("records")
    assert verdict_of([5, 5.1], "positive") == "supported"
    assert row["verdict"] == "inconclusive"
    assert row["effect"] == pytest.approx(5.05), "no accuracy of guessing is mixed in"
    assert (row["diverged_plus"], row["diverged_minus"], row["pairs"], row["seeds"]) == (2, 0, 2, 4)
    (row,) = decide(spec_of(simple()), {"t": differing(one=[5, 5.1, *[None] * 6])}).to_dict("records")
    assert row["verdict"] == "not supported"
    opposite = claim_of(contrast_of([SGD], [PENALTY]))
    assert decide(spec_of(opposite), {"t": differing(one=[None] * 5)})["verdict"].tolist() == ["supported"]


def test_a_claim_is_decided_on_the_recipes_it_has():
    table = differing(one=GOOD, other=BAD)
    rows = decide(spec_of(simple(recipes=("one",))), {"t": table})
    assert rows["recipe"].tolist() == ["one"]
    with pytest.raises(NmeError, match=r"the table of t has no recipe third\. Make the table again"):
        decide(spec_of(simple(recipes=("third",))), {"t": table})


def test_one_seed_is_inconclusive():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rows = decide(spec_of(simple(), simple("similar", 2)), {"t": differing(one=[5.0])})
        assert readers_table(rows)["verdict"].tolist() == ["inconclusive"] * 2
    assert rows["effect"].tolist() == pytest.approx([5] * 2)
    assert rows[["low", "high", "low_simultaneous", "high_simultaneous"]].isna().all(axis=None)


# ------------------------------------------------------------------ overall


def test_the_verdict_over_recipes():
    def of(*verdicts: str, panels: tuple[str, ...] = ("A", "B", "C")) -> str:
        rows = [{"recipe": f"r{i}", "panel": p, "verdict": v} for i, (p, v) in enumerate(zip(panels, verdicts))]  # noqa: B905
        return overall(pd.DataFrame(rows * 2))

    assert of("supported", "supported") == "supported"
    assert of("inconclusive", "inconclusive") == "inconclusive"
    assert of("inconclusive", "supported") == "supported on B; inconclusive on A"
    assert of("not supported", "supported", "not supported") == "supported on B; not supported on A and C"
    assert of("supported", "inconclusive", panels=("A", "A")) == "supported on r0; inconclusive on r1"


# ------------------------------------------------------------------ writing


@pytest.fixture
def outputs(tmp_path, monkeypatch):
    """The files of four claims, and the rows that they are made of."""
    monkeypatch.chdir(tmp_path)
    tables = {
        "t": differing(one=GOOD, other=BAD),
        "u": differing(one=[-9, 8, -6, None], other=UNCLEAR),
        "v": traces_of({PENALTY: {"one": [(10, -30), (12, -33), (9, -31)]}}),
    }
    for figure, table in tables.items():
        parquet.write(pa.Table.from_pandas(table, preserve_index=False), tmp_path / f"{figure}.parquet", {})
    both, trace = ("one", "other"), {"operator": "H", "at": 1.0}
    similar = contrast_of([PENALTY], [SGD], "similar", figure="t")
    claims = [
        simple("positive", 1, both, figure="t"),
        claim_of(similar, similar, number=7, recipes=both),
        simple("positive", 9, both, figure="u"),
        claim_of(contrast_of([], [PENALTY], figure="v", trace=trace), number=10),
    ]
    spec = spec_of(*claims)
    write_claims(spec, [tmp_path / f"{f}.parquet" for f in tables], tmp_path / "out" / "claims.parquet")
    return tmp_path / "out", decide(spec, tables), spec


COLUMNS = """claim says figure contrast expect over recipe panel cell unit effect low high low_simultaneous
high_simultaneous effect_logit p p_against diverged_plus diverged_minus pairs seeds p_holm p_against_holm verdict"""


def test_three_files_are_written(outputs):
    folder, rows, spec = outputs
    assert {path.name for path in folder.iterdir()} == {"claims.parquet", "claims.md", "claims.html"}
    table, record = parquet.read(folder / "claims.parquet")
    pd.testing.assert_frame_equal(table.to_pandas(), rows)
    assert rows.columns.tolist() == COLUMNS.split()
    assert record["spec"] == spec.as_json()


def test_the_markdown_has_a_row_per_claim_and_a_line_per_recipe(outputs):
    folder, rows, _ = outputs
    text = (folder / "claims.md").read_text()
    lines = [line for line in text.split("## Effects")[1].splitlines() if line.startswith("|")]
    columns = lines[0].count("|")
    assert all(line.count("|") == columns for line in lines), "a table"
    assert set(lines[1]) <= {"|", "-", " "}
    body = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]
    assert [row[0] for row in body] == ["1", "7", "9", "10"]
    assert [row[1] for row in body] == ["Claim 1.", "Claim 7.", "Claim 9.", "Claim 10."]
    first = "supported on Panel one; not supported on Panel other"
    assert [row[-1] for row in body] == [first, "not supported", "inconclusive", "supported"]
    assert [row[3].count("<br>") for row in body] == [2, 5, 2, 1], "a line per contrast and recipe"
    r = rows.iloc[0]
    shown = f"– Panel one: {r.effect:+.1f} points [{r.low:+.1f}, {r.high:+.1f}] {{{r.low_simultaneous:+.1f}, "
    assert shown in body[0][3]
    assert f"logit {r.effect_logit:+.2f}" in body[0][3]
    assert "diverged 1 against 0 of 4 seeds" in body[2][3]
    assert "diverged" not in body[0][3]
    assert re.search(r"Panel one: \+\d+\.\d % \[", body[3][3]), "a trace is in percent"
    assert "logit" not in body[3][3]
    for part in ("Scale tiny", "2 supported", "3 not supported", "2 inconclusive", "1 points", "5 %"):
        assert part in text
    assert "paired seeds: 4 for claim 1, 7, 9; 3 for claim 10. A verdict" in text
    for part in ("corrects for 7 verdicts", "together 10 %", "chosen beforehand", "one test set"):
        assert part in text


def test_a_summary_comes_first(outputs):
    folder, rows, _ = outputs
    summary = (folder / "claims.md").read_text().split("## Effects")[0]
    body = [line.strip("|").split(" | ") for line in summary.splitlines() if line.startswith("| ")]
    assert [cell.strip() for cell in body[0]] == ["claim", "Panel one", "Panel other"]
    names = {claim: own["contrast"].unique() for claim, own in rows.groupby("claim")}
    for line, claim in zip(body[2:], (1, 7, 9, 10), strict=True):
        below = f"<br>{html.escape(names[claim][0])}" if len(names[claim]) == 1 else ""
        assert line[0].strip() == f"{claim}. Claim {claim}.{below}"
    r = rows.iloc[0]
    assert body[2][1] == f"<b>supported</b><br>{signed(r.effect)} [{signed(r.low)}, {signed(r.high)}]"
    assert body[2][2].startswith("<b>not supported</b><br>")
    two = rows[(rows["claim"] == 7) & (rows["panel"] == "Panel one")]
    assert [f"{name}: " in body[3][1] for name in two["contrast"]] == [True, True], "two contrasts, named"
    assert body[5][2].strip() == "–", "a claim that was not tried on a recipe"


def test_signs_of_numbers():
    assert [signed(v) for v in (0.25, -0.25, -0.04, 12)] == ["+0.2", "−0.2", "0.0", "+12.0"]
    assert signed(-0.236, 2) == "−0.24"


def test_the_page_says_the_same(outputs):
    folder, *_ = outputs
    page = (folder / "claims.html").read_text()
    for part in ("Claim 1.", "Claim 7.", "Claim 9.", "not supported on Panel other", "inconclusive", "Scale tiny"):
        assert part in page
    assert page.count("<tr") == 2 * (1 + 4)
    assert not re.search(r"<(script|link|img)", page), "one file"


def test_titles_are_text_and_not_markup():
    table = differing(one=GOOD).assign(panel="A & <b>B</b>")
    found = readers_table(decide(spec_of(simple()), {"t": table})).iloc[0]
    assert "A &amp; &lt;b&gt;B&lt;/b&gt;: " in found.iloc[3]


def test_a_missing_table_is_one_message_and_nothing_is_written(tmp_path):
    with pytest.raises(NmeError, match=r"no/table\.parquet: missing"):
        write_claims(spec_of(simple()), [Path("no/table.parquet")], tmp_path / "claims.parquet")
    assert list(tmp_path.iterdir()) == []


def test_no_effect_has_no_numbers():
    rows = decide(spec_of(simple("similar")), {"t": differing(one=[None, None])})
    assert np.isnan(rows["effect"].item())
    assert "nan" not in readers_table(rows).iloc[0, 3]
