"""Mistakes in the configuration: each is one line that says how to mend it."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from nme.config.figure import DRAWINGS
from nme.config.project import Project, load_project
from nme.errors import NmeError
from nme.grid import cells as grid_cells

ROOT = Path(__file__).parents[2]
SCALES = sorted(path.stem for path in (ROOT / "config/scales").glob("*.yaml"))

ABSENT = "(absent)"
MEASURE = {"at": "ends", "quantities": ["second_derivatives"]}
CONTRAST = {"name": "x", "plus": ["gelu/sgd"], "minus": ["relu/sgd"], "expect": "positive"}
CLAIM = {"number": 1, "says": "x", "figure": "fig2", "contrasts": [CONTRAST]}
LANDSCAPE = {"activation": ["relu"], "widths": [2, 4], "points": 5, "half_width": 1, "seed": 0}


class Folder:
    """A copy of config/ to make mistakes in."""

    def __init__(self, path: Path):
        self.path = path
        shutil.copytree(ROOT / "config", path)

    def set(self, file: str, key: str, value: object) -> None:
        """Set, or with ABSENT delete, the value at a key like ``recipes.digits_mlp.epochs``."""
        values = yaml.safe_load((self.path / file).read_text())
        node = values = json.loads(json.dumps(values))  # what an anchor shares is changed in one place only
        *parents, last = key.split(".")
        for parent in parents:
            node = node[parent]
        if value == ABSENT:
            del node[last]
        else:
            node[last] = value
        (self.path / file).write_text(yaml.safe_dump(values))

    def load(self, **values: object) -> Project:
        """The project at the tiny scale, or as the keys say."""
        return load_project({"scale": "tiny", **values}, self.path)

    def message(self, **values: object) -> str:
        with pytest.raises(NmeError) as caught:
            self.load(**values)
        return str(caught.value)


@pytest.fixture
def folder(tmp_path) -> Folder:
    return Folder(tmp_path / "config")


# ------------------------------------------------------ the shipped files


@pytest.mark.parametrize("scale", SCALES)
def test_shipped_configurations_load(scale):
    project = load_project({"scale": scale}, ROOT / "config")
    assert project.scale.recipes
    assert set(project.figures) == {path.stem for path in (ROOT / "config/figures").glob("*.yaml")}


def test_the_users_page_loads():
    values = yaml.safe_load((ROOT / "config/config.yaml").read_text())
    project = load_project(values, ROOT / "config")
    assert (project.config.scale, project.config.device, project.config.data_dir) == ("laptop", "cpu", None)


def test_every_figure_has_a_drawing_and_every_drawing_a_figure():
    figures = load_project({"scale": "tiny"}, ROOT / "config").figures
    assert sorted(name for name, figure in figures.items() if not figure.curves) == sorted(DRAWINGS)


# --------------------------------------------------------------- mistakes

SCALE, FIGURE, STYLE = "scales/tiny.yaml", "figures/fig2.yaml", "style.yaml"
OVER_BETA, MEASURES, CLAIMS = "figures/fig3.yaml", "figures/fig6.yaml", "figures/claims.yaml"
MAP = "figures/map.yaml"
DATASETS_ALLOWED = "(allowed: cifar10, digits, fashion_mnist, imagenet, imagenette, mnist1d)"
TINY = yaml.safe_load((ROOT / "config/scales/tiny.yaml").read_text())
AXES_ALLOWED, PANELS_ALLOWED = (f"(allowed: {', '.join(sorted(TINY[key]))})" for key in ("axes", "panels"))
ONE_SOURCE = "give exactly one of 'grid', 'landscape', 'claims' and 'map'"
NUMBER_ALLOWED = "(allowed: 0 or a number from 1e-12 to 1e12)"

# File, key, wrong value; what the message has to say: the key, the value, what is allowed, the nearest name.
MISTAKES = [
    # names
    (FIGURE, "grid.activation", ["relu", "gleu"],
     ["grid.activation.1", "activation 'gleu'", "did you mean 'gelu'?", "(allowed: augmented_relu,"]),
    (FIGURE, "grid.method", {"gradnorm": "rho"},
     ["grid.method.gradnorm", "method 'gradnorm'", "did you mean 'grad_norm'?", "(allowed: ", "sgd"]),
    (FIGURE, "grid.method", {"grad_norm-p=3": "rho"}, ["grid.method.grad_norm-p=3", "p is 3", "(allowed: 1, 2)"]),
    # A name that needs a number is no complete name here: nothing else would give it.
    (FIGURE, "grid.activation", ["beta_gelu"], ["grid.activation.0", "'beta_gelu' needs a value for 'beta'"]),
    (FIGURE, "grid.method", {"grad_norm": "roh"},
     ["grid.method", "axis of scale 'tiny' 'roh'", "did you mean 'rho'?", AXES_ALLOWED]),
    (FIGURE, "grid.panels", "al",
     ["grid.panels", "list of panels of scale 'tiny' 'al'", "did you mean 'all'?", PANELS_ALLOWED]),
    (OVER_BETA, "grid.activation", ["relu", "beta_gelu-beta={bta}"],
     ["grid.activation", "axis of scale 'tiny' 'bta'", "did you mean 'beta'?", AXES_ALLOWED]),
    (OVER_BETA, "grid.method", {"hessian_trace-k={prbes}": "rho"},
     ["grid.method", "axis of scale 'tiny' 'prbes'", "did you mean 'probes'?", AXES_ALLOWED]),
    (OVER_BETA, "grid.activation", ["beta_gelu-bta={beta}"],
     ["grid.activation.0", "parameter of activation 'beta_gelu' 'bta'", "did you mean 'beta'?", "(allowed: beta)"]),
    (OVER_BETA, "grid.activation", ["beta_gulu-beta={beta}"],
     ["grid.activation.0", "activation 'beta_gulu'", "did you mean 'beta_gelu'?", "(allowed: augmented_relu,"]),
    (SCALE, "panels.all", ["mnist1d_cnn", "digits_mpl"],
     ["panels.all", "recipe of this scale 'digits_mpl'", "did you mean 'digits_mlp'?", "(allowed: digits_mlp, "]),
    (FIGURE, "kind", "papper", ["kind", "'papper'", "'paper', 'supplementary' or 'claims'"]),
    (FIGURE, "curves.lines", "activations", ["curves.lines is 'activations'", "'activation' or 'method'"]),
    (MEASURES, "measure.at", "end", ["measure.at", "axis of scale 'tiny' 'end'", "did you mean 'ends'?", AXES_ALLOWED]),
    (MEASURES, "measure.quantities", ["second_derivative"],
     ["measure.quantities.0", "quantity 'second_derivative'", "did you mean 'second_derivatives'?", "(allowed: "]),
    ("figures/fig1.yaml", "landscape.activation", ["relo"],
     ["landscape.activation.0", "activation 'relo'", "did you mean 'relu'?"]),
    (SCALE, "figure_seeds", {"fig22": 4},
     ["figure_seeds", "figure with members 'fig22'", "did you mean 'fig2'?", "(allowed: ablation,"]),
    (SCALE, "figure_seeds", {"claims": 4}, ["figure_seeds", "figure with members 'claims'"]),
    (SCALE, "figure_seeds", {"fig2": 0}, ["figure_seeds.fig2 is 0", "greater than 0"]),
    (SCALE, "figure_seeds", {"fig2": 3},
     ["figure_seeds.fig2 is 3", "(allowed with figure_seeds: multiples of recipes.digits_mlp.seeds_per_job, 2)"]),
    (SCALE, "datasets.digts", {},
     
     ["datasets.digts", "dataset 'digts'", "did you mean 'digits'?", DATASETS_ALLOWED, "or name one as its 'source'"]),
    (SCALE, "recipes.digits_mlp.dataset", "digit",
     ["recipes.digits_mlp.dataset", "dataset of this scale 'digit'", "did you mean 'digits'?",
      "(allowed: digits, mnist1d)"]),
    # Registered, but the scale has none of it.
    (SCALE, "recipes.digits_mlp.dataset", "cifar10",
     ["recipes.digits_mlp.dataset", "dataset of this scale 'cifar10'", "(allowed: digits, mnist1d)"]),
    (SCALE, "datasets.noisy", {"source": "digts"},
     ["datasets.noisy.source", "dataset 'digts'", "did you mean 'digits'?", DATASETS_ALLOWED]),
    (SCALE, "datasets.noisy", {"source": 3}, ["datasets.noisy.source is 3", "string"]),
    (SCALE, "datasets.Noisy", {"source": "digits"}, ["datasets.Noisy", "[a-z]"]),
    (SCALE, "datasets.digits.label_noise", -0.1, ["datasets.digits.label_noise is -0.1", "greater than or equal to 0"]),
    (SCALE, "datasets.digits.label_noise", 1.5, ["datasets.digits.label_noise is 1.5", "less than or equal to 1"]),
    (SCALE, "datasets.digits.label_noise", "x", ["datasets.digits.label_noise is 'x'", "number"]),
    (SCALE, "datasets.large", {"source": "imagenette", "short_side": 256, "quality": 90, "label_noise": 0.1},
     ["datasets.large.label_noise is 0.1", "(allowed: 0, where 'imagenette' is streamed)"]),
    (SCALE, "recipes.digits_mlp.model.name", "mpl",
     ["recipes.digits_mlp.model.name", "model 'mpl'", "did you mean 'mlp'?", "(allowed: cnn, mlp, "]),
    (SCALE, "recipes.digits_mlp.model.name", ABSENT, ["recipes.digits_mlp.model.name", "missing"]),
    (SCALE, "recipes.digits_mlp.augment", "flip",
     ["recipes.digits_mlp.augment", "'flip'", "'none', 'crop_flip' or 'resized_crop_flip'"]),
    (SCALE, "recipes.mnist1d_cnn.channels_last", True,
     ["recipes.mnist1d_cnn", "channels_last is true", "'mnist1d' has inputs (1, 40)", "(allowed: false)"]),
    (SCALE, "recipes.mnist1d_cnn.augment", "crop_flip",
     ["recipes.mnist1d_cnn", "augment is 'crop_flip'", "'mnist1d'", "(allowed: none)"]),
    # streamed datasets, and those in memory
    (SCALE, "recipes.digits_mlp.resolution", 224,
     ["recipes.digits_mlp", "resolution is 224 for 'digits' (allowed: null: its inputs have one size)"]),
    (SCALE, "recipes.digits_mlp.resolution", 0, ["recipes.digits_mlp.resolution is 0", "greater than 0"]),
    (SCALE, "recipes.digits_mlp.augment", "resized_crop_flip",
     ["recipes.digits_mlp", "augment is 'resized_crop_flip'", "images of one size", "(allowed: none, crop_flip)"]),
    (SCALE, "datasets.digits", {"source": "imagenette", "short_side": 256, "quality": 90},
     ["recipes.digits_mlp", "resolution is null for 'digits' (allowed: a number of px, as 224)"]),
    (SCALE, "datasets.imagenette", {"quality": 90},
     ["datasets.imagenette.short_side is null (allowed: a number)"]),
    (SCALE, "datasets.imagenette", {"short_side": 256},
     ["datasets.imagenette.quality is null (allowed: a number)"]),
    (SCALE, "datasets.imagenette", {"short_side": 0, "quality": 90},
     ["datasets.imagenette.short_side is 0", "greater than 0"]),
    (SCALE, "datasets.imagenette", {"short_side": 256, "quality": 96},
     ["datasets.imagenette.quality is 96", "less than or equal to 95"]),
    (SCALE, "datasets.digits.short_side", 256,
     ["datasets.digits.short_side is 256 (allowed: null: it is not stored as JPEG)"]),
    (SCALE, "datasets.mnist1d.quality", 90,
     ["datasets.mnist1d.quality is 90 (allowed: null: it is not stored as JPEG)"]),
    (SCALE, "axes.Rho", [1], ["axes.Rho", "'Rho'", "[a-z]"]),
    (STYLE, "activation.gleu", "#000000", ["activation.gleu", "'gleu'", "did you mean 'gelu'?"]),
    (STYLE, "activation.relu", "black", ["activation.relu", "'black'", "#"]),
    (STYLE, "method.grad_nrom", "#000000", ["method.grad_nrom", "'grad_nrom'", "did you mean 'grad_norm'?"]),
    # keys
    (SCALE, "sedes", 3,
     ["key 'sedes'", "did you mean 'seeds'?", "(allowed: axes, datasets, figure_seeds, measurement, panels, recipes,"]),
    (SCALE, "recipes.digits_mlp.warmup_epoch", 1,
     ["recipes.digits_mlp", "key 'warmup_epoch'", "did you mean 'warmup_epochs'?", "batch_size"]),
    (SCALE, "recipes.mnist1d_cnn.model.chanels", [8],
     ["recipes.mnist1d_cnn.model", "key 'chanels'", "did you mean 'channels'?",
      "(allowed: batch_norm, channels, kernel, name, stride)"]),
    (SCALE, "recipes.digits_mlp.model.channels", [8],
     ["recipes.digits_mlp.model", "key 'channels'", "(allowed: batch_norm, name, widths)"]),
    (SCALE, "datasets.digits.trian", 10,
     ["datasets.digits", "key 'trian'", "did you mean 'train'?",
      "(allowed: label_noise, quality, short_side, source, test, train)"]),
    (FIGURE, "captoin", "x", ["key 'captoin'", "did you mean 'caption'?", "landscape"]),
    (FIGURE, "grid.activations", ["relu"],
     ["grid", "key 'activations'", "did you mean 'activation'?", "(allowed: activation, method, panels)"]),
    ("figures/fig1.yaml", "landscape.point", 3,
     ["landscape", "key 'point'", "did you mean 'points'?", "half_width"]),
    (STYLE, "activations", {},
     ["key 'activations'", "did you mean 'activation'?", "(allowed: activation, method, operator)"]),
    (FIGURE, "curves.xlabel", "ρ",
     ["curves", "key 'xlabel'", "did you mean 'x_label'?", "(allowed: columns, groups, lines, x, x_label)"]),
    (MEASURES, "measure.when", "ends", ["measure", "key 'when'", "(allowed: at, quantities)"]),
    (SCALE, "measurement.example", 5, ["measurement", "key 'example'", "did you mean 'examples'?"]),
    (CLAIMS, "claims.smallest", 1,
     ["claims", "key 'smallest'", "did you mean 'smallest_effect'?", "(allowed: list, smallest_effect)"]),
    (FIGURE, "grid.panels", ABSENT, ["grid.panels", "missing"]),
    (SCALE, "seeds", ABSENT, ["seeds", "missing"]),
    (SCALE, "recipes.digits_mlp.epochs", ABSENT, ["recipes.digits_mlp.epochs", "missing"]),
    # numbers
    (SCALE, "seeds", 0, ["seeds is 0", "greater than 0"]),
    (SCALE, "seeds", -1, ["seeds is -1", "greater than 0"]),
    (SCALE, "seeds", 1.5, ["seeds is 1.5", "integer"]),
    (SCALE, "seeds", "many", ["seeds is 'many'", "integer"]),
    (SCALE, "axes.rho", [0, -0.1], ["axes.rho.1", "-0.1", NUMBER_ALLOWED]),
    (SCALE, "axes.rho", [0, float("nan")], ["axes.rho.1", "nan", NUMBER_ALLOWED]),
    (SCALE, "axes.rho", [0, float("inf")], ["axes.rho.1", "inf", NUMBER_ALLOWED]),
    (SCALE, "axes.rho", [0, "small"], ["axes.rho.1", "'small'", NUMBER_ALLOWED]),
    (SCALE, "axes.rho", [None], ["axes.rho.0", "None", NUMBER_ALLOWED]),
    (SCALE, "axes.rho", [True], ["axes.rho.0", "True", NUMBER_ALLOWED]),
    (SCALE, "axes.rho", [10**400], ["axes.rho.0", NUMBER_ALLOWED]),
    (SCALE, "axes.rho", 0.1, ["axes.rho is 0.1", "list"]),
    (SCALE, "recipes.digits_mlp.batch_size", 0, ["recipes.digits_mlp.batch_size is 0", "greater than 0"]),
    (SCALE, "recipes.digits_mlp.batch_size", 100000, ["batch_size is 100000 (allowed: up to", "training examples"]),
    (SCALE, "recipes.digits_mlp.epochs", 0, ["recipes.digits_mlp.epochs is 0", "greater than 0"]),
    (SCALE, "recipes.digits_mlp.learning_rate", float("nan"),
     ["recipes.digits_mlp.learning_rate is nan", "finite"]),
    (SCALE, "recipes.digits_mlp.learning_rate", 0,
     ["recipes.digits_mlp.learning_rate is 0", "greater than 0"]),
    (SCALE, "recipes.digits_mlp.weight_decay", -1, ["recipes.digits_mlp.weight_decay is -1", "equal to 0"]),
    (SCALE, "recipes.digits_mlp.momentum", 1, ["recipes.digits_mlp.momentum is 1", "less than 1"]),
    (SCALE, "recipes.digits_mlp.warmup_epochs", 3,
     ["recipes.digits_mlp", "warmup_epochs is 3", "(allowed: less than epochs, 3)"]),
    (SCALE, "recipes.digits_mlp.model.widths", [0],
     ["recipes.digits_mlp.model.widths.0 is 0", "greater than 0"]),
    (SCALE, "recipes.mnist1d_cnn.model.stride", [2, 0],
     ["recipes.mnist1d_cnn.model.stride is [2, 0] (allowed: an integer from 1, or a list with one for each layer)"]),
    (SCALE, "recipes.mnist1d_cnn.model.stride", [2, 1, 2],
     ["recipes.mnist1d_cnn.model: stride is [2, 1, 2]", "(allowed: one number, or a list of 2, as many as 'channels'"]),
    (SCALE, "datasets.digits.train", 0, ["datasets.digits.train is 0", "greater than 0"]),
    (SCALE, "measurement.examples", 0, ["measurement.examples is 0", "greater than 0"]),
    (CLAIMS, "claims.smallest_effect", 1, ["claims.smallest_effect is 1", "dictionary"]),
    (CLAIMS, "claims.smallest_effect", {"points": 0}, ["claims.smallest_effect.points is 0", "greater than 0"]),
    (CLAIMS, "claims.smallest_effect", {"percent": -5}, ["claims.smallest_effect.percent is -5", "greater than 0"]),
    (CLAIMS, "claims.smallest_effect", {"point": 1},
     ["claims.smallest_effect", "key 'point'", "did you mean 'points'?", "(allowed: percent, points)"]),
    # Of the training, not beyond its end.
    (SCALE, "axes.ends", [0, 0.5, 1.5], ["axes.ends has 1.5", "(allowed: fractions, 0 to 1)"]),
    ("figures/fig1.yaml", "landscape.half_width", float("inf"), ["landscape.half_width is inf", "finite"]),
    # The two weights that are varied are weight 0 of unit 0 and weight 1 of unit 1: two inputs, two units.
    ("figures/fig1.yaml", "landscape.widths", [1, 4], ["landscape.widths", "1", "2"]),
    ("figures/fig1.yaml", "landscape.widths", [2, 1], ["landscape.widths", "1", "2"]),
    # lists
    (SCALE, "axes.rho", [], ["axes.rho is []", "at least 1"]),
    (SCALE, "axes.rho", [0.1, 0.2, 0.1], ["axes.rho", "0.1 is listed more than once"]),
    (SCALE, "axes.rho", [0, 0.2, -0.0], ["axes.rho", "0 is listed more than once"]),
    (SCALE, "recipes.digits_mlp.model.widths", [], ["recipes.digits_mlp.model.widths is []", "at least 1"]),
    (FIGURE, "grid.activation", [], ["grid.activation is []", "at least 1"]),
    (FIGURE, "grid.method", {}, ["grid.method is {}", "at least 1"]),
    (FIGURE, "grid.method", ["grad_norm"], ["grid.method is ['grad_norm']", "dictionary"]),
    (SCALE, "panels.all", [], ["panels.all is []", "at least 1"]),
    (SCALE, "panels.all", ["digits_mlp"] * 2, ["panels.all", "digits_mlp is listed more than once"]),
    (MEASURES, "measure.quantities", [], ["measure.quantities is []", "at least 1"]),
    (MEASURES, "measure.quantities", ["second_derivatives"] * 2,
     ["measure.quantities", "second_derivatives is listed more than once"]),
    (CLAIMS, "claims.list", [], ["claims.list is []", "at least 1"]),
    (FIGURE, "grid.activation", ["relu", "gelu", "relu"],
     ["grid.activation", "relu is listed more than once"]),
    (FIGURE, "grid.activation", ["augmented_relu", "augmented_relu-beta=1.0"],
     ["grid.activation", "augmented_relu is listed more than once"]),
    (FIGURE, "grid.activation", "relu", ["grid.activation is 'relu'", "list"]),
    ("figures/fig1.yaml", "landscape.activation", [], ["landscape.activation is []", "at least 1"]),
    # A grid figure of no recipe has nothing to show.
    (SCALE, "recipes", {}, ["recipes", "at least 1"]),
    # sources
    (FIGURE, "grid", ABSENT, [ONE_SOURCE]),
    (CLAIMS, "claims", ABSENT, [ONE_SOURCE]),
    (FIGURE, "landscape", LANDSCAPE, [ONE_SOURCE]),
    (FIGURE, "claims", {"smallest_effect": {"points": 1}, "list": [CLAIM]}, [ONE_SOURCE]),
    ("figures/fig1.yaml", "curves", {"x_label": "x", "lines": "method"}, ["'curves' needs 'grid'"]),
    ("figures/fig1.yaml", "measure", MEASURE, ["'measure' needs 'grid'"]),
    (FIGURE, "measure", MEASURE, ["'curves'", "give it or 'measure'"]),
    (FIGURE, "curves", ABSENT,
     ["figure 'fig2'", "no drawing of this name", "'curves' is missing", f"(allowed: {', '.join(DRAWINGS)})"]),
    # claims
    (CLAIMS, "claims.list", [{**CLAIM, "contrasts": [{**CONTRAST, "plus": [], "minus": []}]}],
     ["claims.list.0.contrasts.0", "give a term in 'plus' or 'minus'"]),
    (CLAIMS, "claims.list", [{**CLAIM, "contrasts": [{**CONTRAST, "expect": "positiv"}]}],
     ["claims.list.0.contrasts.0.expect is 'positiv'", "'positive', 'similar', 'different' or 'not negative'"]),
    (CLAIMS, "claims.list", [{**CLAIM, "contrasts": [{**CONTRAST, "over": "all"}]}],
     ["claims.list.0.contrasts.0.over is 'all'", "'mean', 'each', 'any' or 'trend'"]),
    (CLAIMS, "claims.list", [{**CLAIM, "contrasts": [{**CONTRAST, "expect": "similar", "over": "mean"}]}],
     ["claims.list.0.contrasts.0", "over is 'mean'", "(allowed with expect 'similar': each)"]),
    (CLAIMS, "claims.list", [{**CLAIM, "contrasts": [{**CONTRAST, "trace": "K"}]}],
     ["claims.list.0.contrasts.0.trace is 'K'", "'H', 'G' or 'N'"]),
    # the map
    (MAP, "map", ABSENT, [ONE_SOURCE]),
    (FIGURE, "map", {"claims": [2], "shares": "mechanism"}, [ONE_SOURCE]),
    (MAP, "map.claims", [], ["map.claims is []", "at least 1"]),
    (MAP, "map.claims", [2, 3, 2], ["map.claims", "2 is listed more than once"]),
    (MAP, "map.claims", [0], ["map.claims.0 is 0", "greater than 0"]),
    (MAP, "map.claim", [2], ["map", "key 'claim'", "did you mean 'claims'?", "(allowed: activation, claims, shares)"]),
    (MAP, "map.activation", "gleu", ["map.activation", "activation 'gleu'", "did you mean 'gelu'?"]),
    (MAP, "map.shares", ABSENT, ["map.shares", "missing"]),
    (STYLE, "operator.K", "#000000", ["operator.K", "'K'", "'H', 'G', 'N' or 'N_phi'"]),
    # sections
    (SCALE, "axes", None, ["axes is None", "dictionary"]),
    (SCALE, "recipes.digits_mlp.model", "mlp", ["recipes.digits_mlp.model is 'mlp'", "dictionary"]),
    # names, axes and how they are drawn
    (FIGURE, "curves.columns", "recipes", ["curves.columns is 'recipes'", "'recipe', 'activation' or 'split'"]),
    (FIGURE, "curves.groups", [["relu"], ["gleu"]], ["curves.groups.1.0", "did you mean 'gelu'?"]),
    # The table would be made, and the drawing fail.
    (FIGURE, "curves.x", "beta", ["curves.x", "'beta'", "relu"]),
    (OVER_BETA, "curves.x", "betta", ["curves.x", "'betta'", "did you mean 'beta'?"]),
    # Two spellings of one method: its axis would be the last one's.
    (FIGURE, "grid.method", {"grad_norm": "rho", "grad_norm-p=1": "rho_few"}, ["grid.method", "more than once"]),
    # An axis with values that the name with braces does not take.
    (SCALE, "axes.beta", [0, 1], ["axes.beta", "greater than 0"]),
    (SCALE, "axes.probes", [1, 1.5], ["axes.probes", "1.5"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("file", "key", "value", "parts"),
    [pytest.param(*mistake, id=f"{mistake[1]}={str(mistake[2])[:30]}") for mistake in MISTAKES],
)
def test_a_mistake_is_one_line(folder, file, key, value, parts):
    folder.set(file, key, value)
    text = folder.message()
    assert len(text.splitlines()) == 1
    where, _, what = text.partition(": ")
    assert where == str(folder.path / file)
    for part in parts:
        assert part in what


@pytest.mark.parametrize(
    ("values", "parts"),
    [
        (
            {"scale": "tny"},
            ["config.yaml", "scale 'tny'", "did you mean 'tiny'?", "(allowed: laptop, "],
        ),
        ({"scale": "../tiny"}, ["config.yaml", "unknown scale '../tiny'", "did you mean 'tiny'?"]),
        ({"scale": None}, ["config.yaml", "scale is None"]),
        (
            {"devcie": "cpu"},
            ["config.yaml", "'devcie'", "did you mean 'device'?", "(allowed: data_dir, device, scale, seeds)"],
        ),
        ({"seeds": 0}, ["config.yaml", "seeds is 0", "greater than 0"]),
        ({"seeds": 1.5}, ["config.yaml", "seeds is 1.5", "integer"]),
        ({"seeds": "many"}, ["config.yaml", "seeds is 'many'", "integer"]),
        ({"device": "gpu"}, ["config.yaml", "device is 'gpu'", "'cpu', 'cuda' or 'auto'"]),
        ({"data_dir": "/no/such/folder"}, ["data_dir is '/no/such/folder'", "not a folder", "null"]),
        ({"data_dir": __file__}, [f"data_dir is '{__file__}'", "not a folder", "null"]),
        ({"data_dir": 3}, ["config.yaml", "data_dir is 3", "string"]),
    ],
    ids=str,
)
def test_a_mistake_on_the_users_page_is_one_line(folder, values, parts):
    text = folder.message(**values)
    assert len(text.splitlines()) == 1
    for part in parts:
        assert part in text


def test_a_misspelled_key_that_is_needed_is_named(folder):
    """Two lines are fair: one for the key that is not known, one for the key that is missing."""
    folder.set(SCALE, "recipes.digits_mlp.learning_rate", ABSENT)
    folder.set(SCALE, "recipes.digits_mlp.learning_rat", 0.05)
    text = folder.message()
    assert "recipes.digits_mlp: unknown key 'learning_rat'; did you mean 'learning_rate'?" in text
    assert len(text.splitlines()) <= 2


def test_each_mistake_has_its_own_line(folder):
    folder.set(SCALE, "seeds", 0)
    folder.set(SCALE, "axes.rho", [-1, 0.1, float("nan")])
    folder.set(SCALE, "recipes.digits_mlp.batch_size", 0)
    lines = folder.message().splitlines()
    assert all(line.startswith(str(folder.path / SCALE)) for line in lines)
    expected = ["seeds is 0", "axes.rho.0", "axes.rho.2", "recipes.digits_mlp.batch_size is 0"]
    assert len(lines) == len(expected)
    for part in expected:
        assert any(part in line for line in lines)


# ------------------------------------------------------------- the files


@pytest.mark.parametrize("file", [SCALE, FIGURE, STYLE])
@pytest.mark.parametrize("broken", ["seeds: [1, 2", "a: b: c", "\t- x"])
def test_broken_yaml_names_the_file_and_the_line(folder, file, broken):
    (folder.path / file).write_text(f"# a comment\n{broken}\n")
    text = folder.message()
    assert text.startswith(f"{folder.path / file}: not valid YAML")
    assert re.search(r"line [23]\b", text)


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "word\n"])
def test_a_file_without_keys_is_named(folder, content):
    (folder.path / SCALE).write_text(content)
    text = folder.message()
    assert text.startswith(f"{folder.path / SCALE}: ")
    assert "must be keys with values" in text
    assert ":  is" not in text, "there is no key to name"


def test_a_file_that_is_not_utf8_is_named(folder):
    (folder.path / SCALE).write_bytes("title: Größe".encode("latin-1"))
    assert folder.message().startswith(f"{folder.path / SCALE}: ")


def test_a_missing_style_is_named(folder):
    (folder.path / STYLE).unlink()
    assert folder.message() == f"{folder.path / STYLE}: No such file or directory"


def test_a_missing_scale_is_named(folder):
    (folder.path / SCALE).unlink()
    assert "unknown scale 'tiny'" in folder.message()


def test_a_missing_folder_is_named(folder):
    shutil.rmtree(folder.path)
    text = folder.message()
    assert str(folder.path) in text
    assert "(allowed: )" not in text, "there is no scale at all; a list of none helps nobody"


# -------------------------------------------------------------- spellings


@pytest.mark.parametrize("written", ["0.001", "1e-3", "1.0e-3", "'1e-3'", "'0.0010'", "1E-03"])
def test_a_strength_has_one_cell_however_it_is_written(folder, written):
    """YAML 1.1 reads 1e-3 as text, 1.0e-3 as a number: to a user both are numbers."""
    text = (folder.path / SCALE).read_text()
    assert "rho: [0, 0.1, 0.3]" in text
    (folder.path / SCALE).write_text(text.replace("rho: [0, 0.1, 0.3]", f"rho: [{written}]"))
    project = folder.load()
    cells = grid_cells.cells(project.figures["fig2"], project.scale)
    assert {cell.strength for cell in cells} == {"0.001"}


@pytest.mark.parametrize("written", ["0.1, 0.1", "0.1, '0.10'", "0.1, 1e-1", "'0.10', 1.0e-1", ".1, 0.1"])
def test_a_strength_is_listed_once_however_it_is_written(folder, written):
    text = (folder.path / SCALE).read_text()
    (folder.path / SCALE).write_text(text.replace("rho: [0, 0.1, 0.3]", f"rho: [0, {written}]"))
    message = folder.message()
    assert "axes.rho: 0.1 is listed more than once" in message
    assert len(message.splitlines()) == 1


def test_numbers_of_a_recipe_may_be_written_as_yaml_reads_text(folder):
    folder.set(SCALE, "recipes.digits_mlp.weight_decay", "5e-4")
    assert folder.load().scale.recipes["digits_mlp"].weight_decay == 5e-4


def test_names_have_one_spelling(folder):
    folder.set(FIGURE, "grid.activation", ["augmented_relu-beta=1.0", "beta_gelu-beta=2.0"])
    assert folder.load().figures["fig2"].grid.activation == ["augmented_relu", "beta_gelu-beta=2"]


def test_a_style_may_colour_a_family(folder):
    """A figure needs the number of beta_gelu; a colour does not."""
    assert "beta_gelu" in folder.load().style.activation


def test_data_dir_may_start_with_the_home_folder(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "images").mkdir()
    assert folder.load(data_dir="~/images").config.data_dir == "~/images"


def test_a_figure_without_a_drawing_is_refused(folder):
    shutil.copy(folder.path / MEASURES, folder.path / "figures/my_fig.yaml")
    assert "unknown figure 'my_fig'" in folder.message()
    assert "src/nme/figures has no drawing of this name" in folder.message()


def test_a_figure_with_curves_needs_no_drawing_of_its_own(folder):
    shutil.copy(folder.path / FIGURE, folder.path / "figures/mine.yaml")
    assert folder.load().figures["mine"].curves.lines == "activation"


@pytest.mark.parametrize("name", ["figures/My Fig.yaml", "figures/fig(1.yaml", "figures/new.yml", "scales/2.yaml"])
def test_names_of_files_are_names_of_targets(folder, name):
    (folder.path / name).touch()
    assert f"{name}: not a name (allowed: lower-case letters" in folder.message()


def test_null_on_the_command_line_is_null(folder):
    project = load_project(yaml.safe_load((folder.path / "config.yaml").read_text()) | {"seeds": "null"}, folder.path)
    assert project.config.seeds is None


def test_a_missing_folder_says_what_to_copy(tmp_path):
    with pytest.raises(NmeError, match="scales: no such folder"):
        load_project({"scale": "tiny"}, tmp_path)
