"""Cells, jobs and paths: there and back, and never the same path for two things."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from registry_examples import numbers_for

from nme.activations import ACTIVATIONS
from nme.claims.contrasts import effects_of
from nme.config.figure import Figure
from nme.config.messages import check
from nme.config.project import Project, load_project
from nme.config.scale import Scale
from nme.datasets import DATASETS
from nme.errors import NmeError
from nme.grid import cells as grid_cells
from nme.grid.captions import scale_sentence
from nme.grid.cells import (
    Cell,
    expand,
    format_seeds,
    job_of_path,
    jobs_of_seeds,
    measurements,
    parse_seeds,
    snapshots,
    training_jobs,
)
from nme.grid.claims import claims_spec, map_spec, term_cells
from nme.grid.paths import dataset_files, figures_read, measured_path, metrics_path, sources, table_path
from nme.grid.specs import (
    STAGE_VERSION,
    dataset_spec,
    landscape_spec,
    measure_spec,
    plot_spec,
    table_spec,
    train_spec,
)
from nme.methods import METHODS
from nme.quantities import QUANTITIES
from nme.registry import number

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
        values = numbers_for(parameter)
        text += f"-{key}={number(draw(values))}"
    return text


cells = st.builds(Cell.of, identifiers, names(ACTIVATIONS), names(METHODS), strengths)


def project_of(scale: str) -> Project:
    return load_project({"scale": scale}, ROOT / "config")


def scale_of(**changes) -> Scale:
    values = yaml.safe_load((ROOT / "config/scales/tiny.yaml").read_text())
    return Scale.model_validate({**values, **changes})


def figure_of(measure: dict | None = None, curves: dict | None = None, **axes) -> Figure:
    compared = {"panels": "all", "activation": ["relu"], "method": {"grad_norm": "rho"}, **axes}
    return Figure(kind="paper", title="", caption="", grid=compared, measure=measure, curves=curves)


def paths_of(figure: Figure, scale: Scale) -> list[str]:
    """The cells without their recipe, which is the first of them."""
    found = [cell.path.split("/", 1) for cell in grid_cells.cells(figure, scale)]
    return [path for recipe, path in found if recipe == found[0][0]]


# ------------------------------------------------------------------ cells


@given(cells)
def test_a_cell_is_its_path(cell):
    assert Cell.from_path(cell.path) == cell


@given(cells, cells)
def test_two_cells_never_share_a_path(one, other):
    assert (one == other) == (one.path == other.path)


@given(identifiers, names(ACTIVATIONS), names(METHODS))
def test_strength_0_of_any_method_is_the_shared_sgd_cell(recipe, phi, trained):
    shared = Cell(recipe, str(ACTIVATIONS.parse(phi)), "sgd", "0")
    for zero in (0, 0.0, -0.0, "0", "0.00", "0e5"):
        assert Cell.of(recipe, phi, trained, zero) == shared


@given(strengths)
def test_sgd_has_no_strength(strength):
    assert Cell.of("r", "relu", "sgd", strength) == Cell("r", "relu", "sgd", "0")


@given(st.floats(1e-12, 1e12))
def test_a_strength_above_0_is_kept(strength):
    cell = Cell.of("r", "relu", "grad_norm", strength)
    assert float(cell.strength) == strength
    assert cell.method == "grad_norm"


@pytest.mark.parametrize("spelling", [0.001, "1e-3", "0.0010", "1E-03", ".001"])
def test_a_cell_has_one_spelling(spelling):
    cell = Cell.of("r", "augmented_relu-beta=1.0", "grad_norm-p=1", spelling)
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
        Cell.of(*arguments)
    assert part in str(caught.value)


RECIPE = "mnist1d_cnn5"


@pytest.mark.parametrize(
    ("path", "seeds", "part"),
    [
        ("nope/gelu/sgd/0", "0", "unknown recipe 'nope' (allowed: "),
        (f"{RECIPE}/gleu/sgd/0", "0", "did you mean 'gelu'?"),
        (f"{RECIPE}/gelu/gradnorm/0.1", "0", "did you mean 'grad_norm'?"),
        (f"{RECIPE}/gelu/grad_norm/0.10", "0", f"is '{RECIPE}/gelu/grad_norm/0.1', not "),
        (f"{RECIPE}/gelu/sgd/0.5", "0", f"is '{RECIPE}/gelu/sgd/0', not "),
        (f"{RECIPE}/gelu/sgd/0", "9-2", "seeds are '9-2'"),
        (f"{RECIPE}/gelu/sgd/0", "00", "seeds are '00'"),
        (f"{RECIPE}/gelu/sgd/0", "3-3", "seeds are '3-3'"),
    ],
)
def test_a_typed_path_that_is_no_job_is_one_message(path, seeds, part):
    with pytest.raises(NmeError) as caught:
        job_of_path(project_of("laptop").scale, path, seeds)
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
MEASURED = pattern_of("measure.smk", "measured.parquet")


def test_the_constraints_were_found():
    assert set(CONSTRAINTS) >= {"dataset", "recipe", "activation", "method", "strength", "seeds"}


@given(cells)
def test_every_part_of_a_path_is_safe(cell):
    for field in ("recipe", "activation", "method", "strength"):
        part = getattr(cell, field)
        assert re.fullmatch(CONSTRAINTS[field], part)
        # A file name on any system, a word in any shell, no option, no hidden file.
        assert re.fullmatch(r"[a-z0-9][a-z0-9_=.-]*", part)


def parsed(pattern: re.Pattern, path: str) -> tuple[Cell, range]:
    """The cell and seeds that Snakemake reads in a path."""
    found = pattern.fullmatch(path).groupdict()
    assert found.pop("scale") == "tiny"
    seeds = parse_seeds(found.pop("seeds"))
    return Cell(**found), seeds


@given(cells, st.integers(0, 50), st.integers(1, 50))
def test_snakemake_reads_a_path_as_it_was_written(cell, first, n):
    seeds = range(first, first + n)
    for pattern, path_of in ((METRICS, metrics_path), (MEASURED, measured_path)):
        assert parsed(pattern, path_of("tiny", cell, seeds)) == (cell, seeds)


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
    tables = {table_path(project, name) for name in project.figures}
    for name, figure in project.figures.items():
        found = [path.replace(f"results/{scale}/", "results/tiny/") for path in sources(project, name)]
        if figure.grid:
            pattern = MEASURED if figure.measure else METRICS
            assert [parsed(pattern, path) for path in found] == training_jobs(project, name)
        elif figure.landscape:
            assert found == [f"results/tiny/landscape/{name}.parquet"]
        else:
            assert set(sources(project, name)) <= tables
    assert len(tables) == len(project.figures), "no two figures are drawn from one file"
    for recipe in project.scale.recipes:
        folder = Path("results", scale, "data", project.scale.recipes[recipe].dataset)
        assert {Path(file).parent for file in dataset_files(project, recipe).values()} == {folder}
    assert all(re.fullmatch(CONSTRAINTS["dataset"], dataset) for dataset in DATASETS)


# ------------------------------------------------------------------ seeds


@given(st.integers(0, 10**6), st.integers(1, 1000))
def test_seeds_there_and_back(first, n):
    seeds = range(first, first + n)
    text = format_seeds(seeds)
    assert parse_seeds(text) == seeds
    assert re.fullmatch(CONSTRAINTS["seeds"], text)


def test_seeds_examples():
    assert (format_seeds(range(5)), format_seeds(range(5, 6))) == ("0-4", "5")
    assert (parse_seeds("0-4"), parse_seeds("5")) == (range(5), range(5, 6))


@given(st.integers(1, 60), st.integers(1, 60))
def test_jobs_cover_each_seed_once(seeds, per_job):
    jobs = jobs_of_seeds(seeds, per_job)
    assert [seed for job in jobs for seed in job] == list(range(seeds))
    assert all(1 <= len(job) <= per_job for job in jobs)


@given(st.integers(1, 60), st.integers(1, 60))
def test_one_more_seed_leaves_the_jobs_that_are_there_unless_it_completes_one(seeds, per_job):
    before = jobs_of_seeds(seeds, per_job)
    after = jobs_of_seeds(seeds + 1, per_job)
    if (seeds + 1) % per_job:
        assert after == [*before, range(seeds, seeds + 1)]
    else:
        kept = before[: seeds // per_job]
        assert after == [*kept, range(seeds + 1 - per_job, seeds + 1)]


@pytest.mark.parametrize(
    ("seeds", "per_job", "jobs"),
    [
        (1, 1, ["0"]),
        (3, 1, ["0", "1", "2"]),
        (5, 5, ["0-4"]),
        (7, 5, ["0-4", "5", "6"]),
        (15, 5, ["0-4", "5-9", "10-14"]),
        (2, 5, ["0", "1"]),
    ],
)
def test_jobs_examples(seeds, per_job, jobs):
    assert [format_seeds(job) for job in jobs_of_seeds(seeds, per_job)] == jobs


# ---------------------------------------------------------------- figures


def test_cells_of_a_figure():
    scale = scale_of(axes={"rho": [0, 0.1]})
    figure = figure_of(activation=["relu", "gelu"], method={"grad_norm": "rho", "grad_norm-p=2": "rho"})
    assert [cell.path for cell in grid_cells.cells(figure, scale)] == [
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
    figure = figure_of(activation=phi, method=dict.fromkeys(methods, "rho"))
    found = grid_cells.cells(figure, scale)
    assert len(set(found)) == len(found)
    penalties = sum(m != "sgd" for m in methods) * sum(s > 0 for s in axis)
    shared = "sgd" in methods or 0 in axis
    assert len(found) == 2 * len(phi) * (penalties + shared)
    jobs = training_jobs(project_of("tiny").model_copy(update={"scale": scale, "figures": {"one": figure}}), "one")
    paths = [metrics_path("tiny", *job) for job in jobs]
    assert len(set(paths)) == len(paths)
    members = [(cell, seed) for cell, job in jobs for seed in job]
    assert len(set(members)) == len(members) == len(found) * seeds


@pytest.mark.parametrize(
    ("name", "names"),
    [
        ("gelu", ["gelu"]),
        ("beta_gelu-beta={beta}", ["beta_gelu-beta=1", "beta_gelu-beta=4"]),
        ("x-a={beta}-b={k}", ["x-a=1-b=2", "x-a=1-b=3", "x-a=4-b=2", "x-a=4-b=3"]),
        ("beta_gelu-beta={one}", ["beta_gelu-beta=1"]),
    ],
)
def test_a_name_with_axes_is_a_name_a_value(name, names):
    assert expand(name, {"beta": ["1", "4"], "k": ["2", "3"], "one": ["1"]}) == names


def test_cells_along_an_axis_in_a_name():
    scale = scale_of(axes={"rho": [0, 0.1], "beta": [0.5, "2.0"]})
    assert paths_of(figure_of(activation=["gelu", "beta_gelu-beta={beta}"]), scale) == [
        f"{phi}/{rest}"
        for phi in ("gelu", "beta_gelu-beta=0.5", "beta_gelu-beta=2")
        for rest in ("sgd/0", "grad_norm/0.1")
    ]


def test_each_method_has_the_strengths_of_its_own_axis():
    scale = scale_of(axes={"rho": [0, 0.1], "sigma2": [0, 0.01, 0.02], "probes": [1, 5]})
    figure = figure_of(method={"sam": "rho", "hessian_trace-k={probes}": "sigma2"})
    assert paths_of(figure, scale) == [
        "relu/sgd/0",
        "relu/sam/0.1",
        # One probe is the default, which is not spelled out.
        "relu/hessian_trace/0.01",
        "relu/hessian_trace/0.02",
        "relu/hessian_trace-k=5/0.01",
        "relu/hessian_trace-k=5/0.02",
    ]


def test_a_name_that_an_axis_repeats_is_one_cell():
    scale = scale_of(axes={"rho": [0.1], "beta": [1, 4]})
    figure = figure_of(activation=["beta_gelu-beta={beta}", "beta_gelu-beta=4"])
    assert paths_of(figure, scale) == [f"beta_gelu-beta={beta}/grad_norm/0.1" for beta in (1, 4)]


def test_sgd_takes_any_axis_and_is_one_cell():
    assert paths_of(figure_of(method={"sgd": "ends"}), scale_of()) == ["relu/sgd/0"]


def test_only_the_recipes_of_the_panels_are_trained():
    scale = scale_of(panels={"one": ["digits_mlp"], "all": ["mnist1d_cnn", "digits_mlp"]})
    assert {cell.recipe for cell in grid_cells.cells(figure_of(panels="one"), scale)} == {"digits_mlp"}


@pytest.mark.parametrize("scale", SCALES)
def test_cells_of_every_shipped_figure_are_distinct_and_parse_back(scale):
    project = project_of(scale)
    for name, figure in project.figures.items():
        if figure.grid:
            found = grid_cells.cells(figure, project.scale)
            assert len({cell.path for cell in found}) == len(found) > 1, name
            assert [Cell.from_path(cell.path) for cell in found] == found
            assert {cell.recipe for cell in found} == set(project.scale.panels[figure.grid.panels])
            assert len(sources(project, name)) == len(set(sources(project, name)))


def test_two_figures_share_the_cells_that_both_ask_for():
    scale = scale_of()
    one, other = (set(grid_cells.cells(figure_of(activation=a), scale)) for a in (["relu"], ["gelu", "relu"]))
    assert one < other


def test_sources_and_table_of_a_figure():
    project = project_of("tiny")
    assert sources(project, "fig1") == ["results/tiny/landscape/fig1.parquet"]
    assert table_path(project, "fig1") == "results/tiny/landscape/fig1.parquet"
    assert "results/tiny/train/digits_mlp/gelu/grad_norm/0.1/seed=0-1/metrics.parquet" in sources(project, "fig2")
    assert table_path(project, "fig2") == "results/tiny/tables/fig2.parquet"
    measured = "results/tiny/measure/digits_mlp/beta_gelu-beta=4/sgd/0/seed=0-1/measured.parquet"
    assert measured in sources(project, "fig6")
    assert table_path(project, "claims") == "results/tiny/claims.parquet"
    assert sources(project, "claims")[0] == "results/tiny/tables/fig2.parquet"


# ----------------------------------------------------------- measurements


def project_with(*figures: Figure, **axes) -> Project:
    """A project with these figures alone."""
    project = project_of("tiny")
    scale = scale_of(axes={**project.scale.axes, **axes})
    return project.model_copy(update={"scale": scale, "figures": {f"fig{i}": f for i, f in enumerate(figures)}})


def test_a_cell_is_measured_for_all_figures_at_once(monkeypatch):
    for name in ("one", "other"):
        monkeypatch.setitem(QUANTITIES, name, None)
    half = {"at": "half", "quantities": ["other", "one"]}
    ends = {"at": "ends", "quantities": ["one"]}
    figures = (
        figure_of(),
        figure_of(ends, activation=["relu", "gelu"], method={"sgd": "rho"}),
        figure_of(half, activation=["relu"]),
    )
    project = project_with(*figures, half=["1.0", 0.5], ends=[0, 1])
    found = {cell.path: found for cell, found in measurements(project).items()}
    for recipe in ("mnist1d_cnn", "digits_mlp"):
        assert found[f"{recipe}/relu/sgd/0"] == {"one": [0, 0.5, 1], "other": [0.5, 1]}
        assert found[f"{recipe}/gelu/sgd/0"] == {"one": [0, 1]}
        assert found[f"{recipe}/relu/grad_norm/0.1"] == {"one": [0.5, 1], "other": [0.5, 1]}
        assert f"{recipe}/gelu/grad_norm/0.1" not in found


def test_the_network_is_kept_whenever_something_is_measured():
    assert snapshots({}) == []
    assert snapshots({"one": [0, 1], "other": [0.25, 1]}) == [0, 0.25, 1]


@pytest.mark.parametrize("scale", SCALES)
def test_measurements_are_the_union_over_the_figures(scale):
    project = project_of(scale)
    found = measurements(project)
    wanted = {}
    for figure in project.figures.values():
        if figure.measure:
            for cell in grid_cells.cells(figure, project.scale):
                for quantity in figure.measure.quantities:
                    times = [float(value) for value in project.scale.axes[figure.measure.at]]
                    wanted.setdefault(cell, {}).setdefault(quantity, []).extend(times)
    assert found == {cell: {name: sorted({*at}) for name, at in asked.items()} for cell, asked in wanted.items()}
    assert all(0 <= at <= 1 for asked in found.values() for at in snapshots(asked))


# ------------------------------------------------------------------ claims


@pytest.mark.parametrize("scale", SCALES)
def test_every_shipped_claim_is_about_trainings_of_its_figure(scale):
    project = project_of(scale)
    for name, figure in project.figures.items():
        if not figure.claims:
            continue
        spec = claims_spec(project, name)
        assert [claim.number for claim in spec.claims] == [claim.number for claim in figure.claims.list]
        pairs = [(claim, contrast) for claim in spec.claims for contrast in claim.contrasts]
        for claim, contrast in pairs:
            about = contrast.figure
            assert table_path(project, about) in sources(project, name)
            recipes = project.scale.panels[project.figures[about].grid.panels]
            assert claim.recipes
            assert set(claim.recipes) <= set(recipes)
            terms = [*contrast.plus, *contrast.minus]
            assert terms
            assert all(terms), "a mean over something"
            paths = {f"{r}/{a}/{m}/{s}" for r in recipes for term in terms for a, m, s in term}
            assert paths <= set(table_spec(project, about).cells)
            assert contrast.plus != contrast.minus
            assert all(effect.weights for effect in effects_of(contrast))
            assert contrast.over == "each" or contrast.expect not in ("similar", "different")
            measured = project.figures[about].measure
            assert bool(contrast.trace) == bool(measured), "accuracies are in the table of a figure without measure"


TERMS = {
    "gelu/sgd": [("gelu", "sgd", "0")],
    "gelu/grad_norm/rho_few": [("gelu", "sgd", "0"), ("gelu", "grad_norm", "0.1")],
    "relu,gelu/sam/rho_small": [("relu", "sam", "0.2"), ("gelu", "sam", "0.2")],
    "gelu/sgd,grad_norm/rho": [("gelu", "sgd", "0"), ("gelu", "grad_norm", "0.1"), ("gelu", "grad_norm", "0.2")],
    "gelu/grad_norm,sam/rho_small": [("gelu", "grad_norm", "0.2"), ("gelu", "sam", "0.2")],
    "beta_gelu-beta={beta}/sam/rho_small": [(f"beta_gelu-beta={b}", "sam", "0.2") for b in (2, 4)],
    "gelu/hessian_trace-k={probes}/rho_small": [("gelu", "hessian_trace", "0.2"), ("gelu", "hessian_trace-k=3", "0.2")],
}
MANY = {
    "activation": ["relu", "gelu", "beta_gelu-beta={beta}"],
    "method": {"grad_norm": "rho", "sam": "rho", "hessian_trace-k={probes}": "rho"},
}
AXES = {"rho": [0, 0.1, 0.2], "rho_few": [0, 0.1], "rho_small": [0.2], "beta": [2, 4], "probes": [1, 3]}


@pytest.fixture
def compared() -> Project:
    """One figure, with many combinations."""
    return project_with(figure_of(**MANY), **AXES)


@pytest.mark.parametrize("term", TERMS)
def test_a_term_is_the_cells_that_it_names(compared, term):
    assert term_cells(compared, "fig0", term) == TERMS[term]


WRONG_TERMS = {
    "gelu": ["'gelu' is not a term", "allowed: activation/method/axis, or activation/sgd"],
    "gelu/sam": ["'gelu/sam' is not a term"],
    "gelu/sam/rho/0.1": ["'gelu/sam/rho/0.1' is not a term"],
    "": ["'' is not a term"],
    "gelu/sam/roh": ["axis of scale 'tiny' 'roh'", "did you mean 'rho'?"],
    "gelu/sam/0.1": ["axis of scale 'tiny' '0.1'"],
    "beta_gelu-beta={bta}/sgd": ["axis of scale 'tiny' 'bta'", "did you mean 'beta'?"],
    "gleu/sgd": ["activation 'gleu'", "did you mean 'gelu'?"],
    "gelu/asm/rho": ["training method 'asm'", "did you mean 'sam'?"],
    "beta_gelu/sgd": ["needs a value for 'beta'"],
    "leaky_relu/sgd": ["fig0 has no training leaky_relu/sgd/0"],
    "gelu/usam/rho_small": ["fig0 has no training gelu/usam/0.2"],
    "gelu/sam/ends": ["fig0 has no training gelu/sam/1"],
}


@pytest.mark.parametrize("side", ["plus", "minus"])
@pytest.mark.parametrize("term", WRONG_TERMS)
def test_a_wrong_term_is_one_message(compared, term, side):
    with pytest.raises(NmeError) as caught:
        claims_spec(with_claim(compared, **{side: [term]}), "claims")
    for part in ["claims: contrast 'GELU − ReLU'", *WRONG_TERMS[term]]:
        assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def with_claim(project: Project, figure: str = "fig0", of: str | None = None, **changes) -> Project:
    """With one claim about ``figure``; its contrast may be ``of`` another one."""
    contrast = {"name": "GELU − ReLU", "plus": ["gelu/sgd"], "minus": ["relu/sgd"], "expect": "similar", "figure": of}
    contrast |= changes
    claim = {"number": 3, "says": "It does.", "figure": figure, "contrasts": [contrast]}
    claims = Figure(kind="claims", title="", caption="", claims={"smallest_effect": {"points": 2}, "list": [claim]})
    return project.model_copy(update={"figures": {**project.figures, "claims": claims}})


MEASURING = {"at": "ends", "quantities": ["second_derivatives"]}
TRACES = {**MEASURING, "quantities": ["traces"]}


NO_ACCURACIES = {
    "none": None,
    "measured": figure_of(MEASURING, **MANY),
    "traced": figure_of(TRACES, **MANY),
    "landscape": project_of("tiny").figures["fig1"],
    "claims": None,
}


@pytest.mark.parametrize("figure", NO_ACCURACIES)
@pytest.mark.parametrize("where", ["claim", "contrast"])
def test_a_claim_about_a_figure_without_accuracies_is_one_message(compared, figure, where):
    other = NO_ACCURACIES[figure]
    project = compared.model_copy(update={"figures": {**compared.figures, **({figure: other} if other else {})}})
    project = with_claim(project, figure) if where == "claim" else with_claim(project, of=figure)
    with pytest.raises(NmeError) as caught:
        claims_spec(project, "claims")
    assert f"contrast 'GELU − ReLU': unknown figure with accuracies '{figure}'" in str(caught.value)
    assert "(allowed: fig0)" in str(caught.value)


@pytest.mark.parametrize("figure", ["fig0", "fig1"], ids=["accuracies", "measured"])
def test_a_trace_needs_a_figure_that_measures_traces(compared, figure):
    others = {"fig1": figure_of(MEASURING), "fig3": figure_of(TRACES, **MANY)}
    project = compared.model_copy(update={"figures": {**compared.figures, **others}})
    assert claims_spec(with_claim(project, "fig3", trace="H"), "claims")
    with pytest.raises(NmeError) as caught:
        claims_spec(with_claim(project, figure, trace="H"), "claims")
    assert f"unknown figure with traces '{figure}'" in str(caught.value)
    assert "(allowed: fig3)" in str(caught.value)


def test_settings_of_claims(compared):
    spec = claims_spec(with_claim(compared), "claims")
    contrast = {
        "name": "GELU − ReLU",
        "expect": "similar",
        "over": "each",
        "trace": None,
        "figure": "fig0",
        "plus": [[["gelu", "sgd", "0"]]],
        "minus": [[["relu", "sgd", "0"]]],
    }
    assert spec.as_json() == {
        "scale": "tiny",
        "smallest_effect": {"points": 2, "percent": 5},
        "claims": [
            {
                "number": 3,
                "says": "It does.",
                "figure": "fig0",
                "contrasts": [contrast],
                "recipes": ["mnist1d_cnn", "digits_mlp"],
            }
        ],
        "version": STAGE_VERSION["claims"],
    }


@pytest.mark.parametrize(
    ("expect", "over", "found"),
    [
        ("positive", None, "mean"),
        ("not negative", None, "mean"),
        ("similar", None, "each"),
        ("different", None, "each"),
        ("positive", "any", "any"),
        ("similar", "each", "each"),
    ],
)
def test_how_strengths_enter(compared, expect, over, found):
    spec = claims_spec(with_claim(compared, expect=expect, over=over), "claims")
    assert spec.claims[0].contrasts[0].over == found


def trend(*terms: str, **more) -> dict:
    return {"plus": [terms[0]], "minus": [*terms[1:]], "expect": "positive", "over": "trend", **more}


def test_a_trend_is_in_ascending_order(compared):
    axes = {**AXES, "rho": [0.2, 0, 0.1], "beta": [4, 2]}
    project = project_with(figure_of(**MANY), **axes)
    (claim,) = claims_spec(with_claim(project, **trend("gelu/sam/rho", "relu/sgd,grad_norm/rho")), "claims").claims
    assert [cell[2] for cell in claim.contrasts[0].plus[0]] == ["0", "0.1", "0.2"]
    assert [cell[1] for cell in claim.contrasts[0].minus[0]] == ["sgd", "grad_norm", "grad_norm"]
    (claim,) = claims_spec(with_claim(project, **trend("beta_gelu-beta={beta}/sam/rho_small")), "claims").claims
    assert [cell[0] for cell in claim.contrasts[0].plus[0]] == ["beta_gelu-beta=2", "beta_gelu-beta=4"]


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"plus": ["gelu/sam/rho"], "minus": ["relu,gelu/sam/rho_few"], "over": "each"},
         "over is 'each', but its terms have 3 and 4 cells (allowed: the same number, or 1)"),
        ({"plus": ["gelu/sam/rho"], "minus": ["gelu/sam/rho_few"], "over": "any", "expect": "positive"},
         "over is 'any', but its terms have 2 and 3 cells"),
        (trend("gelu/sam/rho", "gelu/sam/rho_few"), "over is 'trend', but its terms are over different values"),
        (trend("gelu/sam/rho_small"), "a term is gelu/sam/0.2 (allowed: two or more strengths"),
        (trend("gelu/sam/rho", "relu/sgd"), "a term is relu/sgd/0 (allowed: two or more strengths"),
        (trend("relu,gelu/sam/rho"), "but a term is relu/sgd/0, relu/sam/0.1,"),
        (trend("relu,gelu/sam/rho_small"), "but a term is relu/sam/0.2, gelu/sam/0.2"),
        (trend("gelu/sam,grad_norm/rho"), "but a term is gelu/sgd/0, gelu/sam/0.1,"),
        (trend("beta_gelu-beta={beta}/sam/rho_few"), "but a term is beta_gelu-beta=2/sgd/0,"),
    ],
)  # fmt: skip
def test_terms_that_do_not_pair_up_are_one_message(compared, changes, part):
    with pytest.raises(NmeError) as caught:
        claims_spec(with_claim(compared, **changes), "claims")
    assert "claims: contrast 'GELU − ReLU': " in str(caught.value)
    assert part in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def claims_of(project: Project, *claims: dict) -> Project:
    figure = Figure(kind="claims", title="", caption="", claims={"list": list(claims)})
    return project.model_copy(update={"figures": {**project.figures, "claims": figure}})


CONTRAST = {"name": "x", "plus": ["gelu/sgd"], "minus": ["relu/sgd"], "expect": "positive"}


def test_a_claim_is_about_the_recipes_that_all_its_contrasts_have():
    one = figure_of(**MANY)
    one = one.model_copy(update={"grid": one.grid.model_copy(update={"panels": "one"})})
    other = one.model_copy(update={"grid": one.grid.model_copy(update={"panels": "slow"})})
    project = project_with(figure_of(**MANY), one, other, **AXES)
    panels = {**project.scale.panels, "slow": ["mnist1d_cnn_small_lr"]}
    project = project.model_copy(update={"scale": project.scale.model_copy(update={"panels": panels})})
    claim = {"number": 1, "says": "x", "figure": "fig0", "contrasts": [CONTRAST, {**CONTRAST, "figure": "fig1"}]}
    assert claims_spec(claims_of(project, claim), "claims").claims[0].recipes == ["mnist1d_cnn"]
    claim["contrasts"] = [*claim["contrasts"], {**CONTRAST, "figure": "fig2"}]
    with pytest.raises(NmeError, match="claims: claim 1: its contrasts have no recipe in common"):
        claims_spec(claims_of(project, claim), "claims")


def test_claims_have_numbers_of_their_own(compared):
    claim = {"number": 4, "says": "x", "figure": "fig0", "contrasts": [CONTRAST]}
    with pytest.raises(NmeError, match="claims: more than one claim has the number 4"):
        claims_spec(claims_of(compared, claim, claim), "claims")


def test_a_contrast_may_be_of_another_figure(compared):
    project = compared.model_copy(update={"figures": {**compared.figures, "fig1": figure_of(**MANY)}})
    project = with_claim(project, of="fig1")
    (claim,) = claims_spec(project, "claims").claims
    assert (claim.figure, claim.contrasts[0].figure) == ("fig0", "fig1")
    assert sources(project, "claims") == ["results/tiny/tables/fig1.parquet"], "the only one that is read"


# --------------------------------------------------------------------- map


MAPPED = {2: ["fig2"], 3: ["fig2"], 6: ["fig4"], 7: ["fig4"], 12: ["ablation"]}


@pytest.mark.parametrize("scale", SCALES)
def test_the_shipped_map_reads_the_figures_of_its_claims_and_trains_nothing_of_its_own(scale):
    project = project_of(scale)
    read = ["fig2", "fig4", "ablation", "mechanism"]
    assert figures_read(project, "map") == read
    assert sources(project, "map") == [table_path(project, name) for name in read]
    assert table_path(project, "map") == f"results/{scale}/map.parquet"
    spec = map_spec(project, "map")
    assert spec == map_spec(project, "map")
    assert {claim.number: [c.figure for c in claim.contrasts] for claim in spec.claims} == MAPPED
    recipes = project.scale.panels["all"]
    assert [*spec.recipes] == recipes
    assert all(claim.recipes == recipes for claim in spec.claims)
    assert spec.smallest_effect == 1
    assert {contrast.over for claim in spec.claims for contrast in claim.contrasts} == {"mean", "trend"}
    for claim in spec.claims:
        for contrast in claim.contrasts:
            assert len(effects_of(contrast)) == 1, "one effect, chosen beforehand"


def test_the_scale_of_the_map_has_a_dozen_settings_that_differ():
    scale = project_of("map").scale
    recipes = [scale.recipes[name] for name in scale.panels["all"]]
    assert len(recipes) >= 12
    assert len({recipe.title for recipe in recipes}) == len(recipes)
    assert len({json.dumps(recipe.model_dump(exclude={"title"})) for recipe in recipes}) == len(recipes)
    assert {recipe.seeds_per_job for recipe in recipes} == {scale.seeds} == {5}
    assert len({scale.datasets[recipe.dataset].label_noise for recipe in recipes}) == 3
    assert len({recipe.epochs for recipe in recipes}) == 3


def mapped(changes: dict, figures: dict | None = None, axes: dict | None = None, panels: dict | None = None) -> Project:
    """The tiny project with another map."""
    project = project_of("tiny")
    its = project.figures["map"]
    its = its.model_copy(update={"map": its.map.model_copy(update=changes)})
    scale = project.scale
    lists = {"axes": {**scale.axes, **(axes or {})}, "panels": {**scale.panels, **(panels or {})}}
    scale = scale.model_copy(update=lists)
    return project.model_copy(update={"figures": {**project.figures, "map": its, **(figures or {})}, "scale": scale})


@pytest.mark.parametrize(
    ("changes", "more", "message"),
    [
        ({"claims": [13]}, {},
         "map: map.claims: there is no claim 13 (allowed: 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)"),
        ({"claims": [2, 10]}, {}, "map: map.claims: claim 10 is about traces (allowed: claims about accuracies)"),
        ({"claims": [1]}, {}, "map: map.claims: claim 1 expects 'similar' (allowed: positive, not negative)"),
        ({"shares": "mechanics"}, {},
         "map: map.shares: unknown figure with update_shares 'mechanics'; did you mean 'mechanism'?"
         " (allowed: mechanism)"),
        ({"shares": "fig6"}, {}, "map: map.shares: unknown figure with update_shares 'fig6' (allowed: mechanism)"),
        ({"activation": "leaky_relu"}, {},
         "map: map.activation: unknown activation of 'mechanism' with plain SGD 'leaky_relu'; did you mean 'relu'?"
         " (allowed: gelu, relu)"),
        ({}, {"axes": {"times": ["0"]}},
         "map: map.shares: 'mechanism' measures at 0 alone (allowed: an axis with a time after 0)"),
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_map_is_one_message(changes, more, message):
    with pytest.raises(NmeError) as caught:
        map_spec(mapped(changes, **more), "map")
    assert str(caught.value) == message


def test_a_map_needs_a_figure_with_claims():
    project = project_of("tiny")
    figures = {name: figure for name, figure in project.figures.items() if not figure.claims}
    with pytest.raises(NmeError, match=r"there is no claim 2 \(allowed: none, since no figure"):
        map_spec(project.model_copy(update={"figures": figures}), "map")


def test_a_setting_of_a_map_has_both_effects_and_shares():
    project = project_of("tiny")
    measured = project.figures["mechanism"]

    def over(panels: list[str]) -> Project:
        grid_of = measured.grid.model_copy(update={"panels": "measured"})
        return mapped({}, {"mechanism": measured.model_copy(update={"grid": grid_of})}, panels={"measured": panels})

    spec = map_spec(over(["digits_mlp"]), "map")
    assert [*spec.recipes] == ["digits_mlp"]
    assert all(claim.recipes == ["digits_mlp"] for claim in spec.claims)
    with pytest.raises(NmeError, match=r"map: map\.claims: claim 2 has no recipe with shares"):
        map_spec(over(["mnist1d_cnn_small_lr"]), "map")


def test_a_maps_caption_lists_its_settings():
    said = scale_sentence(project_of("tiny"), "map")
    assert said == "Settings: (1) MNIST-1D, 2-layer CNN; (2) Digits 8×8, MLP. 2 seeds."


@pytest.mark.parametrize("scale", ["tiny", "laptop"])
def test_the_cost_of_a_map_is_that_of_the_figures_that_it_reads(scale):
    from nme.grid.plan import SPEED, Estimate, cost

    project = project_of(scale)
    estimates = {device: Estimate(project, device) for device in SPEED}
    read = ["fig2", "fig4", "ablation", "mechanism"]
    assert cost(estimates, ["map"]) == cost(estimates, read)
    others = [name for name in project.figures if name != "map"]
    assert cost(estimates, others) == cost(estimates, [*others, "map"]), "it adds no training"


# ------------------------------------------- settings that decide a result


CELL = Cell.of("digits_mlp", "gelu", "grad_norm", 0.1)


def train_settings(**changes) -> str:
    recipe = scale_of().recipes["digits_mlp"]
    recipe = type(recipe).model_validate({**recipe.model_dump(), **changes})
    return json.dumps(train_spec(recipe, CELL, range(2), []).as_json())


@pytest.mark.parametrize(
    "changes",
    [{"learning_rate": 0.06}, {"epochs": 4}, {"test_epochs": 2}, {"batch_size": 32}, {"momentum": 0.8},
     {"weight_decay": 0}, {"warmup_epochs": 1}, {"threads": 2}, {"augment": "crop_flip"}, {"dataset": "mnist1d"},
     {"micro_batch": 8}, {"micro_batch": 8, "processes": 2}, {"precision": "bf16"}, {"channels_last": True},
     {"compile": True}, {"dataset": "imagenette", "resolution": 32},
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


def recoloured(project: Project, kind: str, name: str) -> Project:
    colours = {**getattr(project.style, kind), name: "#123456"}
    return project.model_copy(update={"style": project.style.model_copy(update={kind: colours})})


def test_a_plot_depends_only_on_the_colours_that_it_shows():
    """Those of its lines: fig2 colours activations, fig5 methods, fig6 neither."""
    project = project_of("tiny")
    before = {name: plot_spec(project, name) for name in project.figures}

    def changed(kind: str, name: str) -> set[str]:
        after = recoloured(project, kind, name)
        return {figure for figure in before if plot_spec(after, figure) != before[figure]}

    assert set(before["fig2"].colours) == {"relu", "gelu"}
    assert {"sgd", "hessian_trace"} <= set(before["fig5"].colours)
    assert "fig2" in changed("activation", "relu")
    assert "fig2" not in changed("activation", "leaky_relu")
    assert "fig5" in changed("method", "hessian_trace") & changed("method", "sgd")
    assert "fig5" not in changed("activation", "relu") | changed("method", "sam")
    assert not {"fig2", "fig6"} & changed("method", "sgd")
    assert changed("method", "usam") == set()


def test_a_figure_that_is_drawn_by_its_own_module_colours_activations():
    """A figure that config.Figure allows: a grid with neither ``curves`` nor ``measure``."""
    project = project_with(figure_of(activation=["relu", "gelu"]))
    project = project.model_copy(update={"figures": {"fig6": project.figures["fig0"]}})
    assert set(plot_spec(project, "fig6").colours) == {"relu", "gelu"}


def test_a_family_has_one_colour_unless_a_member_has_its_own():
    project = project_of("tiny")
    families = project.style.activation["beta_gelu"]
    curves = {"x_label": "", "lines": "activation"}
    figure = figure_of(activation=["beta_gelu-beta={beta}"], curves=curves)
    project = project.model_copy(update={"figures": {"f": figure}})
    betas = [f"beta_gelu-beta={beta}" for beta in project.scale.axes["beta"]]
    assert plot_spec(project, "f").colours == dict.fromkeys(betas, families)
    own = plot_spec(recoloured(project, "activation", betas[0]), "f").colours
    assert own == {**dict.fromkeys(betas, families), betas[0]: "#123456"}


def test_a_caption_says_which_values_and_how_many_combinations():
    project = project_with(figure_of(**MANY), **AXES)
    said = scale_sentence(project, "fig0")
    assert "rho 0, 0.1, 0.2" in said
    assert "beta 2, 4" in said
    assert "probes 1, 3" in said
    assert "rho_few" not in said
    assert "2 seeds; " in said
    # Two recipes, four activations, and SGD, two of the penalty, two of SAM, two of each number of probes.
    assert said.endswith(f"{2 * 4 * (1 + 2 + 2 + 2 * 2)} combinations.")


def noisy_project() -> Project:
    """The digits twice: as they are, and with a quarter of the training labels random."""
    values = scale_of().model_dump()
    values["datasets"]["digits_noisy"] = {"source": "digits", "train": 400, "label_noise": 0.25}
    values["recipes"]["noisy"] = {**values["recipes"]["digits_mlp"], "dataset": "digits_noisy"}
    values["panels"] |= {"clean": ["digits_mlp"], "both": ["digits_mlp", "noisy"]}
    figures = {"clean": figure_of(panels="clean"), "both": figure_of(panels="both")}
    project = project_of("tiny")
    return project.model_copy(update={"scale": Scale.model_validate(values), "figures": figures})


def test_a_caption_names_the_label_noise():
    project = noisy_project()
    sentence = " 25 % of the training labels of 'digits_noisy' are random; test labels are clean."
    assert scale_sentence(project, "both").endswith(sentence)
    assert "labels" not in scale_sentence(project, "clean")


def test_two_datasets_of_one_source_have_files_and_settings_of_their_own():
    project = noisy_project()
    clean, noisy = (set(dataset_files(project, recipe).values()) for recipe in ("digits_mlp", "noisy"))
    assert len(clean) == len(noisy) == 3
    assert not clean & noisy
    assert dataset_spec(project, "digits_noisy").as_json() == {
        **dataset_spec(project, "digits").as_json(),
        "dataset": "digits_noisy",
        "test": None,
        "label_noise": 0.25,
    }
    assert dataset_spec(project, "digits").source == "digits"
    one, other = (train_spec(project.scale.recipes[r], CELL, range(2), []) for r in ("digits_mlp", "noisy"))
    assert one != other


def test_more_seeds_on_the_users_page_train_only_new_members():
    few, many = (load_project({"scale": "tiny", "seeds": seeds}, ROOT / "config") for seeds in (2, 6))
    assert {recipe.seeds_per_job for recipe in few.scale.recipes.values()} == {2}
    for name in (name for name, figure in few.figures.items() if figure.grid):
        before, after = (set(training_jobs(project, name)) for project in (few, many))
        assert after - before == {(cell, seeds) for cell, _ in before for seeds in (range(2, 4), range(4, 6))}
        assert before < after
    measured = measurements(few)
    assert measured == measurements(many), "a cell that is there keeps its networks at the same times"
    for dataset in few.scale.datasets:
        assert dataset_spec(few, dataset) == dataset_spec(many, dataset)


def test_the_scales_seeds_are_taken_where_the_users_page_has_none():
    assert load_project({"scale": "tiny", "seeds": None}, ROOT / "config").scale.seeds == 2
    assert load_project({"scale": "tiny", "seeds": 3}, ROOT / "config").scale.seeds == 3


def test_a_figure_may_have_its_own_number_of_seeds():
    project = load_project({"scale": "tiny"}, ROOT / "config")
    few = project.model_copy(update={"scale": project.scale.model_copy(update={"figure_seeds": {"fig2": 4}})})
    assert {seed for _, seeds in training_jobs(few, "fig2") for seed in seeds} == set(range(4))
    assert table_spec(few, "fig2").seeds == 4
    assert "4 seeds;" in scale_sentence(few, "fig2")
    assert "2 or 4 seeds." in scale_sentence(few, "map")
    for name in project.figures.keys() - {"fig2"}:
        assert training_jobs(few, name) == training_jobs(project, name)
    more = set(training_jobs(few, "fig2")) - set(training_jobs(project, "fig2"))
    from nme.grid.plan import Estimate, cost  # reads torch

    added = cost({"cpu": Estimate(few, "cpu")}, few.figures).members
    assert added - cost({"cpu": Estimate(project, "cpu")}, project.figures).members == 2 * len(more)


def test_the_users_page_sets_the_seeds_of_every_figure(tmp_path):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    with (tmp_path / "config/scales/tiny.yaml").open("a") as file:
        file.write("\nfigure_seeds: {fig2: 4}\n")
    scales = [load_project({"scale": "tiny", "seeds": n}, tmp_path / "config").scale for n in (None, 6)]
    assert [(scale.seeds_of("fig2"), scale.seeds_of("fig3")) for scale in scales] == [(4, 2), (6, 6)]


def test_a_table_depends_on_its_cells_and_seeds():
    project = project_of("tiny")
    spec = table_spec(project, "fig2")
    assert spec.cells == [cell.path for cell in grid_cells.cells(project.figures["fig2"], project.scale)]
    assert spec.seeds == project.scale.seeds
    assert set(spec.recipes) == set(project.scale.panels["all"])
    assert {name: recipe.chance for name, recipe in spec.recipes.items()} == {
        "mnist1d_cnn": 0.1,
        "digits_mlp": 0.1,
    }
    assert {name: recipe.training for name, recipe in spec.recipes.items()} == {
        name: project.scale.recipes[name].training() for name in project.scale.panels["all"]
    }
    assert spec.measurement is None
    assert table_spec(project, "fig6").measurement == project.scale.measurement
    more = project.model_copy(update={"scale": scale_of(seeds=3)})
    assert table_spec(more, "fig2") != spec


@pytest.mark.parametrize("scale", SCALES)
def test_a_spec_read_from_its_json_is_the_same(scale):
    """Also as text: the hash of a result's settings is the one that the configuration has."""
    project = project_of(scale)
    specs = [dataset_spec(project, dataset) for dataset in project.scale.datasets]
    measured = measurements(project)
    for name, figure in project.figures.items():
        specs += [plot_spec(project, name)]
        specs += [claims_spec(project, name)] if figure.claims else []
        specs += [map_spec(project, name)] if figure.map else []
        specs += [landscape_spec(figure)] if figure.landscape else []
        specs += [table_spec(project, name)] if figure.grid else []
        for cell, seeds in training_jobs(project, name):
            at = snapshots(measured.get(cell, {}))
            specs += [train_spec(project.scale.recipes[cell.recipe], cell, seeds, at)]
            specs += [measure_spec(project, cell, seeds, measured[cell])] if figure.measure else []
    for spec in specs:
        text = json.dumps(spec.as_json())
        again = check(type(spec), json.loads(text), "--spec")
        assert again == spec
        assert json.dumps(again.as_json()) == text


OWN = {"update_batches": "update_shares"}  # settings of one quantity, by the setting


@pytest.mark.parametrize("key", OWN)
def test_a_setting_of_one_quantity_is_in_the_settings_where_that_is_measured(key):
    assert key not in json.loads(measure_settings())
    assert measure_settings(measurement={key: 99}) == measure_settings()
    assert json.loads(measure_settings(OWN[key], measurement={key: 99}))[key] == 99


def measure_settings(quantity="second_derivatives", at=(0, 1), measurement=None, **changes) -> str:
    scale = scale_of(measurement=measurement or {})
    recipe = scale.recipes["digits_mlp"]
    recipes = {"digits_mlp": type(recipe).model_validate({**recipe.model_dump(), **changes})}
    project = project_of("tiny").model_copy(update={"scale": scale.model_copy(update={"recipes": recipes})})
    return json.dumps(measure_spec(project, CELL, range(2), {quantity: list(at)}).as_json())


def test_what_is_measured_on_what_is_in_the_settings():
    settings = [
        measure_settings(),
        measure_settings("traces"),
        measure_settings(at=(0, 0.5)),
        *(measure_settings(measurement={key: 99}) for key in scale_of().measurement.model_dump() if key not in OWN),
        measure_settings(dataset="mnist1d"),
        measure_settings(model={"name": "mlp", "widths": [17]}),
    ]
    assert len(set(settings)) == len(settings)
    assert measure_settings(memory_mb=1, runtime_minutes=1, title="other", seeds_per_job=1) == settings[0]


def test_snapshots_are_in_the_settings_of_a_training():
    recipe = scale_of().recipes["digits_mlp"]
    without, with_them = (train_spec(recipe, CELL, range(2), at).as_json() for at in ([], [0, 1]))
    assert without != with_them
    assert {k: v for k, v in without.items() if k != "snapshots"} == {
        k: v for k, v in with_them.items() if k != "snapshots"
    }
