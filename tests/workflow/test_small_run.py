"""The cheapest figure of each kind at the tiny scale, through every stage."""

import pandas as pd
import pytest

from nme import __version__
from nme.grid.cells import measurements, snapshots, training_jobs
from nme.grid.paths import measured_path, metrics_path
from nme.grid.specs import train_spec
from nme.outputs.parquet import read


@pytest.fixture(scope="module")
def names(trained) -> list[str]:
    return trained.cheapest()


def test_every_figure_is_drawn(trained, names):
    for name in names:
        for ending in ("pdf", "png", "csv"):
            assert (trained.folder / "figures" / f"{name}.{ending}").stat().st_size > 100
        numbers = pd.read_csv(trained.folder / "figures" / f"{name}.csv")
        assert len(numbers) > 1
        assert set(numbers["scale"]) == {"tiny"}
        assert set(numbers["version"]) == {__version__}


def test_nothing_is_left_to_do(trained, names):
    assert trained.planned(*(f"figures/{name}.pdf" for name in names)) == {}


def test_every_result_is_of_its_settings(trained, names):
    """The settings come from the configuration, not from the paths."""
    project = trained.configuration()
    measured = measurements(project)
    for name in names:
        figure = project.figures[name]
        for cell, seeds in training_jobs(project, name):
            recipe, asked = project.scale.recipes[cell.recipe], measured.get(cell, {})
            rows, record = read(trained.folder / metrics_path("tiny", cell, seeds))
            assert record["spec"] == train_spec(recipe, cell, seeds, snapshots(asked)).as_json()
            assert rows.num_rows == len(seeds) * recipe.epochs
            kept = (trained.folder / metrics_path("tiny", cell, seeds)).with_name("snapshots")
            assert len(list(kept.glob("*.pt"))) == len(seeds) * len(snapshots(asked))
            if figure.measure:
                rows, record = read(trained.folder / measured_path("tiny", cell, seeds))
                found = {(row["seed"], row["at"], row["quantity"]) for row in rows.to_pylist()}
                assert found == {(seed, at, quantity) for quantity in asked for at in asked[quantity] for seed in seeds}


def test_the_status_says_what_is_done(trained, names):
    text = trained.run("nme", "status", "--scale", "tiny")
    for name in names:
        (row,) = [line for line in text.splitlines() if f" {name} " in line]
        assert "yes" in row
