"""The map: effects and shares from small tables, against loops over their rows."""

import math
from statistics import fmean, stdev

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from claims_examples import contrast_of, table_of
from scipy.stats import spearmanr, t

from nme.claims.effects_map import dependence, effects_and_shares, shares_of
from nme.errors import NmeError
from nme.grid.specs import ContrastSpec, MapSpec
from nme.outputs import parquet
from nme.stages.map import write_map

SEEDS = range(4)
RECIPES = ("a", "b", "c", "d", "e")
GELU, WEAK, STRONG = ("gelu", "sgd", "0"), ("gelu", "grad_norm", "0.03"), ("gelu", "grad_norm", "0.1")
RELU = ("relu", "sgd", "0")
MEAN = contrast_of([[WEAK, STRONG]], [GELU], figure="fig2")
TREND = contrast_of([[GELU, WEAK, STRONG]], [], over="trend", figure="fig4")


def accuracies(lost=lambda cell, recipe, seed: False) -> pd.DataFrame:
    """Random accuracies in percent, of four cells on each recipe."""
    random = np.random.default_rng(1)
    found = {}
    for cell in (GELU, WEAK, STRONG, RELU):
        values = {recipe: random.uniform(40, 90, len(SEEDS)).tolist() for recipe in RECIPES}
        found[cell] = {r: [None if lost(cell, r, i) else v for i, v in enumerate(own)] for r, own in values.items()}
    return table_of(found)


def shares(missing=lambda recipe, seed, at, batch: False) -> pd.DataFrame:
    """Shares of N_phi on three batches at three times, with their mean; among other rows, whose values are 1000."""
    random = np.random.default_rng(2)
    rows = []
    for recipe in RECIPES:
        for seed in SEEDS:
            place = {"recipe": recipe, "activation": "gelu", "method": "sgd", "strength": 0.0, "seed": seed, "at": 0.5}
            own = {"quantity": "update_shares", "statistic": "share", "operator": "N_phi", "probe": 0, "value": 1000.0}
            others = [
                {"activation": "relu"},
                {"operator": "N"},
                {"statistic": "cosine"},
                {"quantity": "traces"},
                {"method": "sam", "strength": 0.1},
                {"at": 0.0},
                {"probe": -1},  # the mean over the batches, which are taken themselves
            ]
            rows += [place | own | other for other in others]
            for at in (0.5, 0.75, 1.0):
                for batch in range(3):
                    value = None if missing(recipe, seed, at, batch) else random.uniform(0.1, 0.6)
                    rows.append(place | own | {"at": at, "probe": batch, "value": value})
    return pd.DataFrame(rows)


def spec_of(*contrasts: ContrastSpec, recipes=RECIPES) -> MapSpec:
    titles = {r: {"title": f"Title {r}", "network": "cnn", "label_noise": 0.3 * (r > "c")} for r in RECIPES}
    claims = [
        {"number": 2 + i, "says": f"Claim {i}.", "contrasts": [c], "recipes": [*recipes]}
        for i, c in enumerate(contrasts)
    ]
    share = {"figure": "mechanism", "activation": "gelu"}
    return MapSpec(scale="tiny", smallest_effect=1.0, claims=claims, shares=share, recipes=titles, version=1)


def estimate(values: list[float]) -> tuple[float, float, float]:
    """Mean and 95 % interval, by hand."""
    mean = fmean(values)
    half = t.ppf(0.975, len(values) - 1) * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def by_hand(table: pd.DataFrame, recipe: str, weights: dict) -> list[float]:
    """The effect of each seed without a diverged member."""
    found = []
    for seed in SEEDS:
        total = 0.0
        for (activation, method, strength), weight in weights.items():
            for row in table.to_dict("records"):
                place = (row["recipe"], row["activation"], row["method"], row["strength"], row["seed"])
                if place == (recipe, activation, method, float(strength), seed):
                    total += weight * (math.nan if row["diverged"] else 100 * row["test_accuracy"])
        found += [] if math.isnan(total) else [total]
    return found


def share_by_hand(table: pd.DataFrame, recipe: str) -> list[float]:
    found = []
    for seed in SEEDS:
        times = []
        for at in (0.5, 0.75, 1.0):
            batches = [
                row["value"]
                for row in table.to_dict("records")
                if (row["recipe"], row["seed"], row["at"], row["operator"]) == (recipe, seed, at, "N_phi")
                and (row["activation"], row["statistic"], row["method"]) == ("gelu", "share", "sgd")
                and row["quantity"] == "update_shares"
                and row["probe"] >= 0
                and row["value"] < 1000
            ]
            times += [fmean(batches)] if batches else []
        found += [fmean(times)] if times else []
    return found


def lost(cell, recipe, seed):
    return (cell, recipe) == (STRONG, "b") and seed < 2


def missing(recipe, seed, at, batch):
    """A batch of one snapshot, a whole snapshot, a whole seed."""
    place = (recipe, seed, at)
    return (*place, batch) == ("a", 0, 0.5, 1) or place == ("b", 1, 1.0) or place[:2] == ("c", 3)


@pytest.mark.parametrize(
    ("contrast", "weights"),
    [(MEAN, {WEAK: 0.5, STRONG: 0.5, GELU: -1}), (TREND, {GELU: -1, STRONG: 1})],
    ids=["mean", "trend"],
)
def test_effects_and_shares_are_those_of_loops_over_the_rows(contrast, weights):
    table, measured = accuracies(lost), shares(missing)
    rows = effects_and_shares(spec_of(contrast), {contrast.figure: table, "mechanism": measured})
    assert rows["recipe"].tolist() == [*RECIPES]
    for row in rows.itertuples():
        own, share = by_hand(table, row.recipe, weights), share_by_hand(measured, row.recipe)
        assert (row.effect, row.low, row.high) == pytest.approx(estimate(own))
        assert (row.share, row.share_low, row.share_high) == pytest.approx(estimate(share))
        assert (row.pairs, row.seeds, row.share_seeds) == (len(own), len(SEEDS), len(share))
        assert (row.diverged_plus, row.diverged_minus) == ((2, 0) if row.recipe == "b" else (0, 0))
    assert rows["pairs"].tolist() == [4, 2, 4, 4, 4]
    assert rows["share_seeds"].tolist() == [4, 4, 3, 4, 4]
    assert rows["setting"].tolist() == [1, 2, 3, 4, 5]
    assert rows["panel"].tolist() == [f"Title {r}" for r in RECIPES]
    assert rows["label_noise"].tolist() == [0, 0, 0, 0.3, 0.3]
    assert set(rows["correlation"]) == {spearmanr(rows["share"], rows["effect"]).statistic}
    assert set(rows["settings"]) == {5}
    r, low, high = rows[["correlation", "correlation_low", "correlation_high"]].iloc[0]
    assert set(rows["dependence"]) == {dependence(r, low, high, 5)}


def test_a_mean_over_strengths_is_not_the_best_of_them():
    table = accuracies()
    tables = {"fig2": table, "mechanism": shares()}
    mean = effects_and_shares(spec_of(MEAN), tables)["effect"].to_numpy()
    single = [
        effects_and_shares(spec_of(contrast_of([cell], [GELU], figure="fig2")), tables)["effect"].to_numpy()
        for cell in (WEAK, STRONG)
    ]
    np.testing.assert_allclose(mean, np.mean(single, axis=0))
    assert (mean < np.max(single, axis=0)).all()


def test_a_recipe_whose_members_all_diverged_is_no_pair_of_the_correlation():
    tables = {"fig2": accuracies(lambda cell, recipe, seed: cell == STRONG and recipe == "b"), "mechanism": shares()}
    rows = effects_and_shares(spec_of(MEAN), tables).set_index("recipe")
    assert rows.loc["b", ["effect", "low", "high"]].isna().all()
    assert rows.loc["b", ["diverged_plus", "diverged_minus", "pairs"]].tolist() == [4, 0, 0]
    left = rows.drop("b")
    assert set(rows["settings"]) == {4}
    assert rows["correlation"].iloc[0] == pytest.approx(spearmanr(left["share"], left["effect"]).statistic)


def test_fewer_than_four_settings_have_no_correlation():
    tables = {"fig2": accuracies(), "mechanism": shares()}
    rows = effects_and_shares(spec_of(MEAN, recipes=("b", "d", "e")), tables)
    assert rows["recipe"].tolist() == ["b", "d", "e"]
    assert rows["setting"].tolist() == [2, 4, 5], "a setting keeps its number"
    assert rows[["correlation", "correlation_low", "correlation_high"]].isna().all(axis=None)
    assert set(rows["dependence"]) == {"rank correlation with the share: not defined for 3 settings"}


def test_every_contrast_has_its_own_correlation():
    rows = effects_and_shares(
        spec_of(MEAN, TREND), {"fig2": accuracies(), "fig4": accuracies(lost), "mechanism": shares()}
    )
    assert rows["claim"].tolist() == [2] * 5 + [3] * 5
    assert rows["over"].tolist() == ["mean"] * 5 + ["trend"] * 5
    assert rows["cells"].tolist() == [2] * 5 + [3] * 5
    for _, own in rows.groupby("claim"):
        assert own["correlation"].iloc[0] == pytest.approx(spearmanr(own["share"], own["effect"]).statistic)


def test_shares_without_a_value_are_none():
    found = shares_of(shares(lambda recipe, *place: recipe == "d"), "gelu")
    assert found.loc["d", ["share", "share_low", "share_high"]].isna().all()
    assert found["share_seeds"].tolist() == [4, 4, 4, 0, 4]


@pytest.mark.parametrize(
    ("numbers", "said"),
    [
        ((0.5, 0.1, 0.8, 14), "+0.50 [+0.10, +0.80], 14 settings: rises"),
        ((-0.5, -0.8, -0.1, 14), "−0.50 [−0.80, −0.10], 14 settings: falls"),
        ((0.2, -0.3, 0.6, 4), "+0.20 [−0.30, +0.60], 4 settings: unclear"),
        ((-1, math.nan, math.nan, 5), "−1.00 (no interval), 5 settings"),
        ((math.nan, math.nan, math.nan, 1), "not defined for 1 setting"),
    ],
)
def test_the_sentence_says_how_the_effect_depends_on_the_share(numbers, said):
    assert dependence(*numbers).endswith(said)
    assert "\n" not in dependence(*numbers)


def test_tables_that_lack_something_are_one_message():
    table = accuracies()
    for tables, part in [
        (
            {"fig4": table, "mechanism": shares()},
            "the table of fig2 is needed and was not given (given: fig4, mechanism)",
        ),
        ({"fig2": table}, "the table of mechanism is needed"),
        ({"fig2": table[table["recipe"] != "c"], "mechanism": shares()}, "have no recipe c. Make the tables again"),
        ({"fig2": table, "mechanism": shares().query("recipe != 'd'")}, "have no recipe d. Make the tables again"),
        ({"fig2": table[table["strength"] != 0.1], "mechanism": shares()}, "no value of a/gelu/grad_norm/0.1"),
    ]:
        with pytest.raises(NmeError) as caught:
            effects_and_shares(spec_of(MEAN), tables)
        assert part in str(caught.value)


def test_it_is_written_with_its_settings(tmp_path):
    tables = {"fig2": accuracies(), "mechanism": shares()}
    for name, table in tables.items():
        parquet.write(pa.Table.from_pandas(table, preserve_index=False), tmp_path / f"{name}.parquet", {})
    write_map(spec_of(MEAN), [tmp_path / f"{name}.parquet" for name in tables], tmp_path / "out/map.parquet")
    found, record = parquet.read(tmp_path / "out/map.parquet")
    pd.testing.assert_frame_equal(found.to_pandas(), effects_and_shares(spec_of(MEAN), tables), check_dtype=False)
    assert record["spec"]["claims"][0]["number"] == 2
    with pytest.raises(NmeError, match=r"fig4\.parquet: missing"):
        write_map(spec_of(MEAN), [tmp_path / "fig4.parquet"], tmp_path / "none/map.parquet")
    assert not (tmp_path / "none").exists()
