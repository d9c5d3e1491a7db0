"""The README's table "what reruns what"."""

from pathlib import Path

import pytest


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
    assert done.planned("all") == {"plot": 1}


def test_a_colour_that_no_figure_shows_redraws_nothing(done):
    done.edit("config/style.yaml", lambda style: style["activation"].update(leaky_relu="#123456"))
    assert done.planned("all") == {}


def test_a_learning_rate_retrains_the_cells_of_its_recipe(done):
    done.edit("config/scales/tiny.yaml", lambda scale: scale["recipes"]["digits_mlp"].update(learning_rate=0.06))
    text = done.run("snakemake", "-n", "--config", "scale=tiny", "--", "all")
    assert done.planned("all") == {"train": 6, "tables": 1, "plot": 1}
    assert "recipe=mnist1d_cnn" not in text


def test_one_more_seed_trains_only_new_members(done):
    done.edit("config/scales/tiny.yaml", lambda scale: scale.update(seeds=3))
    text = done.run("snakemake", "-n", "--config", "scale=tiny", "--", "all")
    assert done.planned("all") == {"train": 12, "tables": 1, "plot": 1}
    assert text.count("seeds=2") == 12
    assert "seeds=0" not in text


def test_one_more_strength_trains_only_its_cells(done):
    done.edit("config/scales/tiny.yaml", lambda scale: scale["axes"]["rho"].append(0.2))
    assert done.planned("all") == {"train": 4, "tables": 1, "plot": 1}


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
    assert done.planned("all") == {"tables": 1, "plot": 1}


def test_a_comment_in_the_source_reruns_nothing(done):
    for module in ("train", "methods", "grid", "figures/fig2"):
        file = done.folder / "src/nme" / f"{module}.py"
        file.write_text(file.read_text() + "\n# a comment\n")
    assert done.planned("all") == {}


def test_a_smaller_dataset_prepares_and_trains_again(done):
    done.edit("config/scales/tiny.yaml", lambda scale: scale["datasets"]["digits"].update(test=100))
    assert done.planned("all") == {"prepare": 1, "train": 6, "tables": 1, "plot": 1}


def test_a_deleted_result_is_made_again_alone(done):
    deleted = "results/tiny/train/digits_mlp/gelu/grad_norm/0.1/seed=0-1/metrics.parquet"
    (done.folder / deleted).unlink()
    assert done.planned("all") == {}  # the figures are there
    assert done.planned(deleted) == {"train": 1}
