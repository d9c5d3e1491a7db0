"""Figures: drawn from a table alone, without warnings, with everything in it, the same bytes each time."""

import json
import os
import subprocess
import sys
import warnings
from importlib import import_module
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from matplotlib import pyplot

from nme import parquet
from nme.config import load_project
from nme.errors import NmeError
from nme.figures import curves, drawable, plot, style
from nme.grid import plot_spec

ROOT = Path(__file__).parents[2]
PROJECT = load_project({"scale": "tiny"}, ROOT / "config")

SEEDS = 3
PANELS = ("MNIST-1D", "Digits")
STRENGTHS = (0, 0.1, 0.3)


def trained(names=("relu", "gelu"), diverged=lambda name, strength, seed: False, panels=PANELS, seeds=SEEDS):
    """A table as the tables stage makes it."""
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


def landscape(names=("relu", "beta_gelu-beta=4"), points=7):
    """A table as the landscape stage makes it; one pre-activation changes its sign, one does not."""
    line = np.linspace(-3, 3, points)
    across, up = (w.ravel() for w in np.meshgrid(line, line, indexing="ij"))
    parts = [
        pd.DataFrame(
            {
                "activation": name,
                "w_a": across,
                "w_b": up,
                "loss": (across - 1) ** 2 + up**2,
                "nme": np.abs(across * up),
                "preactivation_0": across + 0.3,
                "preactivation_1": np.ones_like(up),
            }
        )
        for name in names
    ]
    return pd.concat(parts, ignore_index=True)


def grid_record(seeds: int = SEEDS) -> dict:
    return {"spec": {"scale": "tiny", "seeds": seeds}}


CASES = {
    "every loss finite": lambda name, strength, seed: False,
    "some diverged": lambda name, strength, seed: strength == 0.3 and seed == 1,
    "all of a point": lambda name, strength, seed: strength == 0.3,
    "one is left": lambda name, strength, seed: strength == 0.1 and seed > 0,
    "all without a penalty": lambda name, strength, seed: strength == 0,
    "all": lambda name, strength, seed: True,
}
GRID_FIGURES = [name for name, figure in PROJECT.figures.items() if figure.grid]
LANDSCAPES = [name for name, figure in PROJECT.figures.items() if figure.landscape]


@pytest.fixture(autouse=True)
def _coarse(monkeypatch):
    """Fewer pixels, to save time."""
    monkeypatch.setitem(style.RC, "savefig.dpi", 50)


def draw(name: str, table: pd.DataFrame, folder: Path, record: dict | None = None) -> dict[str, bytes]:
    """The files of a figure, drawn with every warning an error."""
    path = folder / "table.parquet"
    parquet.write(pa.Table.from_pandas(table, preserve_index=False), path, record or grid_record())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot(plot_spec(PROJECT, name), path, folder / "out" / f"{name}.pdf")
    assert not pyplot.get_fignums(), "a figure that is not closed stays in memory"
    return {p.suffix: p.read_bytes() for p in (folder / "out").iterdir()}


def assert_files(files: dict[str, bytes]) -> None:
    assert set(files) == {".pdf", ".png", ".csv"}
    assert files[".pdf"].startswith(b"%PDF")
    assert files[".png"].startswith(b"\x89PNG")


# ------------------------------------------------------------ every figure


def test_each_figure_has_a_table_here():
    assert sorted(GRID_FIGURES + LANDSCAPES) == drawable()


@pytest.mark.parametrize("name", GRID_FIGURES)
@pytest.mark.parametrize("case", CASES)
def test_grid_figures_draw(tmp_path, name, case):
    files = draw(name, trained(diverged=CASES[case]), tmp_path)
    assert_files(files)
    numbers = pd.read_csv(tmp_path / "out" / f"{name}.csv")
    assert len(numbers) == len(PANELS) * 2 * len(STRENGTHS)
    assert (numbers["members"] == SEEDS).all()
    expected = [sum(CASES[case](r.activation, r.strength, seed) for seed in range(SEEDS)) for r in numbers.itertuples()]
    assert numbers["diverged"].tolist() == expected
    values = numbers["test_accuracy_percent"]
    assert values.isna().tolist() == [lost == SEEDS for lost in expected]
    assert numbers["ci95_low"].isna().tolist() == [SEEDS - lost < 2 for lost in expected]
    assert values.dropna().between(50, 90).all(), "in percent"


@pytest.mark.parametrize("name", GRID_FIGURES)
def test_grid_figures_draw_one_panel_and_one_seed(tmp_path, name):
    assert_files(draw(name, trained(panels=PANELS[:1], seeds=1), tmp_path, grid_record(seeds=1)))


@pytest.mark.parametrize("name", LANDSCAPES)
def test_landscapes_draw(tmp_path, name):
    table = landscape()
    assert_files(draw(name, table, tmp_path))
    numbers = pd.read_csv(tmp_path / "out" / f"{name}.csv")
    expected = table[["activation", "w_a", "w_b", "loss", "nme"]]
    pd.testing.assert_frame_equal(numbers, expected, check_dtype=False, rtol=1e-5)


DRAW_ALL = """
import json, sys
from pathlib import Path
from nme.figures import plot, style
style.RC["savefig.dpi"] = 50
for table, spec in json.loads(sys.argv[1]).items():
    plot(spec, Path(table), Path(spec["figure"] + ".pdf"))
assert "torch" not in sys.modules, "drawing needs no torch"
"""


def test_the_same_table_is_the_same_bytes(tmp_path):
    """In two processes, as what depends on the time or on the order in a set would show only there."""
    jobs = {}
    for name in GRID_FIGURES + LANDSCAPES:
        table = trained(diverged=CASES["some diverged"]) if name in GRID_FIGURES else landscape()
        path = tmp_path / f"{name}.parquet"
        parquet.write(pa.Table.from_pandas(table, preserve_index=False), path, grid_record())
        jobs[str(path)] = plot_spec(PROJECT, name)
    drawn = []
    for seed in ("1", "2"):
        (tmp_path / seed).mkdir()
        command = [sys.executable, "-c", DRAW_ALL, json.dumps(jobs)]
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(command, cwd=tmp_path / seed, env=environment, check=True)
        drawn.append({path.name: path.read_bytes() for path in (tmp_path / seed).iterdir()})
    assert len(drawn[0]) == 3 * len(jobs)
    assert drawn[0] == drawn[1]
    assert not any(b"CreationDate" in content for name, content in drawn[0].items() if name.endswith(".pdf"))


@pytest.mark.parametrize("name", GRID_FIGURES)
def test_another_table_is_other_bytes(tmp_path, name):
    table = trained()
    other = table.assign(test_accuracy=table["test_accuracy"] - 0.1)
    first, second = (draw(name, t, tmp_path / f) for t, f in ((table, "one"), (other, "other")))
    assert all(first[ending] != second[ending] for ending in first)


# ------------------------------------------------- what a grid figure shows


@pytest.fixture
def drawn():
    """Draws accuracy against strength; the figure can be looked into."""

    def make(table, record=None, spec=None):
        spec = spec or {"activation": {"relu": "#0072B2"}}
        with pyplot.rc_context(style.RC):
            return curves.accuracy_against_strength(table, spec, record or grid_record(), "strength")

    yield make
    pyplot.close("all")


def lines(axes) -> dict[str, object]:
    return {line.get_label(): line for line in axes.lines if not line.get_label().startswith("_")}


def footer(figure) -> str:
    return " ".join(text.get_text() for text in figure.texts)


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


def assert_no_point_is_drawn_twice(figure) -> None:
    for axes in figure.axes:
        for line in lines(axes).values():
            assert len(set(line.get_xdata())) == len(line.get_xdata())


def test_methods_are_not_averaged_together(drawn):
    table = trained()
    other = table[table["strength"] > 0].assign(method="grad_norm-p=2", test_accuracy=0.1)
    figure, points = drawn(pd.concat([table, other], ignore_index=True))
    assert (points["members"] == SEEDS).all()
    assert_no_point_is_drawn_twice(figure)


def test_recipes_of_the_same_title_are_not_averaged_together(drawn):
    figure, points = drawn(trained(panels=("same", "same")))
    assert (points["members"] == SEEDS).all()
    assert_no_point_is_drawn_twice(figure)
    assert len(figure.axes) == 2


def test_the_footer_says_scale_seeds_and_divergence(drawn):
    figure, _ = drawn(trained())
    for part in ("scale tiny", "over 3 seeds", "every loss finite"):
        assert part in footer(figure)
    figure, _ = drawn(trained(diverged=CASES["some diverged"]))
    assert "loss not finite: 4 of 36" in footer(figure)
    figure, _ = drawn(trained(seeds=1), grid_record(seeds=1))
    assert "over 1 seed " in footer(figure) + " "


def test_diverged_members_are_marked_with_their_number(drawn):
    figure, _ = drawn(trained(diverged=CASES["some diverged"]))
    for axes in figure.axes:
        crosses = [text for text in axes.texts if "×" in text.get_text()]
        assert [text.get_text() for text in crosses] == ["× 1/3", "× 1/3"]
        assert [text.xy[0] for text in crosses] == [0.3, 0.3]
    figure, _ = drawn(trained())
    assert not any("×" in text.get_text() for axes in figure.axes for text in axes.texts)


def test_a_mean_far_below_the_others_is_named_at_the_edge(drawn):
    table = trained()
    table.loc[table["strength"] == 0.3, "test_accuracy"] = 0.12
    figure, points = drawn(table)
    for axes in figure.axes:
        low = [text for text in axes.texts if text.get_text() == "▼ 12"]
        assert [text.xy[0] for text in low] == [0.3, 0.3]
        assert axes.get_ylim()[0] > 12
    assert (points.loc[points["strength"] == 0.3, "test_accuracy_percent"].round(6) == 12).all()


def test_a_point_whose_members_all_diverged_has_no_mean(drawn):
    figure, _ = drawn(trained(diverged=CASES["all of a point"]))
    for axes in figure.axes:
        assert np.isnan(lines(axes)["GELU"].get_ydata()).tolist() == [False, False, True]


# ---------------------------------------------------------------- mistakes


def message(*arguments) -> str:
    with pytest.raises(NmeError) as caught:
        plot(*arguments)
    return str(caught.value)


def test_an_unknown_figure_is_one_message(tmp_path):
    text = message({"figure": "fig22"}, tmp_path / "t.parquet", tmp_path / "f.pdf")
    assert "unknown figure 'fig22'; did you mean 'fig2'?" in text


def test_a_missing_table_is_one_message(tmp_path):
    assert str(tmp_path / "t.parquet") in message({"figure": "fig2"}, tmp_path / "t.parquet", tmp_path / "f.pdf")
    assert list(tmp_path.iterdir()) == []


def test_a_failed_drawing_leaves_no_file(tmp_path, monkeypatch):
    def fail(*arguments, **options):
        raise OSError("No space left on device")

    module = import_module("nme.figures.fig2")
    make = module.draw

    def broken(*arguments):
        figure, numbers = make(*arguments)
        monkeypatch.setattr(figure, "savefig", fail)
        return figure, numbers

    monkeypatch.setattr(module, "draw", broken)
    with pytest.raises(OSError, match="No space"):
        draw("fig2", trained(), tmp_path)
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
