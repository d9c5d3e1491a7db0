"""Figures: drawn from a table alone, without warnings, with everything in it, the same bytes each time."""

import json
import os
import re
import subprocess
import sys
import warnings
from functools import cache
from importlib import import_module
from io import BytesIO
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from dense_reference import example
from matplotlib import pyplot
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.text import Text
from registry_examples import measured_on

from nme import __version__
from nme.activations import ACTIVATIONS
from nme.claims.effects_map import effects_and_shares
from nme.claims.verdicts import decide
from nme.config.figure import DRAWINGS
from nme.config.messages import check
from nme.config.project import Project, load_project
from nme.errors import NmeError
from nme.figures import curves, style
from nme.grid.cells import cells
from nme.grid.claims import claims_spec, map_spec
from nme.grid.paths import figures_read
from nme.grid.specs import PlotSpec, landscape_spec, plot_spec, table_spec
from nme.methods import METHODS
from nme.outputs import parquet
from nme.quantities import QUANTITIES, Settings
from nme.stages.plot import plot

ROOT = Path(__file__).parents[2]
SCALES = sorted(path.stem for path in (ROOT / "config/scales").glob("*.yaml"))
PROJECTS = {scale: load_project({"scale": scale}, ROOT / "config") for scale in SCALES}
PROJECT = PROJECTS["tiny"]

CURVES = [name for name, figure in PROJECT.figures.items() if figure.curves]
MEASURED = [name for name, figure in PROJECT.figures.items() if figure.measure]
LANDSCAPES = [name for name, figure in PROJECT.figures.items() if figure.landscape]
CLAIMS = [name for name, figure in PROJECT.figures.items() if figure.claims]
MAPS = [name for name, figure in PROJECT.figures.items() if figure.map]

EACH_MODULE = [*DRAWINGS, *CURVES[-1:]]


def how(name: str) -> str:
    """The settings of an accuracy figure's drawing, without its words and its number of groups."""
    settings = PROJECT.figures[name].curves
    return f"{settings.x} {settings.lines} {settings.columns} {bool(settings.groups)}"


DIFFERENT_CURVES = {how(name): name for name in CURVES}.values()

every_figure = pytest.mark.parametrize("name", PROJECT.figures)
# The scale of one figure has so many panels in the others that drawing them takes minutes.
COMPARED = [scale for scale in SCALES if scale != "map"]
every_scale = pytest.mark.parametrize("scale", COMPARED)


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    """Fewer pixels, to save time."""
    monkeypatch.setitem(style.RC, "savefig.dpi", 50)


# ------------------------------------------- a table for each shipped figure


def highest(project: Project, name: str) -> float:
    return max(float(cell.strength) for cell in cells(project.figures[name], project.scale))


# Which members have diverged: by the strength, the highest one of the figure, and the seed.
CASES = {
    "every loss finite": lambda strength, highest, seed: False,
    "some diverged": lambda strength, highest, seed: strength == highest and seed == 1,
    "all of a point": lambda strength, highest, seed: strength == highest,
    "one is left": lambda strength, highest, seed: 0 < strength < highest and seed > 0,
    "all without a penalty": lambda strength, highest, seed: strength == 0,
    "all": lambda strength, highest, seed: True,
}


def accuracies(project: Project, name: str, case: str = "every loss finite") -> pd.DataFrame:
    """A table of a grid figure as the tables stage makes it; accuracies fall with the strength."""
    random = np.random.default_rng(0)
    rows, most, recipes = [], highest(project, name) or 1, table_spec(project, name).recipes
    for cell in cells(project.figures[name], project.scale):
        strength, recipe = float(cell.strength), recipes[cell.recipe]
        for seed in range(project.scale.seeds):
            lost = CASES[case](strength, most, seed)
            test, train = 0.85 - 0.3 * strength / most + random.normal(0, 0.01, 2)
            place = {**vars(cell), "strength": strength, "panel": recipe.title, "chance": recipe.chance}
            values = {"test_accuracy": np.nan if lost else test, "train_accuracy": np.nan if lost else train}
            rows.append({**place, "seed": seed, "epoch": 3, **values, "diverged": lost})
    return pd.DataFrame(rows)


@cache
def values_of(quantity: str) -> list:
    """Values of a quantity for a tiny network."""
    model, batch = example("mlp", ACTIVATIONS.parse("gelu"))
    chosen = PROJECT.scale.measurement
    settings = Settings(chosen.probes, chosen.spectrum_probes, chosen.lanczos_steps)
    given = measured_on(quantity, batch)
    return [vars(value) for value in QUANTITIES[quantity](model.eval(), given, settings, 0)]


def measurements(project: Project, name: str, case: str = "every loss finite") -> pd.DataFrame:
    """A table of a figure that measures; a diverged member has values of the first time alone."""
    figure, random = project.figures[name], np.random.default_rng(0)
    times = [float(at) for at in project.scale.axes[figure.measure.at]]
    rows, most, recipes = [], highest(project, name), table_spec(project, name).recipes
    for cell in cells(figure, project.scale):
        strength, panel = float(cell.strength), recipes[cell.recipe].title
        for seed in range(project.scale.seeds):
            lost = CASES[case](strength, most, seed)
            for at in times[:1] if lost else times:
                place = {**vars(cell), "strength": strength, "panel": panel, "seed": seed, "at": at}
                place["step"] = round(1000 * at)
                rows += [
                    {**place, "quantity": quantity, **value, "value": value["value"] * random.uniform(0.5, 1)}
                    for quantity in figure.measure.quantities
                    for value in values_of(quantity)
                ]
    return pd.DataFrame(rows)


def landscape(project: Project, name: str, points: int = 7) -> pd.DataFrame:
    """A table as the landscape stage makes it; one pre-activation changes its sign, one does not."""
    line = np.linspace(-3, 3, points)
    across, up = (w.ravel() for w in np.meshgrid(line, line, indexing="ij"))
    columns = {"w_a": across, "w_b": up, "loss": (across - 1) ** 2 + up**2, "nme": np.abs(across * up)}
    columns |= {"preactivation_0": across + 0.3, "preactivation_1": np.ones_like(up)}
    parts = [pd.DataFrame({"activation": a, **columns}) for a in project.figures[name].landscape.activation]
    return pd.concat(parts, ignore_index=True)


TABLES: dict[tuple, pd.DataFrame] = {}


def table_of(project: Project, name: str, case: str = "every loss finite") -> pd.DataFrame:
    """A copy of its own for each caller, made once: claims and map read those of many figures."""
    key = project.config.scale, project.scale.seeds, name, case
    if key not in TABLES:
        TABLES[key] = new_table(project, name, case)
    return TABLES[key].copy()


def new_table(project: Project, name: str, case: str) -> pd.DataFrame:
    figure = project.figures[name]
    if figure.map:
        read = {other: table_of(project, other, case) for other in figures_read(project, name)}
        return effects_and_shares(map_spec(project, name), read)
    if figure.claims:
        read = figures_read(project, name)
        tables = {other: table_of(project, other, case) for other in read}
        return decide(claims_spec(project, name), tables)
    make = landscape if figure.landscape else measurements if figure.measure else accuracies
    return make(project, name) if figure.landscape else make(project, name, case)


def with_seeds(seeds: int) -> Project:
    """The tiny scale, with so many seeds."""
    return PROJECT.model_copy(update={"scale": PROJECT.scale.model_copy(update={"seeds": seeds})})


def record_of(project: Project, name: str) -> dict:
    """The record that is kept with the table."""
    figure = project.figures[name]
    if figure.landscape:
        return {"spec": landscape_spec(figure).as_json()}
    if figure.map:
        return {"spec": map_spec(project, name).as_json()}
    spec = claims_spec(project, name) if figure.claims else table_spec(project, name)
    return {"spec": spec.as_json()}


def draw(project: Project, name: str, table: pd.DataFrame, folder: Path) -> dict[str, bytes]:
    """The files of a figure, drawn with every warning an error."""
    path = folder / "table.parquet"
    parquet.write(pa.Table.from_pandas(table, preserve_index=False), path, record_of(project, name))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot(plot_spec(project, name), path, folder / "out" / f"{name}.pdf")
    assert not pyplot.get_fignums(), "a figure that is not closed stays in memory"
    return {p.suffix: p.read_bytes() for p in (folder / "out").iterdir()}


def look_into(project: Project, name: str, table: pd.DataFrame):
    """The figure and its numbers."""
    spec = plot_spec(project, name)
    module = import_module(f"nme.figures.{'curves' if spec.curves else 'drawings.' + name}")
    with warnings.catch_warnings(), pyplot.rc_context(style.RC):
        warnings.simplefilter("error")
        return module.draw(table, spec, record_of(project, name))


@cache
def shown(scale: str, name: str, case: str = "every loss finite") -> tuple:
    """A shipped figure's table, the figure, and its numbers."""
    table = table_of(PROJECTS[scale], name, case)
    return table, *look_into(PROJECTS[scale], name, table)


def drawn_texts(figure, dpi: float = 200) -> dict[Text, object]:
    """Draw it with every warning an error: every text that there is to see, with its box in pixels."""
    found = {}
    figure.set_dpi(dpi)
    canvas = FigureCanvasAgg(figure)
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("error")
        original = Text.draw

        def note(self, renderer, *arguments, **options):
            if self.get_text().strip() and self.get_visible():
                found[self] = Text.get_window_extent(self, renderer)
            return original(self, renderer, *arguments, **options)

        patch.setattr(Text, "draw", note)
        canvas.draw()
    return found


def test_each_figure_has_a_table_here():
    assert sorted(CURVES + MEASURED + LANDSCAPES + CLAIMS + MAPS) == sorted(PROJECT.figures)
    assert sorted(MEASURED + LANDSCAPES + CLAIMS + MAPS) == sorted(DRAWINGS)
    files = (ROOT / "src/nme/figures/drawings").glob("[a-z]*.py")
    assert sorted(DRAWINGS) == sorted(path.stem for path in files), "listed in nme.config.figure"


# ------------------------------------------------------------ every figure


@pytest.mark.parametrize("name", EACH_MODULE)
def test_three_files_with_the_scale_and_the_version(drawn_twice, name):
    files = {Path(file).suffix: content for file, content in drawn_twice[0].items() if Path(file).stem == name}
    assert set(files) == {".pdf", ".png", ".csv"}
    assert files[".pdf"].startswith(b"%PDF")
    assert files[".png"].startswith(b"\x89PNG")
    numbers = pd.read_csv(BytesIO(files[".csv"]))
    assert len(numbers) > 1
    assert set(numbers["scale"]) == {"tiny"}
    assert set(numbers["version"]) == {__version__}


DRAWN = [
    *((scale, name, "every loss finite") for scale in COMPARED for name in PROJECT.figures),
    *(("map", name, "every loss finite") for name in ("map", "fig2")),
    *(("laptop", name, "some diverged") for name in [*CURVES, *MEASURED, *CLAIMS, *MAPS]),
    *(("map", "map", case) for case in ("some diverged", "one is left", "all of a point")),
]


@pytest.mark.parametrize(("scale", "name", "case"), DRAWN)
def test_every_text_is_inside_and_on_no_other(scale, name, case):
    _, figure, _ = shown(scale, name, case)
    assert_legible(figure)


def assert_legible(figure) -> None:
    """Every text is inside the figure, no two are over each other, none is smaller than 4.5 points."""
    texts = drawn_texts(figure)
    assert len(texts) > 5
    width, height = figure.canvas.get_width_height()
    for text, box in texts.items():
        assert min(box.x0, box.y0, width - box.x1, height - box.y1) > -1, f"{text.get_text()!r} is cut off"
        assert text.get_fontsize() >= 4.5
    for (one, a), (other, b) in combinations(texts.items(), 2):
        over = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
        assert min(over) <= 1.5, f"{one.get_text()!r} is over {other.get_text()!r} by {over} pixels"


@every_figure
def test_figures_are_as_wide_as_a_column_and_say_scale_and_version(name):
    _, figure, _ = shown("tiny", name)
    assert figure.get_figwidth() == pytest.approx(8.5 / 2.54)
    assert figure.get_figheight() < 24.7 / 2.54, "a page"
    assert f"nme {__version__}" in footer(figure)
    assert "scale tiny" in footer(figure) or PROJECT.figures[name].landscape


DRAW_ALL = """
import json, sys, warnings
from pathlib import Path
from matplotlib import pyplot
from nme.figures import style
from nme.grid.specs import PlotSpec
from nme.stages.plot import plot
style.RC["savefig.dpi"] = 50
warnings.simplefilter("error")
for table, spec in json.loads(sys.argv[1]).items():
    plot(PlotSpec(**spec), Path(table), Path(spec["figure"] + ".pdf"))
assert "torch" not in sys.modules, "drawing needs no torch"
assert not pyplot.get_fignums(), "a figure that is not closed stays in memory"
"""


@pytest.fixture(scope="module")
def drawn_twice(tmp_path_factory) -> list[dict[str, bytes]]:
    """The files of a figure of each module, from two processes, with every warning an error."""
    tmp_path = tmp_path_factory.mktemp("drawn")
    jobs = {}
    for name in EACH_MODULE:
        path = tmp_path / f"{name}.parquet"
        table = pa.Table.from_pandas(table_of(PROJECT, name, "some diverged"), preserve_index=False)
        parquet.write(table, path, record_of(PROJECT, name))
        jobs[str(path)] = plot_spec(PROJECT, name).as_json()
    processes = []
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        command = [sys.executable, "-c", DRAW_ALL, json.dumps(jobs)]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        processes.append(subprocess.Popen(command, cwd=tmp_path / seed, env=environment))
    assert [process.wait() for process in processes] == [0, 0]
    return [{path.name: path.read_bytes() for path in (tmp_path / seed).iterdir()} for seed in ("1", "2")]


def test_the_same_table_is_the_same_bytes(drawn_twice):
    """Two processes draw them, so that a dependence on the time or on the order of a set would show."""
    first, second = drawn_twice
    assert len(first) == 3 * len(EACH_MODULE)
    assert first == second
    assert not any(b"CreationDate" in content for name, content in first.items() if name.endswith(".pdf"))


def test_another_table_is_other_bytes(drawn_twice, tmp_path):
    other = draw(PROJECT, MEASURED[0], table_of(PROJECT, MEASURED[0]), tmp_path)
    assert set(other) == {".pdf", ".png", ".csv"}
    assert all(content != drawn_twice[0][MEASURED[0] + ending] for ending, content in other.items())


# ----------------------------------------------------- every accuracy figure


def lines(axes) -> dict[str, object]:
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def levels(axes) -> list:
    """The reference lines: dotted and horizontal."""
    return [line for line in axes.lines if line.get_linestyle() == ":"]


def footer(figure) -> str:
    return " ".join(text.get_text() for text in figure.texts)


def configured(project: Project, name: str) -> dict[str, str]:
    """Colour by the label of a line, as config/style.yaml has it: of a name, or of all of that name."""
    kind = project.figures[name].curves.lines
    registry, chosen = (
        (ACTIVATIONS, project.style.activation) if kind == "activation" else (METHODS, project.style.method)
    )
    found = {}
    for cell in cells(project.figures[name], project.scale):
        text = getattr(cell, kind)
        colour = chosen.get(text) or chosen.get(text.split("-")[0])
        if colour:
            found[registry.parse(text).full_label] = colour
    return found


@every_scale
@pytest.mark.parametrize("name", CURVES)
def test_lines_have_their_configured_colour(name, scale):
    _, figure, _ = shown(scale, name)
    colours, seen = configured(PROJECTS[scale], name), set()
    for axes in figure.axes:
        for label, line in lines(axes).items():
            base = label if label in colours else label.rsplit(", ", 1)[0]  # a method's strength may follow
            assert to_hex(line.get_color()).lower() == colours[base].lower(), label
            seen.add(base)
    assert seen == set(colours) - ({METHODS.parse("sgd").full_label} - seen), "every line is somewhere"
    for axes in figure.axes:
        looks = [(line.get_color(), line.get_linestyle()) for line in lines(axes).values()]
        assert len(set(looks)) == len(looks), "no two lines of a panel look alike"


@pytest.mark.parametrize("scale", ["tiny", "laptop"])
@pytest.mark.parametrize("name", CURVES)
def test_every_mean_is_on_its_line(name, scale):
    """The points of all lines are the numbers of the CSV, and these are means over seeds, in percent."""
    project = PROJECTS[scale]
    table, figure, numbers = shown(scale, name, "some diverged")
    on_lines = [y for axes in figure.axes for line in lines(axes).values() for y in line.get_ydata()]
    np.testing.assert_allclose(sorted(on_lines), sorted(numbers["accuracy_percent"]))
    assert (numbers["members"] == project.scale.seeds).all()
    split = numbers["column"] == "train accuracy" if "column" in numbers else np.zeros(len(numbers), dtype=bool)
    x = project.figures[name].curves.x
    for row, train in zip(numbers.itertuples(), split, strict=True):
        point = row._asdict()
        strength = point.get("strength")
        method = "sgd" if strength == 0 else point["method"]
        chosen = table[(table["recipe"] == row.recipe) & (table["activation"] == row.activation)]
        chosen = chosen[(chosen["method"] == method) & ~chosen["diverged"]]
        chosen = chosen[chosen["strength"] == strength] if x == "strength" else chosen
        mean = 100 * chosen["train_accuracy" if train else "test_accuracy"].mean()
        assert point["accuracy_percent"] == pytest.approx(mean, nan_ok=True)


@every_scale
@pytest.mark.parametrize("name", CURVES)
def test_the_level_without_a_penalty_is_in_every_panel(name, scale):
    """If the horizontal axis is a strength, each activation has a dotted line at the mean of plain SGD."""
    project = PROJECTS[scale]
    table, figure, _ = shown(scale, name)
    plain = 100 * table[table["method"] == "sgd"].groupby(["recipe", "activation"])["test_accuracy"].mean()
    for axes in filter(lambda axes: axes.get_visible(), figure.axes):  # three panels leave a place empty
        found = [line.get_ydata()[0] for line in levels(axes)]
        if project.figures[name].curves.x != "strength":
            assert found == []
            continue
        assert found
        if project.figures[name].curves.columns != "split":
            assert all(np.isclose(plain, y).any() for y in found)
        starts = {line.get_ydata()[0] for line in lines(axes).values()}
        np.testing.assert_allclose(sorted(found), sorted(starts)), "every line begins there"
    said = "dotted: without a penalty" in footer(figure)
    assert said == (project.figures[name].curves.x == "strength")


@pytest.mark.parametrize("name", DIFFERENT_CURVES)
@pytest.mark.parametrize("case", CASES)
def test_diverged_members_are_counted(name, case):
    project = with_seeds(3)
    table = accuracies(project, name, case)
    figure, numbers = look_into(project, name, table)
    if case.startswith("all"):
        drawn_texts(figure, dpi=50)
    seeds, x = project.scale.seeds, project.figures[name].curves.x
    assert numbers["accuracy_percent"].isna().tolist() == (numbers["diverged"] == seeds).tolist()
    assert numbers["ci95_low"].isna().tolist() == (numbers["diverged"] > seeds - 2).tolist()
    assert numbers["accuracy_percent"].dropna().between(50, 90).all(), "in percent"
    marks = [text.get_text() for axes in figure.axes for text in axes.texts if text.get_text().startswith("×")]
    assert sorted(marks) == sorted(f"×{lost}" for lost in numbers["diverged"] if lost)
    if x == "strength":
        strengths = {
            s for s in numbers["strength"] for seed in range(seeds) if CASES[case](s, highest(project, name), seed)
        }
        assert set(numbers.loc[numbers["diverged"] > 0, "strength"]) == strengths
    assert ("no seed diverged" in footer(figure)) == (not table["diverged"].any())
    assert ("seeds diverged and are left out" in footer(figure)) == table["diverged"].any()


@pytest.mark.parametrize("name", CURVES)
def test_one_seed_draws_without_intervals(name):
    project = with_seeds(1)
    figure, numbers = look_into(project, name, accuracies(project, name))
    assert numbers["ci95_low"].isna().all()
    assert "over 1 seed " in footer(figure) + " "


# ----------------------------------------------------------- the other kinds


@pytest.mark.parametrize("name", LANDSCAPES)
def test_landscapes_draw(tmp_path, name):
    table = landscape(PROJECT, name)
    draw(PROJECT, name, table, tmp_path)
    numbers = pd.read_csv(tmp_path / "out" / f"{name}.csv")
    expected = table[["activation", "w_a", "w_b", "loss", "nme"]]
    pd.testing.assert_frame_equal(numbers[list(expected)], expected, check_dtype=False, rtol=1e-5)


@pytest.mark.parametrize("zero", [["relu"], ["relu", "beta_gelu-beta=1", "beta_gelu-beta=4", "beta_gelu-beta=16"]])
def test_a_landscape_says_where_the_nme_is_zero(zero):
    table = landscape(PROJECT, "fig1")
    table.loc[table["activation"].isin(zero), "nme"] = 0.0
    figure, _ = look_into(PROJECT, "fig1", table)
    said = [text.get_text() for text in drawn_texts(figure, dpi=50)]
    assert said.count("N = 0") == len(zero)
    assert sum(text.startswith("max ‖N‖ = ") for text in said) == table["activation"].nunique() - len(zero)


@pytest.mark.parametrize("name", MEASURED)
@pytest.mark.parametrize("case", ["some diverged", "all of a point"])
def test_measured_figures_draw_where_members_have_diverged(name, case):
    """They have no values from then on."""
    figure, numbers = look_into(PROJECT, name, measurements(PROJECT, name, case))
    drawn_texts(figure, dpi=50)
    assert len(numbers)


@pytest.mark.parametrize("name", MEASURED)
def test_measured_figures_colour_operators_as_configured(name):
    """Some draw no operator."""
    _, figure, numbers = shown("tiny", name)
    if "operator" in numbers:
        allowed = {colour.lower() for colour in PROJECT.style.operator.values()}
        drawn = {to_hex(line.get_color()) for axes in figure.axes for line in lines(axes).values()}
        assert drawn <= allowed
        assert len(drawn) == numbers["operator"].nunique()


def test_second_derivatives_are_means_over_the_whole_network():
    """Figure 6, for any number of seeds; layers are no points of their own."""
    table, figure, numbers = shown("laptop", "fig6")
    whole = table[table["layer"] == ""]
    for row in numbers.itertuples():
        chosen = whole[(whole["recipe"] == row.recipe) & (whole["at"] == row.at)]
        chosen = chosen[[ACTIVATIONS.parse(a).beta == row.beta for a in chosen["activation"]]]
        assert len(chosen) == row.members == PROJECTS["laptop"].scale.seeds
        assert row.nonzero_percent == pytest.approx(100 * chosen["value"].mean())
    for axes in figure.axes:
        assert {label: len(line.get_xdata()) for label, line in lines(axes).items()} == dict.fromkeys(
            ("before training", "after training"), len(PROJECTS["laptop"].scale.axes["beta"])
        )


def mechanism(seeds: int = 3) -> tuple:
    """Its table, where the N_phi of ReLU is 0 and has no cosine; the figure, and its numbers."""
    project = with_seeds(seeds)
    table = table_of(project, "mechanism")
    flat = (table["activation"] == "relu") & (table["operator"] == "N_phi")
    table.loc[flat, "value"] = np.where(table.loc[flat, "statistic"] == "share", 0.0, np.nan)
    return table, *look_into(project, "mechanism", table)


def test_the_mechanism_is_means_over_seeds_of_means_over_batches():
    table, figure, numbers = mechanism()
    recipes, names = list(dict.fromkeys(table["recipe"])), {"Hĝ": "H", "Gĝ": "G", "Nĝ": "N", "N$_{φ″}$ĝ": "N_phi"}
    panels = [(recipe, statistic) for recipe in recipes for statistic in ("share", "cosine")]
    assert len(figure.axes) == len(panels) == 4
    for axes, (recipe, statistic) in zip(figure.axes, panels, strict=True):
        here = table[(table["recipe"] == recipe) & (table["statistic"] == statistic) & (table["probe"] == -1)]
        means = here.groupby(["operator", "activation", "at"])["value"].mean().dropna()
        found = {}
        for line in axes.lines:
            if not line.get_label().startswith("_"):
                operator, activation = names[line.get_label()], {"-": "gelu", "--": "relu"}[line.get_linestyle()]
                assert to_hex(line.get_color()) == PROJECT.style.operator[operator].lower()
                found |= {(operator, activation, at): value for at, value in line.get_xydata()}
        assert found == pytest.approx(means.to_dict())
        assert ("N_phi", "relu", 0.0) in found or statistic == "cosine"
        assert ("H", "gelu", 0.0) in found or statistic == "share"
        assert axes.get_xlim()[0] < 0 < 1 < axes.get_xlim()[1], "the initialisation is shown"
        low, high = axes.get_ylim()
        assert low < means.min() <= means.max() < high
    assert len(numbers) == 2 * 3 * (6 + 7) * len(recipes) // 2
    assert numbers["value"].notna().all()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [*names, "GELU", "ReLU"]
    assert "training batches, train mode" in footer(figure)
    assert_legible(figure)


@pytest.mark.parametrize("name", CLAIMS)
def test_every_contrast_of_the_claims_has_its_interval(name):
    table, figure, _ = shown("laptop", name)
    axes = figure.axes[1]
    drawn = [line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] == line.get_ydata()[1]]
    intervals = sorted(tuple(line.get_xdata()) for line in drawn if line.get_color() != "0.85")
    ends = [*zip(table["low"], table["high"], strict=True)]
    ends += zip(table["low_simultaneous"], table["high_simultaneous"], strict=True)
    assert intervals == sorted(ends)
    points = [line for line in axes.lines if len(line.get_xdata()) == 1]
    assert sorted(line.get_xdata()[0] for line in points) == sorted(table["effect"])
    assert len({line.get_ydata()[0] for line in points}) == len(table), "none is over another"
    shapes = {line.get_xdata()[0]: line.get_marker() for line in points}
    of_recipes = [{shapes[effect] for effect in own["effect"]} for _, own in table.groupby("recipe")]
    assert all(len(own) == 1 for own in of_recipes), "one shape per recipe"
    assert len(set.union(*of_recipes)) == table["recipe"].nunique()
    colours = {line.get_xdata()[0]: line.get_color() for line in points}
    of_verdicts = [{colours[effect] for effect in own["effect"]} for _, own in table.groupby("verdict")]
    assert all(len(own) == 1 for own in of_verdicts), "one colour per verdict"
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    for contrast in table["contrast"]:
        assert contrast in texts
    for says in table["says"].unique():
        assert any(says == text.replace("\n", " ") for text in texts)
    counts = table.drop_duplicates(["claim", "recipe"])["verdict"].value_counts()
    legend = {text.get_text() for text in figure.legends[0].get_texts()} - {" "}
    verdicts = {f"{v} ({counts.get(v, 0)})" for v in ("supported", "not supported", "inconclusive")}
    assert legend == verdicts | set(table["panel"])


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_show_how_many_diverged(name):
    table, figure, _ = shown("laptop", name, "some diverged")
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    lost = table[table["diverged_plus"] + table["diverged_minus"] > 0]
    assert len(lost) > 5
    for row in lost.itertuples():
        assert any(text.endswith(f" ⨯{row.diverged_plus}:{row.diverged_minus}") for text in texts)
    assert sum("⨯" in text for text in texts) == len(lost)
    assert "⨯: seeds with a diverged member" in footer(figure)


# The other cases are in DRAWN.
@pytest.mark.parametrize("case", ["all of a point", "one is left", "all without a penalty", "all"])
def test_claims_of_any_divergence_draw(case):
    figure, _ = look_into(PROJECT, "claims", table_of(PROJECT, "claims", case))
    drawn_texts(figure, dpi=50)


@pytest.mark.parametrize("name", CLAIMS)
def test_claims_of_one_seed_draw(name):
    project = with_seeds(1)
    figure, _ = look_into(project, name, table_of(project, name))
    drawn_texts(figure, dpi=50)


@pytest.mark.parametrize("scale", ["map", "laptop", "tiny"])
def test_a_map_has_a_panel_per_contrast_and_a_point_per_setting(scale):
    table, figure, numbers = shown(scale, "map")
    recipes = PROJECTS[scale].scale.panels["all"]
    contrasts = [own for _, own in table.groupby(["claim", "contrast"], sort=False)]
    assert len(figure.axes) == len(contrasts) == 5
    looks = {}
    for axes, own in zip(figure.axes, contrasts, strict=True):
        assert own["recipe"].tolist() == recipes
        points = [line for line in axes.lines if line.get_marker() not in ("", "None", None)]
        assert [tuple(line.get_xydata()[0]) for line in points] == [*zip(own["share"], own["effect"], strict=True)]
        for recipe, line in zip(own["recipe"], points, strict=True):
            looks.setdefault(recipe, set()).add((line.get_color(), line.get_marker()))
        bars = {(*x, *y) for line in axes.lines for x, y in [(line.get_xdata(), line.get_ydata())] if len(x) == 2}
        assert {(r.share_low, r.share_high, r.effect, r.effect) for r in own.itertuples()} <= bars
        assert {(r.share, r.share, r.low, r.high) for r in own.itertuples()} <= bars
        (low, high), (left, right) = axes.get_ylim(), axes.get_xlim()
        assert low < min(-1, own["effect"].min()) < max(1, own["effect"].max()) < high, "with the band of ±δ"
        assert left <= 0 < own["share"].max() < right
        texts = [text.get_text() for text in axes.texts]
        assert {str(number) for number in own["setting"]} <= set(texts)
        assert own["dependence"].iloc[0] in texts
        assert texts.count(own["contrast"].iloc[0]) + sum("(mean over" in text for text in texts) == 1
    assert all(len(look) == 1 for look in looks.values()), "the same in every panel"
    legend = [text.get_text() for text in figure.legends[0].get_texts()]
    assert legend == [f"{i}  {PROJECTS[scale].scale.recipes[r].title}" for i, r in enumerate(recipes, 1)]
    noisy = {r for r in recipes if "nois" in PROJECTS[scale].scale.recipes[r].dataset}
    colours = {recipe: next(iter(look))[0] for recipe, look in looks.items()}
    assert {r for r in recipes if colours[r] == "#D55E00"} == noisy
    assert ("orange" in footer(figure)) == bool(noisy)
    assert len(numbers) == 5 * len(recipes)
    assert {"dependence", "correlation", "correlation_low", "correlation_high"} <= set(numbers)
    assert numbers["correlation"].notna().all() == (len(recipes) >= 4)


@pytest.mark.parametrize(
    ("case", "scale"),
    [*((case, "tiny") for case in CASES), *((case, scale) for scale, name, case in DRAWN if scale == name == "map")],
)
def test_a_map_of_any_divergence_draws(case, scale):
    table, figure, _ = shown(scale, "map", case)
    drawn_texts(figure, dpi=50)
    texts = [text.get_text() for axes in figure.axes for text in axes.texts]
    lost = table["diverged_plus"] + table["diverged_minus"] > 0
    assert sum("⨯" in text for text in texts) == (lost & table["effect"].notna() & table["share"].notna()).sum()
    assert ("⨯: seeds" in footer(figure)) == lost.any()
    missing = table.loc[table["effect"].isna(), "claim"].nunique()
    assert sum("; no effect: 1" in text for text in texts) == missing


def test_a_map_of_one_seed_has_no_intervals():
    project = with_seeds(1)
    figure, numbers = look_into(project, "map", table_of(project, "map"))
    drawn_texts(figure, dpi=50)
    assert numbers[["low", "high", "share_low", "share_high"]].isna().all(axis=None)
    assert numbers[["effect", "share"]].notna().all(axis=None)


def test_large_effects_do_not_flatten_small_ones():
    table = table_of(PROJECTS["map"], "map")
    table.loc[table["claim"].eq(3) & table["setting"].eq(2), ["effect", "low", "high"]] = (60.0, 40.0, 300.0)
    figure, _ = look_into(PROJECTS["map"], "map", table)
    scales = [axes.get_yscale() for axes in figure.axes]
    assert scales[1] == "symlog"
    assert 60 < figure.axes[1].get_ylim()[1] < 200
    assert_legible(figure)


def test_numbers_of_points_that_are_close_do_not_touch():
    """Fourteen settings within a tenth of the panel."""
    table = table_of(PROJECTS["map"], "map")
    random = np.random.default_rng(3)
    table["share"] = 0.3 + random.uniform(0, 0.03, len(table))
    table["effect"] = random.uniform(0, 1, len(table))
    table.loc[table["setting"] == 1, ["share", "effect"]] = (0.05, 8)
    table[["low", "high"]], table[["share_low", "share_high"]] = np.nan, np.nan
    figure, _ = look_into(PROJECTS["map"], "map", table)
    assert_legible(figure)


# --------------------------------------------- what an accuracy figure shows

SEEDS = 3
PANELS = ("MNIST-1D", "Digits")
STRENGTHS = (0, 0.1, 0.3)


def trained(names=("relu", "gelu"), diverged=lambda name, strength, seed: False, panels=PANELS, seeds=SEEDS):
    """A small table as the tables stage makes it."""
    random = np.random.default_rng(0)
    rows = [
        {
            "recipe": f"recipe_{i}",
            "panel": panel,
            "activation": name,
            "method": "grad_norm" if strength else "sgd",
            "strength": float(strength),
            "seed": seed,
            "epoch": 3,
            "test_accuracy": np.nan if diverged(name, strength, seed) else random.uniform(0.5, 0.9),
            "diverged": diverged(name, strength, seed),
        }
        for i, panel in enumerate(panels)
        for name in names
        for strength in STRENGTHS
        for seed in range(seeds)
    ]
    return pd.DataFrame(rows)


def some(name, strength, seed):
    return strength == 0.3 and seed == 1


@pytest.fixture
def drawn():
    """Draws accuracy curves; the figure can be looked into."""

    def make(table, seeds=SEEDS, colours=None, **how):
        with pyplot.rc_context(style.RC):
            chosen = {
                "x": "strength",
                "x_label": "strength ρ",
                "lines": "activation",
                "columns": "recipe",
                "groups": [],
                **how,
            }
            colours = colours or {"relu": "#0072B2"}
            spec = PlotSpec(figure="one", scale="tiny", version=1, curves=chosen, colours=colours)
            return curves.draw(table, spec, {"spec": {"seeds": seeds}})

    yield make
    pyplot.close("all")


def test_a_panel_a_recipe_and_a_line_an_activation(drawn):
    table = trained()
    figure, points = drawn(table)
    assert [axes.get_title() for axes in figure.axes] == list(PANELS)
    for axes, panel in zip(figure.axes, PANELS, strict=True):
        assert set(lines(axes)) == {"ReLU", "GELU"}
        for name, label in (("relu", "ReLU"), ("gelu", "GELU")):
            chosen = table[(table["panel"] == panel) & (table["activation"] == name)]
            means = 100 * chosen.groupby("strength")["test_accuracy"].mean()
            np.testing.assert_allclose(lines(axes)[label].get_xydata(), [*means.items()])
        assert lines(axes)["ReLU"].get_color() == "#0072B2"
    assert len(points) == 12


def test_every_line_of_many_activations_is_drawn(drawn):
    names = ["relu", *(f"beta_gelu-beta={beta}" for beta in range(1, 10))]
    figure, points = drawn(trained(names=names))
    assert len(points) == len(PANELS) * len(names) * len(STRENGTHS)
    assert all(len(lines(axes)) == len(names) for axes in figure.axes)


def with_another_method(table: pd.DataFrame) -> pd.DataFrame:
    other = table[table["strength"] > 0].assign(method="sam", test_accuracy=0.1)
    return pd.concat([table, other], ignore_index=True)


def test_a_line_a_method_begins_at_plain_sgd(drawn):
    table = with_another_method(trained())
    figure, points = drawn(table, lines="method", columns="activation", colours={})
    assert (points["members"] == SEEDS).all()
    titles = [f"{panel}\n{phi}" for panel in PANELS for phi in ("ReLU", "GELU")]
    assert [axes.get_title() for axes in figure.axes] == titles
    plain = 100 * table[table["method"] == "sgd"].groupby(["panel", "activation"])["test_accuracy"].mean()
    for axes, (panel, phi) in zip(figure.axes, [(p, a) for p in PANELS for a in ("relu", "gelu")], strict=True):
        found = lines(axes)
        assert set(found) == {"gradient penalty", "SAM"}
        for line in found.values():
            assert line.get_xdata().tolist() == list(STRENGTHS)
            assert line.get_ydata()[0] == pytest.approx(plain[panel, phi])
        np.testing.assert_allclose(found["SAM"].get_ydata()[1:], 10)


def test_groups_of_activations_are_columns(drawn):
    names = ["relu", "augmented_relu", "gelu"]
    figure, points = drawn(trained(names=names), groups=[["relu", "augmented_relu"], ["gelu", "relu"]])
    assert [set(lines(axes)) for axes in figure.axes] == [{"ReLU", "augmented ReLU"}, {"GELU", "ReLU"}] * 2
    assert [axes.get_title() for axes in figure.axes] == [panel for panel in PANELS for _ in range(2)]
    assert len(points) == 2 * 4 * 3


def test_train_and_test_accuracy_are_columns(drawn):
    table = trained().assign(train_accuracy=0.95)
    figure, points = drawn(table, columns="split")
    assert [axes.get_title() for axes in figure.axes] == [
        f"{panel}\n{split} accuracy" for panel in PANELS for split in ("train", "test")
    ]
    for axes in figure.axes[::2]:
        np.testing.assert_allclose([*lines(axes)["GELU"].get_ydata()], 95)
    assert set(points["column"]) == {"train accuracy", "test accuracy"}


def test_against_a_parameter_each_method_has_its_strength_in_the_legend(drawn):
    names = [f"beta_gelu-beta={beta}" for beta in (1, 2, 8)]
    table = trained(names=names)
    figure, points = drawn(table[table["strength"] < 0.3], x="beta", lines="method")
    for axes in figure.axes:
        assert set(lines(axes)) == {"SGD", "gradient penalty, ρ = 0.1"}
        assert all(line.get_xdata().tolist() == [1, 2, 8] for line in lines(axes).values())
        assert levels(axes) == []
    assert set(points["beta"]) == {1, 2, 8}


def test_recipes_of_the_same_title_are_not_averaged_together(drawn):
    figure, points = drawn(trained(panels=("same", "same")))
    assert (points["members"] == SEEDS).all()
    for axes in figure.axes:
        for line in lines(axes).values():
            assert len(set(line.get_xdata())) == len(line.get_xdata()), "no point is drawn twice"
    assert len(figure.axes) == 2


def test_the_footer_says_scale_seeds_and_divergence(drawn):
    figure, _ = drawn(trained())
    for part in ("scale tiny", "over 3 seeds", "no seed diverged", "strength ρ"):
        assert part in footer(figure)
    figure, _ = drawn(trained(diverged=some))
    assert "n of 3 seeds diverged" in footer(figure)
    figure, _ = drawn(trained(seeds=1), seeds=1)
    assert "over 1 seed " in footer(figure) + " "


def test_diverged_members_are_marked_with_their_number(drawn):
    figure, _ = drawn(trained(diverged=some))
    for axes in figure.axes:
        crosses = [text for text in axes.texts if "×" in text.get_text()]
        assert [text.get_text() for text in crosses] == ["×1", "×1"]
        assert [text.xy[0] for text in crosses] == [0.3, 0.3]
    figure, _ = drawn(trained())
    assert not any("×" in text.get_text() for axes in figure.axes for text in axes.texts)


def test_a_mean_far_below_the_others_is_named_at_the_edge(drawn):
    table = trained()
    table.loc[table["strength"] == 0.3, "test_accuracy"] = 0.12
    figure, points = drawn(table)
    for axes in figure.axes:
        low = [text for text in axes.texts if text.get_text() == "▼12"]
        assert [text.xy[0] for text in low] == [0.3, 0.3]
        assert axes.get_ylim()[0] > 12
    assert (points.loc[points["strength"] == 0.3, "accuracy_percent"].round(6) == 12).all()
    assert "▼ mean below the axis" in footer(figure)


def test_the_interval_of_a_mean_below_the_axis_takes_no_room(drawn):
    """Its upper end is near 100 %; the other accuracies, and their intervals, end below 95 %."""
    table = trained()
    table.loc[table["strength"] == 0.3, "test_accuracy"] = 0.12
    narrow, _ = drawn(table)
    table.loc[(table["strength"] == 0.3) & (table["seed"] == 0), "test_accuracy"] = 0.62
    wide, points = drawn(table)
    assert (points.loc[points["strength"] == 0.3, "ci95_high"] > 95).all()
    assert [axes.get_ylim() for axes in wide.axes] == [axes.get_ylim() for axes in narrow.axes]


def test_a_mean_slightly_below_the_others_has_room(drawn):
    """The smallest error is 10 %, so errors up to 25 % are shown; 28 % takes a fifth more."""
    table = trained()
    table["test_accuracy"] = 0.9
    table.loc[table["strength"] == 0.3, "test_accuracy"] = 0.72
    figure, _ = drawn(table)
    assert "▼" not in footer(figure)
    assert all(axes.get_ylim()[0] < 72 for axes in figure.axes)


def test_the_footer_explains_an_arrow_exactly_where_there_is_one(drawn):
    """All means of one panel are far better; none of the other panel's means is below its own axis."""
    table = trained()
    first = table["panel"] == PANELS[0]
    table.loc[first, "test_accuracy"] = 0.99 + 0.001 * table.loc[first, "seed"]
    table.loc[~first, "test_accuracy"] = 0.6 + 0.01 * table.loc[~first, "seed"]
    figure, _ = drawn(table)
    arrows = [text for axes in figure.axes for text in axes.texts if "▼" in text.get_text()]
    assert ("▼" in footer(figure)) == bool(arrows)


def test_a_point_whose_members_all_diverged_has_no_mean(drawn):
    figure, _ = drawn(trained(diverged=lambda name, strength, seed: strength == 0.3))
    for axes in figure.axes:
        assert np.isnan(lines(axes)["GELU"].get_ydata()).tolist() == [False, False, True]


# ---------------------------------------------------------------- mistakes


def test_an_unknown_figure_is_one_message():
    with pytest.raises(NmeError, match=r"unknown figure 'fig11'; did you mean 'fig1'\?"):
        check(PlotSpec, {"figure": "fig11", "scale": "tiny", "version": 1}, "--spec")


def test_a_missing_table_is_one_message(tmp_path):
    table = tmp_path / "t.parquet"
    with pytest.raises(NmeError, match=re.escape(str(table))):
        plot(PlotSpec(figure="fig1", scale="tiny", version=1), table, tmp_path / "f.pdf")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_drawing_leaves_no_file(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("No space left on device")

    make = curves.draw

    def broken(*arguments):
        figure, numbers = make(*arguments)
        monkeypatch.setattr(figure, "savefig", fail)
        return figure, numbers

    monkeypatch.setattr(curves, "draw", broken)
    with pytest.raises(OSError, match="No space"):
        draw(PROJECT, CURVES[0], table_of(PROJECT, CURVES[0]), tmp_path)
    assert list((tmp_path / "out").iterdir()) == []
    pyplot.close("all")


# ------------------------------------------------------------------ colours


def test_a_configured_colour_is_kept_and_others_are_free():
    chosen = {"relu": style.FALLBACK[0]}
    names = ["gelu", "relu", *(f"beta_gelu-beta={b}" for b in range(1, 6))]
    colours = style.colours(chosen, names)
    assert set(colours) == set(names)
    assert colours["relu"] == style.FALLBACK[0]
    assert len(set(colours.values())) == len(names), "as long as there are enough, no two are the same"


def test_more_names_than_colours_get_one_each():
    names = [str(i) for i in range(20)]
    assert set(style.colours({}, names)) == set(names)
