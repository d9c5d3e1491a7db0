"""The README's table "what reruns what"."""

from pathlib import Path

import pytest
import yaml
from workflow_project import ROOT

from nme import grid
from nme.config import load_project

CONFIG = yaml.safe_load((ROOT / "config/config.yaml").read_text())
TINY = load_project({**CONFIG, "scale": "tiny"}, ROOT / "config")
GRIDS = {name: figure for name, figure in TINY.figures.items() if figure.grid}


def jobs(wanted=lambda cell: True) -> int:
    """Training jobs of all figures whose cell is wanted."""
    every = {job for figure in GRIDS.values() for job in grid.training_jobs(figure, TINY.scale) if wanted(job[0])}
    return len(every)


def figures(wanted=lambda figure: True) -> int:
    """Grid figures that are wanted."""
    return sum(wanted(figure) for figure in GRIDS.values())


ALL = {"tables": figures(), "plot": figures()}


@pytest.fixture
def done(finished, tmp_path):
    return finished.copy(tmp_path / "project")


def test_nothing_when_nothing_changed(done):
    assert done.planned("all") == {}
    assert all(
        (done.folder / "figures" / f"fig{i}.{end}").stat().st_size for i in (1, 2) for end in ("pdf", "png", "csv")
    )


def test_a_colour_redraws_the_figures_that_show_it(done):
    done.edit("config/style.yaml", lambda style: style["activation"].update(gelu="#123456"))
    assert done.planned("all") == {"plot": figures(lambda figure: "gelu" in figure.grid.activation)}


def test_a_colour_redraws_only_the_figures_that_show_it(done):
    done.edit("config/style.yaml", lambda style: style["activation"].update(leaky_relu="#123456"))
    shown = figures(lambda figure: "leaky_relu" in figure.grid.activation)
    assert done.planned("all") == ({"plot": shown} if shown else {})


def test_a_learning_rate_retrains_the_cells_of_its_recipe(done):
    done.edit("config/scales/tiny.yaml", lambda scale: scale["recipes"]["digits_mlp"].update(learning_rate=0.06))
    text = done.run("snakemake", "-n", "--config", "scale=tiny", "--", "all")
    assert done.planned("all") == {"train": jobs(lambda cell: cell.recipe == "digits_mlp"), **ALL}
    assert "recipe=mnist1d_cnn" not in text


def test_one_more_seed_trains_only_new_members(done):
    done.edit("config/scales/tiny.yaml", lambda scale: scale.update(seeds=3))
    text = done.run("snakemake", "-n", "--config", "scale=tiny", "--", "all")
    assert done.planned("all") == {"train": jobs(), **ALL}
    assert text.count("seeds=2\n") + text.count("seeds=2,") == jobs()
    assert "seeds=0" not in text


def test_one_more_strength_trains_only_its_cells(done):
    done.edit("config/scales/tiny.yaml", lambda scale: scale["axes"]["rho"].append(0.2))
    at_one_strength = jobs(lambda cell: cell.strength == "0.3")
    along_rho = figures(lambda figure: figure.grid.strength == "rho")
    assert done.planned("all") == {"train": at_one_strength, "tables": along_rho, "plot": along_rho}


def test_another_spelling_of_a_strength_is_the_same_cell(done):
    done.edit("config/scales/tiny.yaml", lambda scale: scale["axes"].update(rho=[0, "1e-1", "0.30"]))
    assert done.planned("all") == {}


def test_running_it_elsewhere_or_otherwise_reruns_nothing(done):
    def change(scale):
        scale["recipes"]["digits_mlp"].update(memory_mb=9000, runtime_minutes=5)

    done.edit("config/scales/tiny.yaml", change)
    done.edit("config/config.yaml", lambda config: config.update(device="auto", data_dir=str(Path.home())))
    assert done.planned("all") == {}


def test_a_panel_title_reruns_the_table(done):
    done.edit("config/scales/tiny.yaml", lambda scale: scale["recipes"]["digits_mlp"].update(title="Digits"))
    assert done.planned("all") == ALL


def test_a_comment_in_the_source_reruns_nothing(done):
    for module in ("train", "methods", "grid", "figures/fig2"):
        file = done.folder / "src/nme" / f"{module}.py"
        file.write_text(file.read_text() + "\n# a comment\n")
    assert done.planned("all") == {}


def test_a_smaller_dataset_prepares_and_trains_again(done):
    done.edit("config/scales/tiny.yaml", lambda scale: scale["datasets"]["digits"].update(test=100))
    assert done.planned("all") == {"prepare": 1, "train": jobs(lambda cell: cell.recipe == "digits_mlp"), **ALL}


def test_a_deleted_result_is_made_again_alone(done):
    deleted = "results/tiny/train/digits_mlp/gelu/grad_norm/0.1/seed=0-1/metrics.parquet"
    (done.folder / deleted).unlink()
    assert done.planned("all") == {}  # the figures are there
    assert done.planned(deleted) == {"train": 1}
