"""Cells, jobs and paths: there and back, and never the same path for two things."""

import json
import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from nme import grid
from nme.activations import ACTIVATIONS
from nme.config import Figure, Project, Scale, load_project
from nme.datasets import DATASETS
from nme.errors import NmeError
from nme.methods import METHODS

ROOT = Path(__file__).parents[2]
RULES = ROOT / "workflow" / "rules"
SCALES = sorted(path.stem for path in (ROOT / "config/scales").glob("*.yaml"))

identifiers = st.from_regex(r"[a-z][a-z0-9_]*", fullmatch=True)
strengths = st.just(0.0) | st.floats(1e-12, 1e12)


@st.composite
def names(draw, registry):
    """A name of the registry with any values of its parameters, as a user may write it."""
    cls = draw(st.sampled_from(list(registry.values())))
    text = cls.name
    for key, parameter in cls.parameters.items():
        values = st.sampled_from(parameter.choices) if parameter.choices else st.floats(1e-12, 1e12)
        text += f"-{key}={grid.number(draw(values))}"
    return text


cells = st.builds(grid.Cell.of, identifiers, names(ACTIVATIONS), names(METHODS), strengths)


def project_of(scale: str) -> Project:
    return load_project({"scale": scale}, ROOT / "config")


def scale_of(**changes) -> Scale:
    values = yaml.safe_load((ROOT / "config/scales/tiny.yaml").read_text())
    return Scale.model_validate({**values, **changes})


def figure_of(**axes) -> Figure:
    compared = {"activation": ["relu"], "method": ["grad_norm"], "strength": "rho", **axes}
    return Figure(kind="paper", title="", caption="", grid=compared)


# ------------------------------------------------------------------ cells


@given(cells)
def test_a_cell_is_its_path(cell):
    assert grid.Cell.from_path(cell.path) == cell


@given(cells, cells)
def test_two_cells_never_share_a_path(one, other):
    assert (one == other) == (one.path == other.path)


@given(identifiers, names(ACTIVATIONS), names(METHODS))
def test_strength_0_of_any_method_is_the_shared_sgd_cell(recipe, phi, trained):
    shared = grid.Cell(recipe, str(ACTIVATIONS.parse(phi)), "sgd", "0")
    for zero in (0, 0.0, -0.0, "0", "0.00", "0e5"):
        assert grid.Cell.of(recipe, phi, trained, zero) == shared


@given(strengths)
def test_sgd_has_no_strength(strength):
    assert grid.Cell.of("r", "relu", "sgd", strength) == grid.Cell("r", "relu", "sgd", "0")


@given(st.floats(1e-12, 1e12))
def test_a_strength_above_0_is_kept(strength):
    cell = grid.Cell.of("r", "relu", "grad_norm", strength)
    assert float(cell.strength) == strength
    assert cell.method == "grad_norm"


@pytest.mark.parametrize("spelling", [0.001, "1e-3", "0.0010", "1E-03", ".001"])
def test_a_cell_has_one_spelling(spelling):
    cell = grid.Cell.of("r", "augmented_relu-beta=1.0", "grad_norm-p=1", spelling)
    assert cell.path == "r/augmented_relu/grad_norm/0.001"


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (("r", "gleu", "sgd", 0), "did you mean 'gelu'?"),
        (("r", "gelu", "gradnorm", 1), "did you mean 'grad_norm'?"),
        # A method is checked also where its strength makes it SGD.
        (("r", "gelu", "gradnorm", 0), "did you mean 'grad_norm'?"),
        (("r", "gelu", "grad_norm", -1), "-1 is out of range"),
        (("r", "gelu", "grad_norm", "nan"), "nan is out of range"),
    ],
)
def test_a_wrong_cell_is_one_message(arguments, part):
    with pytest.raises(NmeError) as caught:
        grid.Cell.of(*arguments)
    assert part in str(caught.value)


# ------------------------------------------- paths, as Snakemake sees them


def wildcard_constraints() -> dict[str, str]:
    block = re.search(r"^wildcard_constraints:\n((?: .*\n)+)", (RULES / "common.smk").read_text(), re.MULTILINE)
    return dict(re.findall(r'^ +(\w+)="(.+)",$', block.group(1), re.MULTILINE))


CONSTRAINTS = wildcard_constraints()


def pattern_of(rule_file: str, ending: str) -> re.Pattern:
    """The regular expression that Snakemake makes of the output that ends so."""
    (output,) = re.findall(rf'"(results/[^"]*{re.escape(ending)})"', (RULES / rule_file).read_text())
    regexes = {**CONSTRAINTS, "scale": "tiny"}
    parts = re.split(r"\{(\w+)\}", output)
    text = "".join(f"(?P<{p}>{regexes[p]})" if i % 2 else re.escape(p) for i, p in enumerate(parts))
    return re.compile(text)


METRICS = pattern_of("train.smk", "metrics.parquet")


def test_the_constraints_were_found():
    assert set(CONSTRAINTS) >= {"dataset", "recipe", "activation", "method", "strength", "seeds", "figure"}


@given(cells)
def test_every_part_of_a_path_is_safe(cell):
    for field in ("recipe", "activation", "method", "strength"):
        part = getattr(cell, field)
        assert re.fullmatch(CONSTRAINTS[field], part)
        # A file name on any system, a word in any shell, no option, no hidden file.
        assert re.fullmatch(r"[a-z0-9][a-z0-9_=.-]*", part)


@given(cells, st.integers(0, 50), st.integers(1, 50))
def test_snakemake_reads_a_path_as_it_was_written(cell, first, n):
    seeds = range(first, first + n)
    found = METRICS.fullmatch(grid.metrics_path("tiny", cell, seeds)).groupdict()
    scale, text = found.pop("scale"), found.pop("seeds")
    assert (scale, grid.parse_seeds(text), grid.Cell(**found)) == ("tiny", seeds, cell)


@pytest.mark.parametrize(
    "path",
    [
        "results/tiny/train/r/relu/sgd/0/x/seed=0/metrics.parquet",
        "results/tiny/train/r/relu/sgd/0/seed=0-/metrics.parquet",
        "results/tiny/train/r/relu/sgd/-1/seed=0/metrics.parquet",
        "results/tiny/train/r/relu/sgd/1e-3/seed=0/metrics.parquet",
        "results/other/train/r/relu/sgd/0/seed=0/metrics.parquet",
    ],
)
def test_snakemake_reads_nothing_else(path):
    assert METRICS.fullmatch(path) is None


@pytest.mark.parametrize("scale", SCALES)
def test_every_path_of_the_shipped_scales_is_made_by_one_rule(scale):
    project = project_of(scale)
    for name in project.figures:
        assert re.fullmatch(CONSTRAINTS["figure"], name)
        for path in grid.sources(project, name):
            assert METRICS.fullmatch(path.replace(f"results/{scale}/", "results/tiny/")) or (
                path == f"results/{scale}/landscape/{name}.parquet"
            )
    for recipe in project.scale.recipes:
        folder = Path("results", scale, "data", project.scale.recipes[recipe].dataset)
        assert {Path(file).parent for file in grid.dataset_files(project, recipe).values()} == {folder}
    assert all(re.fullmatch(CONSTRAINTS["dataset"], dataset) for dataset in DATASETS)


# ------------------------------------------------------------------ seeds


@given(st.integers(0, 10**6), st.integers(1, 1000))
def test_seeds_there_and_back(first, n):
    seeds = range(first, first + n)
    text = grid.format_seeds(seeds)
    assert grid.parse_seeds(text) == seeds
    assert re.fullmatch(CONSTRAINTS["seeds"], text)


def test_seeds_examples():
    assert (grid.format_seeds(range(5)), grid.format_seeds(range(5, 6))) == ("0-4", "5")
    assert (grid.parse_seeds("0-4"), grid.parse_seeds("5")) == (range(5), range(5, 6))


@given(st.integers(1, 60), st.integers(1, 60))
def test_jobs_cover_each_seed_once(seeds, per_job):
    jobs = grid.jobs_of_seeds(seeds, per_job)
    assert [seed for job in jobs for seed in job] == list(range(seeds))
    assert all(1 <= len(job) <= per_job for job in jobs)


@given(st.integers(1, 60), st.integers(1, 60))
def test_one_more_seed_leaves_the_jobs_that_are_there(more, per_job):
    seeds = per_job + more - 1  # below seeds_per_job the jobs are formed anew when it is reached
    before = grid.jobs_of_seeds(seeds, per_job)
    after = grid.jobs_of_seeds(seeds + 1, per_job)
    assert after == [*before, range(seeds, seeds + 1)]


@pytest.mark.parametrize(
    ("seeds", "per_job", "jobs"),
    [
        (1, 1, ["0"]),
        (3, 1, ["0", "1", "2"]),
        (5, 5, ["0-4"]),
        (7, 5, ["0-4", "5", "6"]),
        (2, 5, ["0", "1"]),
    ],
)
def test_jobs_examples(seeds, per_job, jobs):
    assert [grid.format_seeds(job) for job in grid.jobs_of_seeds(seeds, per_job)] == jobs


# ---------------------------------------------------------------- figures


def test_cells_of_a_figure():
    scale = scale_of(axes={"rho": [0, 0.1]})
    figure = figure_of(activation=["relu", "gelu"], method=["grad_norm", "grad_norm-p=2"])
    assert [cell.path for cell in grid.cells(figure, scale)] == [
        f"{recipe}/{phi}/{rest}"
        for recipe in ("mnist1d_cnn", "digits_mlp")
        for phi in ("relu", "gelu")
        for rest in ("sgd/0", "grad_norm/0.1", "grad_norm-p=2/0.1")
    ]


@given(
    st.lists(names(ACTIVATIONS).map(lambda n: str(ACTIVATIONS.parse(n))), min_size=1, max_size=3, unique=True),
    st.lists(names(METHODS).map(lambda n: str(METHODS.parse(n))), min_size=1, max_size=3, unique=True),
    st.lists(strengths, min_size=1, max_size=4, unique=True),
    st.integers(1, 4),
)
def test_each_cell_and_job_is_there_once(phi, methods, axis, seeds):
    scale = scale_of(axes={"rho": axis}, seeds=seeds)
    figure = figure_of(activation=phi, method=methods)
    found = grid.cells(figure, scale)
    assert len(set(found)) == len(found)
    penalties = sum(m != "sgd" for m in methods) * sum(s > 0 for s in axis)
    shared = "sgd" in methods or 0 in axis
    assert len(found) == 2 * len(phi) * (penalties + shared)
    paths = [grid.metrics_path("tiny", *job) for job in grid.training_jobs(figure, scale)]
    assert len(set(paths)) == len(paths)
    members = [(cell, seed) for cell, job in grid.training_jobs(figure, scale) for seed in job]
    assert len(set(members)) == len(members) == len(found) * seeds


def test_two_figures_share_the_cells_that_both_ask_for():
    scale = scale_of()
    one, other = (set(grid.cells(figure_of(activation=a), scale)) for a in (["relu"], ["gelu", "relu"]))
    assert one < other


def test_sources_and_table_of_a_figure():
    project = project_of("tiny")
    assert grid.sources(project, "fig1") == ["results/tiny/landscape/fig1.parquet"]
    assert grid.table_path(project, "fig1") == "results/tiny/landscape/fig1.parquet"
    assert "results/tiny/train/digits_mlp/gelu/grad_norm/0.1/seed=0-1/metrics.parquet" in grid.sources(project, "fig2")
    assert grid.table_path(project, "fig2") == "results/tiny/tables/fig2.parquet"


# ------------------------------------------- settings that decide a result


CELL = grid.Cell.of("digits_mlp", "gelu", "grad_norm", 0.1)


def train_settings(**changes) -> str:
    recipe = scale_of().recipes["digits_mlp"]
    recipe = type(recipe).model_validate({**recipe.model_dump(), **changes})
    return json.dumps(grid.train_spec(recipe, CELL, range(2)))


@pytest.mark.parametrize(
    "changes",
    [{"learning_rate": 0.06}, {"epochs": 4}, {"batch_size": 32}, {"momentum": 0.8}, {"weight_decay": 0},
     {"warmup_epochs": 1}, {"threads": 2}, {"augment": "crop_flip"}, {"dataset": "mnist1d"},
     {"model": {"name": "mlp", "widths": [17]}},
     {"model": {"name": "mlp", "widths": [16], "batch_norm": True}}],
    ids=str,
)  # fmt: skip
def test_what_changes_metrics_is_in_the_settings(changes):
    assert train_settings(**changes) != train_settings()


@pytest.mark.parametrize(
    "changes",
    [{"title": "other"}, {"seeds_per_job": 1}, {"memory_mb": 1}, {"runtime_minutes": 1},
     {"weight_decay": "5e-4"}, {"warmup_epochs": 0}],
    ids=str,
)  # fmt: skip
def test_what_changes_no_metrics_is_not_in_the_settings(changes):
    assert train_settings(**changes) == train_settings()


def test_each_recipe_setting_is_tried_above():
    """A new key of a recipe has to be put in one of the two lists."""
    tried = {key for test in (test_what_changes_metrics_is_in_the_settings,
                              test_what_changes_no_metrics_is_not_in_the_settings)
             for changes in test.pytestmark[0].args[1] for key in changes}  # fmt: skip
    assert tried == set(scale_of().recipes["digits_mlp"].model_dump())


def test_a_plot_depends_only_on_the_colours_that_it_shows():
    project = project_of("tiny")
    before = grid.plot_spec(project, "fig2")

    def recoloured(kind: str, name: str) -> dict:
        colours = {**getattr(project.style, kind), name: "#123456"}
        style = project.style.model_copy(update={kind: colours})
        return grid.plot_spec(project.model_copy(update={"style": style}), "fig2")

    assert recoloured("activation", "leaky_relu") == before
    assert recoloured("activation", "relu") != before
    assert set(before["activation"]) == {"relu", "gelu"}


def test_a_table_depends_on_its_cells_and_seeds():
    project = project_of("tiny")
    spec = grid.table_spec(project, "fig2")
    assert spec["cells"] == [cell.path for cell in grid.cells(project.figures["fig2"], project.scale)]
    assert spec["seeds"] == project.scale.seeds
    assert set(spec["recipes"]) == set(project.scale.recipes)
    more = project.model_copy(update={"scale": scale_of(seeds=3)})
    assert grid.table_spec(more, "fig2") != spec


@pytest.mark.parametrize("scale", SCALES)
def test_settings_are_json(scale):
    project = project_of(scale)
    specs = [grid.dataset_spec(project, dataset) for dataset in project.scale.datasets]
    for name, figure in project.figures.items():
        specs += [grid.plot_spec(project, name)]
        if figure.landscape:
            specs += [grid.landscape_spec(figure)]
            continue
        specs += [grid.table_spec(project, name)]
        specs += [
            grid.train_spec(project.scale.recipes[c.recipe], c, s) for c, s in grid.training_jobs(figure, project.scale)
        ]
    for spec in specs:
        assert json.loads(json.dumps(spec)) == spec
