"""The README's table "what reruns what"."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from workflow_project import ROOT
from workflow_project import jobs as planned

from nme.config.figure import Figure
from nme.config.project import Project, load_project
from nme.grid import cells as grid_cells
from nme.grid.cells import Cell, training_jobs
from nme.grid.claims import claims_spec, map_spec
from nme.grid.paths import sources, table_path
from nme.grid.specs import plot_spec

CONFIG = yaml.safe_load((ROOT / "config/config.yaml").read_text())
TINY = load_project({**CONFIG, "scale": "tiny"}, ROOT / "config")
GRIDS = {name: figure for name, figure in TINY.figures.items() if figure.grid}
CLAIMS = [name for name, figure in TINY.figures.items() if figure.claims]
MEASURING = {name: figure for name, figure in GRIDS.items() if figure.measure}
MAPS = [name for name, figure in TINY.figures.items() if figure.map]
OF_MAPS = {path for name in MAPS for path in sources(TINY, name)}
OF_CLAIMS = {path for name in CLAIMS for path in sources(TINY, name)}

Wanted = Callable[[Cell], bool]


def jobs(figures: dict, wanted: Wanted = lambda cell: True) -> set[tuple]:
    """Training jobs of these figures whose cell is wanted."""
    return {job for name in figures for job in training_jobs(TINY, name) if wanted(job[0])}


def plan(**counts: int) -> dict[str, int]:
    return {rule: n for rule, n in counts.items() if n}


def from_tables(names: set[str], **more: int) -> dict[str, int]:
    """The tables of these figures, and what is made from them: claims and map if they read one, and the drawings."""
    tables = {table_path(TINY, name) for name in names}
    claims, maps = len(CLAIMS) if OF_CLAIMS & tables else 0, len(MAPS) if OF_MAPS & tables else 0
    return plan(**more, tables=len(names), claims=claims, map=maps, plot=len(names) + claims + maps)


def trained_again(wanted: Wanted) -> dict[str, int]:
    """These cells are trained again, those of them that are measured are, and all is made that shows one."""
    names = {name for name, figure in GRIDS.items() if any(map(wanted, grid_cells.cells(figure, TINY.scale)))}
    return from_tables(names, train=len(jobs(GRIDS, wanted)), measure=len(jobs(MEASURING, wanted)))


def drawn_with(kind: str, *names: str) -> dict[str, int]:
    """The figures that have a line of such a name: activations or methods, as they say themselves."""
    shown = [
        figure
        for figure in GRIDS.values()
        if figure.curves
        and figure.curves.lines == kind
        and {getattr(cell, kind).split("-")[0] for cell in grid_cells.cells(figure, TINY.scale)} & set(names)
    ]
    return plan(plot=len(shown))


@pytest.fixture
def done(finished, tmp_path):
    return finished.copy(tmp_path / "project")


def test_nothing_when_nothing_that_counts_changed(done):
    """The resources and places of jobs, another spelling of the same cells, and comments in the source."""

    def change(scale):
        scale["recipes"]["digits_mlp"].update(memory_mb=9000, runtime_minutes=5)
        scale["axes"].update(rho=[0, "1e-1", "0.30"])

    done.edit("config/scales/tiny.yaml", change)
    done.edit("config/config.yaml", lambda config: config.update(device="auto", data_dir=str(Path.home())))
    for module in ("stages/train", "methods/base", "grid/specs", "stages/measure", "claims/verdicts", "figures/curves"):
        file = done.folder / "src/nme" / f"{module}.py"
        file.write_text(file.read_text() + "\n# a comment\n")
    assert done.planned("all") == {}


# ----------------------------------------------------------------- colours


def redrawn(kind: str, name: str) -> int:
    """Figures whose drawing has other settings with another colour of a name."""
    chosen = {**getattr(TINY.style, kind), name: "#123456"}
    other = TINY.model_copy(update={"style": TINY.style.model_copy(update={kind: chosen})})
    return sum(plot_spec(TINY, name) != plot_spec(other, name) for name in TINY.figures)


@pytest.mark.parametrize("name", TINY.style.activation)
def test_an_activations_colour_is_in_the_settings_of_the_figures_that_have_its_line(name):
    assert redrawn("activation", name) == drawn_with("activation", name.split("-")[0]).get("plot", 0)


@pytest.mark.parametrize("name", ["sgd", "hessian_trace", "sam"])
def test_a_methods_colour_is_in_the_settings_of_the_figures_that_have_its_line(name):
    """Figures whose lines are activations are not redrawn, although they train with methods."""
    expected = drawn_with("method", name)["plot"]
    assert 0 < expected < len(GRIDS)
    assert redrawn("method", name) == expected


def test_a_colour_redraws_the_figures_that_have_it_in_their_settings(done):
    done.edit("config/style.yaml", lambda style: style["method"].update(sam="#123456"))
    assert done.planned("all") == plan(plot=redrawn("method", "sam"))


def test_an_operators_colour_is_in_the_settings_of_the_figures_that_measure():
    assert redrawn("operator", "H") == len(MEASURING)


# --------------------------------------------------------------- trainings


def test_a_learning_rate_retrains_the_cells_of_its_recipe(done):
    done.edit("config/scales/tiny.yaml", lambda scale: scale["recipes"]["digits_mlp"].update(learning_rate=0.06))
    text = done.dry_run("all")
    assert planned(text) == trained_again(lambda cell: cell.recipe == "digits_mlp")
    assert "recipe=mnist1d_cnn" not in text


@pytest.mark.parametrize("page", ["config/scales/tiny.yaml", "config/config.yaml"])
def test_one_more_seed_trains_only_new_members(done, page):
    done.edit(page, lambda values: values.update(seeds=3))
    expected = trained_again(lambda cell: True)  # one new job for the one job that a cell had
    text = done.dry_run("all")
    assert planned(text) == expected
    assert len(re.findall(r"seeds=2\b", text)) == expected["train"] + expected["measure"]
    assert "seeds=0" not in text


def test_one_more_strength_trains_only_its_cells(done):
    done.edit("config/scales/tiny.yaml", lambda scale: scale["axes"]["rho"].append(0.2))
    along = {name for name, figure in GRIDS.items() if "rho" in figure.grid.method.values()}
    new = {
        (cell.recipe, cell.activation, cell.method)
        for name in along
        for cell in grid_cells.cells(GRIDS[name], TINY.scale)
        if GRIDS[name].grid.method.get(cell.method) == "rho"
    }
    assert done.planned("all") == from_tables(along, train=len(new))


def test_one_more_value_in_a_name_trains_only_its_cells(done):
    """Its cells are measured if the cells of the axis's other values are."""
    done.edit("config/scales/tiny.yaml", lambda scale: scale["axes"]["beta"].append(2))
    along = {name for name, figure in GRIDS.items() if any("{beta}" in a for a in figure.grid.activation)}

    def neighbour(cell: Cell) -> bool:
        return cell.activation == f"beta_gelu-beta={TINY.scale.axes['beta'][0]}"

    those = {name: GRIDS[name] for name in along}
    measured = {name: figure for name, figure in those.items() if figure.measure}
    counts = {"train": len(jobs(those, neighbour)), "measure": len(jobs(measured, neighbour))}
    assert done.planned("all") == from_tables(along, **counts)


@pytest.mark.parametrize("change", [{"test": 100}, {"label_noise": 0.2}], ids=["smaller", "label noise"])
def test_another_dataset_is_prepared_and_trained_on_again_alone(done, change):
    done.edit("config/scales/tiny.yaml", lambda scale: scale["datasets"]["digits"].update(change))
    assert done.planned("all") == {"prepare": 1, **trained_again(lambda cell: cell.recipe == "digits_mlp")}


# ------------------------------------------------------------ measurements


@pytest.mark.parametrize("axis", sorted({figure.measure.at for figure in MEASURING.values()}))
def test_when_it_is_measured_reruns_the_cells_that_are_measured_then(done, axis):
    """Their networks have to be kept at other times, so they are trained again; no other cell is."""
    done.edit("config/scales/tiny.yaml", lambda scale: scale["axes"][axis].append(0.25))
    then = {name: figure for name, figure in MEASURING.items() if figure.measure.at == axis}
    cells = {job[0] for job in jobs(then)}
    expected = trained_again(lambda cell: cell in cells)
    assert expected["train"] < len(jobs(GRIDS))
    # A caption names the values of the axes of its grid, which this may be one of.
    named = {name for name, figure in GRIDS.items() if axis in figure.grid.method.values()}
    shown = {name for name, figure in GRIDS.items() if cells & set(grid_cells.cells(figure, TINY.scale))}
    expected["plot"] += len(named - shown)
    assert done.planned("all") == expected


def test_how_it_is_measured_retrains_nothing(done):
    done.edit("config/scales/tiny.yaml", lambda scale: scale["measurement"].update(examples=90))
    assert done.planned("all") == from_tables(set(MEASURING), measure=len(jobs(MEASURING)))


# ------------------------------------------------------------------ claims


# None of them is in what the map shows; the last one goes last, since it shifts the list.
CHANGES_OF_CLAIMS = {
    "smallest effect": lambda claims: claims["smallest_effect"].update(percent=6),
    "words": lambda claims: claims["list"][0].update(says="Something else."),
    "expectation": lambda claims: claims["list"][0]["contrasts"][0].update(expect="positive"),
    "one less": lambda claims: claims["list"].pop(3),
}


def with_other_claims(change: Callable[[dict], object]) -> Project:
    values = yaml.safe_load((ROOT / "config/figures/claims.yaml").read_text())
    change(values["claims"])
    return TINY.model_copy(update={"figures": {**TINY.figures, "claims": Figure(**values)}})


@pytest.mark.parametrize("change", CHANGES_OF_CLAIMS.values(), ids=CHANGES_OF_CLAIMS)
def test_every_change_of_the_claims_is_in_their_settings(change):
    other = with_other_claims(change)
    assert claims_spec(other, "claims") != claims_spec(TINY, "claims")
    assert map_spec(other, "map") == map_spec(TINY, "map")


def test_claims_are_decided_and_drawn_again_alone(done):
    for change in CHANGES_OF_CLAIMS.values():
        done.edit("config/figures/claims.yaml", lambda figure, change=change: change(figure["claims"]))
    assert done.planned("all") == {"claims": 1, "plot": 1}


CHANGES_OF_CLAIMS_AND_MAP = {
    "smallest effect": lambda claims: claims["smallest_effect"].update(points=2),
    "words": lambda claims: claims["list"][1].update(says="Something else."),
}


@pytest.mark.parametrize("change", CHANGES_OF_CLAIMS_AND_MAP.values(), ids=CHANGES_OF_CLAIMS_AND_MAP)
def test_what_the_map_shows_of_the_claims_is_in_its_settings(change):
    assert map_spec(with_other_claims(change), "map") != map_spec(TINY, "map")


def test_what_the_map_shows_of_the_claims_changes_the_map_too(done):
    for change in CHANGES_OF_CLAIMS_AND_MAP.values():
        done.edit("config/figures/claims.yaml", lambda figure, change=change: change(figure["claims"]))
    assert done.planned("all") == {"claims": 1, "map": 1, "plot": 2}


def test_the_map_is_made_again_alone(done):
    done.edit("config/figures/map.yaml", lambda figure: figure["map"].update(claims=[7, 2]))
    assert done.planned("all") == {"map": 1, "plot": 1}


# ------------------------------------------------------------------- words


def test_a_panel_title_reruns_the_tables_that_have_it(done):
    done.edit("config/scales/tiny.yaml", lambda scale: scale["recipes"]["digits_mlp"].update(title="Digits"))
    assert done.planned("all") == from_tables(
        {name for name, figure in GRIDS.items() if "digits_mlp" in TINY.scale.panels[figure.grid.panels]}
    )


def test_the_words_of_a_figure_redraw_it_alone(done):
    done.edit("config/figures/fig2.yaml", lambda figure: figure["curves"].update(x_label="ρ"))
    done.edit("config/figures/fig5.yaml", lambda figure: figure.update(caption="Another caption."))
    assert done.planned("all") == {"plot": 2}


def test_a_deleted_result_is_made_again_alone(done):
    deleted = "results/tiny/train/digits_mlp/gelu/grad_norm/0.1/seed=0-1/metrics.parquet"
    (done.folder / deleted).unlink()
    assert done.planned("all") == {}  # the figures are there
    assert done.planned(deleted) == {"train": 1}


def test_the_image_reruns_nothing(done):
    if shutil.which("apptainer") is None:
        pytest.skip("no apptainer on the PATH")
    assert done.planned("all", options=("--software-deployment-method", "apptainer")) == {}
