"""Tables: the final epoch of every member, diverged or not; and statistics over seeds."""

import json
import warnings

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t

from nme.config.scale import Measurement
from nme.errors import NmeError
from nme.figures.curves import over_seeds
from nme.grid.cells import Cell, jobs_of_seeds
from nme.grid.paths import measured_path, metrics_path
from nme.grid.specs import STAGE_VERSION, TableSpec
from nme.outputs import parquet
from nme.stages.tables import collect, write_table
from nme.stages.train import COLUMNS

MEASURED = ["train_loss", "train_accuracy", "gradient_norm", "test_loss", "test_accuracy"]
CELLS = ["r/relu/sgd/0", "r/relu/grad_norm/0.1", "s/gelu/grad_norm-p=2/10"]
TRAINING = {
    "dataset": "digits",
    "model": {"name": "mlp", "widths": [8]},
    "epochs": 3,
    "batch_size": 10,
    "learning_rate": 0.1,
}
SPEC = TableSpec(
    scale="tiny",
    seeds=3,
    recipes={
        "r": {"title": "R, a net", "seeds_per_job": 2, "chance": 0.1, "training": TRAINING},
        "s": {"title": "s", "seeds_per_job": 1, "chance": 0.5, "training": {**TRAINING, "epochs": 4}},
    },
    cells=CELLS,
    measurement=None,
    version=1,
)


def record_of(spec: TableSpec, cell: str, seeds: range) -> dict:
    """What a job says about itself."""
    found = Cell.from_path(cell)
    recipe = spec.recipes[cell.split("/")[0]].training.model_dump(mode="json")
    version = STAGE_VERSION["measure" if spec.measurement else "train"]
    settings = {"recipe": recipe, "activation": found.activation, "seeds": list(seeds), "version": version}
    if not spec.measurement:
        settings |= {"method": found.method, "strength": found.strength}
    else:
        settings |= spec.measurement.model_dump(exclude={"update_batches"}, exclude_none=True)
    data = {"train": {"sha256": "a"}, "test": {"sha256": "b"}}
    return {"seconds": 1.5, "nme": "0.1.0", "torch": "2", "device": "cpu", "spec": settings, "data": data}


def history(seed: int, epochs: int, diverged_at: int | None = None) -> list[dict]:
    """A member's rows; it stops where it diverges. Values tell seed and epoch."""
    rows = []
    for epoch in range(1, epochs + 1):
        diverged = epoch == diverged_at
        values = {key: None if diverged else (100 * seed + epoch) / 1000 for key in MEASURED}
        rows.append(
            {
                "seed": seed,
                "epoch": epoch,
                "learning_rate": 0.1,
                **values,
                "diverged": diverged,
                "seconds": 1.0,
            }
        )
        if diverged:
            break
    return rows


def write_results(root, spec=SPEC, diverged=(), reverse=False) -> None:
    """Metrics of all cells; ``diverged`` are pairs of a cell and a seed, at the second of three epochs."""
    for cell in spec.cells:
        per_job = spec.recipes[cell.split("/")[0]].seeds_per_job
        for seeds in jobs_of_seeds(spec.seeds, per_job):
            rows = [row for s in seeds for row in history(s, 3, 2 if (cell, s) in diverged else None)]
            table = pa.Table.from_pylist(rows[::-1] if reverse else rows, schema=COLUMNS)
            parquet.write(
                table, root / metrics_path(spec.scale, Cell.from_path(cell), seeds), record_of(spec, cell, seeds)
            )


@pytest.mark.parametrize("reverse", [False, True], ids=["in order", "in another order"])
def test_one_row_a_member_with_its_final_epoch(tmp_path, reverse):
    write_results(tmp_path, reverse=reverse)
    table, summary = collect(SPEC, tmp_path)
    assert len(table) == summary["members"] == 9
    for cell in map(Cell.from_path, CELLS):
        chosen = (table["recipe"] == cell.recipe) & (table["method"] == cell.method)
        rows = table[chosen & (table["strength"] == float(cell.strength))]
        assert sorted(rows["seed"]) == [0, 1, 2]
        assert set(rows["activation"]) == {cell.activation}
        assert set(rows["panel"]) == {SPEC.recipes[cell.recipe].title}
        assert set(rows["chance"]) == {SPEC.recipes[cell.recipe].chance}
        assert set(rows["epoch"]) == {3}
        np.testing.assert_allclose(rows["test_accuracy"], (100 * rows["seed"] + 3) / 1000)


def test_the_summary_adds_up_the_trainings(tmp_path):
    write_results(tmp_path)
    _, summary = collect(SPEC, tmp_path)
    assert summary["seconds_of_jobs"] == 7 * 1.5  # two cells of two jobs, one of three
    assert summary["made_with"] == {"nme 0.1.0, torch 2, cpu": 7}


def test_diverged_members_have_no_metrics(tmp_path):
    """Not those of the last epoch that was finite: that would count a failure as a result."""
    diverged = {(CELLS[1], 0), (CELLS[1], 2), *((CELLS[2], s) for s in range(3))}
    write_results(tmp_path, diverged=diverged)
    table, _ = collect(SPEC, tmp_path)
    assert len(table) == 9
    assert set(zip(table["method"], table["seed"], strict=True)) >= {("grad_norm", 0), ("grad_norm-p=2", 1)}
    for _, row in table.iterrows():
        path = f"{row['recipe']}/{row['activation']}/{row['method']}/{row['strength']:g}"
        expected = (path, row["seed"]) in diverged
        assert row["diverged"] == expected
        assert row[MEASURED].isna().tolist() == [expected] * 5
        assert row["epoch"] == (2 if expected else 3)


def test_the_table_comes_back_from_its_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_results(tmp_path, diverged={(CELLS[0], 1)})
    write_table(SPEC, tmp_path / "out" / "fig.parquet")
    table, record = parquet.read(tmp_path / "out" / "fig.parquet")
    assert table["test_accuracy"].null_count == 1
    assert table["diverged"].to_pylist().count(True) == 1
    assert record["spec"] == SPEC.as_json()
    assert record["members"] == 9
    assert {"spec_sha256", "nme", "python", "seconds", "made_with"} <= set(record)
    pd.testing.assert_frame_equal(table.to_pandas(), collect(SPEC, tmp_path)[0])


# ---------------------------------------------------------------- measured

MEASURED_SPEC = SPEC.model_copy(update={"measurement": Measurement()})


def write_measured(root, spec=MEASURED_SPEC, gone=()) -> None:
    """Two values a member and time; ``gone`` are pairs of a cell and a seed that have diverged: only the first time."""
    for cell in spec.cells:
        for seeds in jobs_of_seeds(spec.seeds, spec.recipes[cell.split("/")[0]].seeds_per_job):
            rows = [
                {"seed": seed, "at": at, "step": int(100 * at), "quantity": "q", "layer": layer, "value": seed + at}
                for seed in seeds
                for at in ((0.0,) if (cell, seed) in gone else (0.0, 0.5, 1.0))
                for layer in ("", "1")
            ]
            path = root / measured_path(spec.scale, Cell.from_path(cell), seeds)
            parquet.write(pa.Table.from_pylist(rows), path, record_of(spec, cell, seeds))


def test_every_measured_value_is_a_row(tmp_path):
    write_measured(tmp_path, gone={(CELLS[0], 2)})
    table, summary = collect(MEASURED_SPEC, tmp_path)
    assert len(table) == (3 * 3 * 3 - 2) * 2
    assert summary["members"] == 9
    assert summary["seconds_of_jobs"] == 7 * 1.5
    assert table["value"].tolist() == (table["seed"] + table["at"]).tolist()
    for cell in map(Cell.from_path, CELLS):
        rows = table[(table["recipe"] == cell.recipe) & (table["method"] == cell.method)]
        assert set(rows["strength"]) == {float(cell.strength)}
        assert set(rows["panel"]) == {SPEC.recipes[cell.recipe].title}
        lost = 2 if cell.path == CELLS[0] else None
        expected = {(s, at) for s in range(3) for at in (0, 0.5, 1) if s != lost or at == 0}
        assert set(zip(rows["seed"], rows["at"], strict=True)) == expected


def test_a_job_whose_members_have_all_diverged_adds_no_rows(tmp_path):
    """It keeps the type of every column."""
    write_measured(tmp_path)
    cell = Cell.from_path(CELLS[0])
    for seeds in jobs_of_seeds(3, 2):
        path = tmp_path / measured_path("tiny", cell, seeds)
        table, record = parquet.read(path)
        parquet.write(table.slice(0, 0), path, record)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        table, summary = collect(MEASURED_SPEC, tmp_path)
    assert set(table["method"]) == {"grad_norm", "grad_norm-p=2"}
    assert table["seed"].dtype == table["step"].dtype == np.int64
    assert summary["members"] == 6


def test_a_table_of_nothing_but_diverged_members_has_its_columns(tmp_path):
    write_measured(tmp_path)
    for path in tmp_path.rglob("*.parquet"):
        table, record = parquet.read(path)
        parquet.write(table.slice(0, 0), path, record)
    table, summary = collect(MEASURED_SPEC, tmp_path)
    assert (len(table), summary["members"]) == (0, 0)
    assert {"recipe", "panel", "seed", "at", "quantity", "layer", "value"} <= set(table.columns)


# ---------------------------------------------------------------- mistakes


def test_a_missing_file_is_named_as_missing(tmp_path):
    write_results(tmp_path)
    path = tmp_path / metrics_path("tiny", Cell.from_path(CELLS[2]), range(1, 2))
    path.unlink()
    with pytest.raises(NmeError) as caught:
        collect(SPEC, tmp_path)
    assert str(path) in str(caught.value)
    assert "delete it" not in str(caught.value), "it cannot be deleted"


@pytest.mark.parametrize(
    ("measurement", "change", "part"),
    [
        (None, {"recipe": {**TRAINING, "learning_rate": 0.2}}, "learning_rate 0.2, not 0.1 (delete it"),
        (None, {"recipe": {**TRAINING, "epochs": 4}}, "epochs 4, not 3"),
        (None, {"recipe": {**TRAINING, "momentum": 0}}, "momentum 0.0, not 0.9"),
        (None, {"recipe": {**TRAINING, "model": {"name": "mlp", "widths": [9]}}}, "model {"),
        (None, {"recipe": {**TRAINING, "colour": "red"}}, "unknown key 'colour'"),
        (None, {"version": 0}, "version 0, not "),
        (None, {"activation": "gelu"}, "activation gelu, not relu"),
        (None, {"method": "sam"}, "method sam, not grad_norm"),
        (None, {"strength": "0.3"}, "strength 0.3, not 0.1"),
        (None, {"seeds": [3, 4]}, "seeds [3, 4], not [0, 1]"),
        (Measurement(), {"activation": "gelu"}, "activation gelu, not relu"),
        (Measurement(), {"seeds": [1]}, "seeds [1], not [0, 1]"),
        (Measurement(), {"probes": 17}, "probes 17, not 16"),
        (Measurement(), {"update_batches": 9}, "update_batches 9, not 8"),
        (Measurement(), {"recipe": {**TRAINING, "weight_decay": 1}}, "weight_decay 1.0, not 0.0"),
        (Measurement(), {"version": 0}, "version 0, not "),
    ],
)
def test_a_job_that_was_made_with_other_settings_is_refused(tmp_path, measurement, change, part):
    spec = SPEC.model_copy(update={"measurement": measurement})
    (write_measured if measurement else write_results)(tmp_path, spec)
    path = tmp_path / (measured_path if measurement else metrics_path)("tiny", Cell.from_path(CELLS[1]), range(2))
    table, record = parquet.read(path)
    collect(spec, tmp_path)
    parquet.write(table, path, {**record, "spec": {**record["spec"], **change}})
    with pytest.raises(NmeError) as caught:
        collect(spec, tmp_path)
    assert str(path) in str(caught.value)
    assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_setting_that_a_job_does_not_name_has_its_default(tmp_path):
    """Results stay valid when a recipe gains a setting."""
    write_results(tmp_path)
    path = tmp_path / metrics_path("tiny", Cell.from_path(CELLS[1]), range(2))
    table, record = parquet.read(path)
    parquet.write(table, path, {**record, "spec": {**record["spec"], "recipe": TRAINING}})
    collect(SPEC, tmp_path)


def test_jobs_of_a_recipe_have_the_same_data(tmp_path):
    write_results(tmp_path)
    path = tmp_path / metrics_path("tiny", Cell.from_path(CELLS[1]), range(2))
    table, record = parquet.read(path)
    parquet.write(table, path, {**record, "data": {**record["data"], "test": {"sha256": "c"}}})
    first = tmp_path / metrics_path("tiny", Cell.from_path(CELLS[0]), range(2))
    with pytest.raises(NmeError, match="other data") as caught:
        collect(SPEC, tmp_path)
    assert str(path) in str(caught.value)
    assert str(first) in str(caught.value), "either may be the wrong one"
    other = tmp_path / metrics_path("tiny", Cell.from_path(CELLS[2]), range(1))
    for cell_file in other.parent.parent.glob("*/*.parquet"):
        table, record = parquet.read(cell_file)
        parquet.write(table, cell_file, {**record, "data": {"train": {"sha256": "d"}}})
    only_other_recipes = SPEC.model_copy(update={"cells": [CELLS[0], CELLS[2]]})
    assert len(collect(only_other_recipes, tmp_path)[0]) == 6


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no table"])
def test_a_damaged_file_is_named(tmp_path, content):
    write_results(tmp_path)
    path = tmp_path / metrics_path("tiny", Cell.from_path(CELLS[2]), range(1, 2))
    path.write_bytes(content)
    with pytest.raises(NmeError) as caught:
        collect(SPEC, tmp_path)
    assert f"{path}: not a result table" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("metadata", [None, {"other": "x"}, {"nme": "not json"}])
def test_a_table_of_another_program_is_named(tmp_path, metadata):
    path = tmp_path / "x.parquet"
    pa.parquet.write_table(pa.table({"x": [1]}).replace_schema_metadata(metadata), path)
    with pytest.raises(NmeError, match=r"x\.parquet: not a result table"):
        parquet.read(path)


def test_the_record_of_a_table_is_kept_beside_other_metadata(tmp_path):
    record = {"spec": {"ρ": [0.1, None]}, "seconds": 1.5}
    frame = pd.DataFrame({"x": [1.5, None], "y": ["a", "b"]})
    parquet.write(pa.Table.from_pandas(frame), tmp_path / "x.parquet", record)
    table, found = parquet.read(tmp_path / "x.parquet")
    assert found == record
    pd.testing.assert_frame_equal(table.to_pandas(), frame)
    assert json.loads(pa.parquet.read_schema(tmp_path / "x.parquet").metadata[b"nme"]) == record


# ---------------------------------------------------------------- over seeds


def members(values: list[float | None], **columns: object) -> pd.DataFrame:
    """One member for each value; None has diverged."""
    return pd.DataFrame(
        {
            **{key: [value] * len(values) for key, value in columns.items()},
            "accuracy": np.array(values, dtype=float),
            "diverged": [value is None for value in values],
        }
    )


accuracies = st.floats(0, 1, allow_subnormal=False)


@given(st.lists(accuracies, min_size=2, max_size=10), st.integers(0, 5))
def test_mean_and_t_interval(values, lost):
    table = members([*values, *[None] * lost], point="x")
    (row,) = over_seeds(table, ["point"], "accuracy").to_dict("records")
    assert (row["members"], row["diverged"]) == (len(values) + lost, lost)
    n, mean, spread = len(values), np.mean(values), np.std(values, ddof=1)
    assert row["mean"] == pytest.approx(mean, abs=1e-12)
    low, high = t.interval(0.95, n - 1, loc=mean, scale=spread / np.sqrt(n)) if spread > 0 else (mean, mean)
    assert (row["low"], row["high"]) == pytest.approx((low, high), abs=1e-9)


def test_an_interval_by_hand():
    """1, 2, 3: mean 2, deviation 1, t(0.975, 2) = 4.302653: 2 ± 4.302653/√3."""
    (row,) = over_seeds(members([1, 2, 3], point="x"), ["point"], "accuracy").to_dict("records")
    assert (row["mean"], row["low"], row["high"]) == pytest.approx((2, 2 - 2.484138, 2 + 2.484138), abs=1e-5)


@pytest.mark.parametrize("values", [[0.5], [0.5, None], [None, None, 0.5]])
def test_one_value_has_no_interval(values):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = over_seeds(members(values, point="x"), ["point"], "accuracy").to_dict("records")
    assert row["mean"] == 0.5
    assert np.isnan([row["low"], row["high"]]).all()
    assert (row["members"], row["diverged"]) == (len(values), len(values) - 1)


def test_no_value_has_no_mean():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (row,) = over_seeds(members([None, None], point="x"), ["point"], "accuracy").to_dict("records")
    assert np.isnan([row["mean"], row["low"], row["high"]]).all()
    assert (row["members"], row["diverged"]) == (2, 2)


def test_a_diverged_member_is_not_averaged_even_if_it_has_a_value():
    table = members([0.5, 0.5, 0.1], point="x").assign(diverged=[False, False, True])
    (row,) = over_seeds(table, ["point"], "accuracy").to_dict("records")
    assert (row["mean"], row["diverged"]) == (0.5, 1)


def test_points_are_told_apart():
    parts = [members([a, a], p=p, s=s) for p, s, a in (("x", 0, 0.1), ("x", 1, 0.2), ("y", 0, 0.3))]
    points = over_seeds(pd.concat(parts), ["p", "s"], "accuracy")
    assert points[["p", "s"]].to_dict("split")["data"] == [["x", 0], ["x", 1], ["y", 0]]
    assert points["mean"].tolist() == pytest.approx([0.1, 0.2, 0.3])
