"""Specs: the settings that decide the result of a job, one model per stage. Snakemake's params hold them as JSON.

As JSON, a spec has exactly the keys that it was made with, so that results keep their hash when a stage gains a setting
with a default.
"""

from typing import Annotated, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, model_validator

from nme.activations import ACTIVATIONS
from nme.config.fields import Closed, Names, Number, Operator, one_of, registered
from nme.config.figure import DRAWINGS, Curves, Figure, Landscape, SmallestEffect
from nme.config.project import Project
from nme.config.scale import Measurement, Recipe, Training
from nme.datasets import DATASETS
from nme.errors import unknown
from nme.grid.cells import Cell, cells, expand, recipes_of
from nme.methods import METHODS
from nme.models.settings import Count
from nme.quantities import QUANTITIES

# Raise a stage's number when its results change for the same settings: Snakemake then runs the stage again.
STAGE_VERSION = {"prepare": 2, "train": 5, "measure": 3, "landscape": 2, "tables": 1, "claims": 4, "map": 1, "plot": 8}

ActivationName = Annotated[str, registered(ACTIVATIONS)]
MethodName = Annotated[str, registered(METHODS)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Seeds = Annotated[list[NonNegativeInt], Field(min_length=1), Names]


class Spec(Closed):
    """Base of the specs."""

    def as_json(self) -> dict[str, Any]:
        """The settings as JSON values: those that were given, in the order of the fields."""
        return self.model_dump(mode="json", exclude_unset=True)


class PrepareSpec(Spec):
    """What decides the content of a prepared dataset. Only streamed ones have ``short_side`` and ``quality``."""

    dataset: str
    source: Annotated[str, one_of("dataset", DATASETS)]
    train: Count | None
    test: Count | None
    label_noise: Fraction
    short_side: Count | None = None
    quality: Count | None = None
    version: int

    @model_validator(mode="after")
    def _streamed_ones_are_stored_as_jpeg(self) -> "PrepareSpec":
        if DATASETS[self.source].streamed and (self.short_side is None or self.quality is None):
            raise ValueError(f"short_side and quality: '{self.source}' is streamed and needs both")
        return self


class TrainSpec(Spec):
    """Settings that decide the metrics and snapshots of a training job, besides its data.

    The network is saved for measurement at the fractions ``snapshots`` of the training.
    """

    recipe: Training
    activation: ActivationName
    method: MethodName
    strength: Number
    seeds: Seeds
    snapshots: list[Fraction]
    version: int


class MeasureSpec(Spec, Measurement):
    """Settings that decide the measurements on a training job's networks, besides networks and data.

    ``quantities`` says when each is measured, as fractions of the training.
    """

    recipe: Training
    activation: ActivationName
    seeds: Seeds
    quantities: dict[Annotated[str, one_of("quantity", QUANTITIES)], list[Fraction]]
    version: int


class LandscapeSpec(Spec, Landscape):
    """Settings that decide a landscape."""

    version: int


class TablePanel(Closed):
    """A recipe in a table: its title, how its seeds are shared out to jobs, the accuracy of guessing, its training."""

    title: str
    seeds_per_job: Count
    chance: Fraction
    training: Training


class TableSpec(Spec):
    """Settings that decide the table of a grid figure: its cells, seeds, paths and panel titles.

    Those of the jobs, ``training`` of the recipes and ``measurement``, are there to be compared with the results'.
    """

    scale: str
    seeds: Count
    recipes: dict[str, TablePanel]
    cells: Annotated[list[str], Field(min_length=1)]
    measurement: Measurement | None
    version: int


class TraceSpec(Closed):
    """A trace that a contrast is about, and when it was measured."""

    operator: Operator
    at: Fraction


Term = list[tuple[str, str, str]]  # cells: activation, method, strength


class ContrastSpec(Closed):
    """A contrast with the cells of its terms. ``expect`` is empty where nothing is tested."""

    name: str
    expect: Literal["", "positive", "similar", "different", "not negative"] = ""
    over: Literal["mean", "each", "any", "trend"]
    trace: TraceSpec | None
    figure: str
    plus: list[Term]
    minus: list[Term]


class ClaimSpec(Closed):
    """A claim, and the recipes that it is decided on."""

    number: Count
    says: str
    figure: str
    contrasts: Annotated[list[ContrastSpec], Field(min_length=1)]
    recipes: list[str]


class ClaimsSpec(Spec):
    """What decides the claims table, besides the tables it is made from."""

    scale: str
    smallest_effect: SmallestEffect
    claims: list[ClaimSpec]
    version: int


class MappedClaim(Closed):
    """A claim of the map, and its recipes that have shares."""

    number: Count
    says: str
    contrasts: Annotated[list[ContrastSpec], Field(min_length=1)]
    recipes: list[str]


class SharesSpec(Closed):
    """The figure that measures the shares of a map, and the activation whose shares are taken."""

    figure: str
    activation: ActivationName


class Setting(Closed):
    """A recipe of a map."""

    title: str
    network: str
    label_noise: Fraction


class MapSpec(Spec):
    """What decides the map, besides the tables it is made from."""

    scale: str
    smallest_effect: PositiveFloat
    claims: list[MappedClaim]
    shares: SharesSpec
    recipes: dict[str, Setting]
    version: int


class PlotSpec(Spec):
    """Settings that decide a figure's look, besides its table; of the colours only those that the figure shows."""

    figure: str
    scale: str
    version: int
    curves: Curves | None = None
    colours: dict[str, str] = Field({})

    @model_validator(mode="after")
    def _has_a_drawing(self) -> "PlotSpec":
        if not self.curves and self.figure not in DRAWINGS:
            raise ValueError(unknown("figure", self.figure, DRAWINGS))
        return self


def dataset_spec(project: Project, dataset: str) -> PrepareSpec:
    """The spec of a prepared dataset."""
    kind = project.scale.dataset_kind(dataset)
    unused = {"source"} if kind.streamed else {"source", "short_side", "quality"}
    return PrepareSpec(
        dataset=dataset,
        source=kind.name,
        **project.scale.datasets[dataset].model_dump(exclude=unused),
        version=STAGE_VERSION["prepare"],
    )


def train_spec(recipe: Recipe, cell: Cell, seeds: range, snapshots: list[float]) -> TrainSpec:
    """The spec of a training job that keeps the network at the fractions ``snapshots`` of the training."""
    return TrainSpec(
        recipe=recipe.training(),
        activation=cell.activation,
        method=cell.method,
        strength=cell.strength,
        seeds=list(seeds),
        snapshots=snapshots,
        version=STAGE_VERSION["train"],
    )


def measure_spec(project: Project, cell: Cell, seeds: range, measurement: dict[str, list[float]]) -> MeasureSpec:
    """The spec of a job that measures the networks of a training job.

    ``measurement`` is the cell's entry of ``measurements``.
    """
    # A setting of a quantity that is not measured is left out: changing the setting must not repeat other measurements.
    unused = set() if "update_shares" in measurement else {"update_batches"}
    return MeasureSpec(
        **project.scale.measurement.model_dump(exclude_none=True, exclude=unused),
        recipe=project.scale.recipes[cell.recipe].training(),
        activation=cell.activation,
        seeds=list(seeds),
        quantities=measurement,
        version=STAGE_VERSION["measure"],
    )


def landscape_spec(figure: Figure) -> LandscapeSpec:
    """The spec of a landscape."""
    assert figure.landscape, "only figures with a landscape have this spec"
    return LandscapeSpec(**figure.landscape.model_dump(), version=STAGE_VERSION["landscape"])


def table_spec(project: Project, name: str) -> TableSpec:
    """The spec of the table of a grid figure."""
    figure, scale = project.figures[name], project.scale
    panels = {
        recipe: TablePanel(
            title=scale.recipes[recipe].title or recipe,
            seeds_per_job=scale.recipes[recipe].seeds_per_job,
            chance=1 / len(scale.dataset_kind(scale.recipes[recipe].dataset).classes),
            training=scale.recipes[recipe].training(),
        )
        for recipe in recipes_of(figure, scale)
    }
    return TableSpec(
        scale=project.config.scale,
        seeds=scale.seeds_of(name),
        recipes=panels,
        cells=[cell.path for cell in cells(figure, scale)],
        measurement=scale.measurement if figure.measure else None,
        version=STAGE_VERSION["tables"],
    )


def plot_spec(project: Project, name: str) -> PlotSpec:
    """The spec of a drawing."""
    figure, axes = project.figures[name], project.scale.axes
    look: dict[str, Any] = {}
    if figure.curves:
        look["curves"] = figure.curves.model_dump()
    if figure.measure:
        hidden = set() if "update_shares" in figure.measure.quantities else {"N_phi"}
        look["colours"] = {name: c for name, c in project.style.operator.items() if name not in hidden}
    elif figure.grid:
        lines = figure.curves.lines if figure.curves else "activation"
        names = ["sgd", *figure.grid.method] if lines == "method" else figure.grid.activation
        registry = METHODS if lines == "method" else ACTIVATIONS
        shown = [str(registry.parse(n)) for name in names for n in expand(name, axes)]
        look["colours"] = _colours(getattr(project.style, lines), shown)
    return PlotSpec(figure=name, scale=project.config.scale, version=STAGE_VERSION["plot"], **look)


def _colours(chosen: dict[str, str], names: list[str]) -> dict[str, str]:
    """Colours of the names: a colour for the exact name, otherwise for the name without parameters, otherwise none."""
    found = {name: chosen.get(name, chosen.get(name.split("-")[0])) for name in names}
    return {name: colour for name, colour in found.items() if colour}
