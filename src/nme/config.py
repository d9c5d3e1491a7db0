"""The configuration: what a user may write, checked in full before any job starts.

``config/config.yaml`` is the user's page; ``config/scales/*.yaml`` say how large, ``config/figures/*.yaml`` say what a
figure compares, ``config/style.yaml`` which colours. The JSON schemas in ``workflow/schemas`` are made from these
models: ``python -m nme.config workflow/schemas``.
"""

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from nme.activations import ACTIVATIONS
from nme.datasets import DATASETS
from nme.datasets import Dataset as DatasetKind
from nme.errors import NmeError, unknown
from nme.figures import drawable
from nme.files import atomic
from nme.measure import QUANTITIES
from nme.methods import METHODS
from nme.models import MODELS
from nme.models.settings import Count
from nme.registry import Registry, number


class Closed(BaseModel):
    """A section of the configuration: unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def _registered(registry: Registry) -> Any:
    """A name of the registry with its parameters, in its one spelling."""

    def canonical(text: str) -> str:
        return str(registry.parse(text))

    return Annotated[str, AfterValidator(_as_value_error(canonical))]


def _templates(registry: Registry) -> Any:
    """As ``_registered``; a parameter may be the values of an axis, as in ``beta_gelu-beta={beta}``."""

    def canonical(text: str) -> str:
        known = str(registry.parse(AXIS_IN_NAME.sub("1", text)))
        return text if AXIS_IN_NAME.search(text) else known

    return Annotated[str, AfterValidator(_as_value_error(canonical))]


def _coloured(registry: Registry) -> Any:
    """As ``_registered``, or a name without the parameter it needs: the colour of all of that name."""

    def canonical(text: str) -> str:
        return text if text in registry else str(registry.parse(text))

    return Annotated[str, AfterValidator(_as_value_error(canonical))]


def _as_value_error(check: Any) -> Any:
    """Pydantic collects ValueErrors and says where they are; ours carry the message."""

    def checked(value: Any) -> Any:
        try:
            return check(value)
        except NmeError as error:
            raise ValueError(str(error)) from None

    return checked


def _one_of(what: str, names: Any) -> Any:
    def check(value: str) -> str:
        if value not in names:
            raise ValueError(unknown(what, value, names))
        return value

    return Annotated[str, AfterValidator(check)]


def _two_by_two(widths: list) -> list:
    if min(widths[:2]) < 2:
        raise ValueError(
            f"is {widths} (allowed: at least 2 inputs and 2 units in the first layer, to vary two weights)"
        )
    return widths


def _distinct(values: list) -> list:
    repeated = sorted({str(v) for v in values if values.count(v) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} is listed more than once (each value makes one cell)")
    return values


AXIS_IN_NAME = re.compile(r"\{([a-z][a-z0-9_]*)\}")


def _distinct_methods(methods: Any) -> Any:
    """Two spellings of one method would silently become one key; unknown ones are found afterwards."""
    seen = []
    for name in methods if isinstance(methods, dict) else ():
        try:
            seen.append(str(METHODS.parse(name)))
        except NmeError:
            seen.append(str(name))
    _distinct(seen)
    return methods


Identifier = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
# One spelling per number, so that 0.1, 1e-1 and "0.10" are one cell.
Number = Annotated[
    str,
    BeforeValidator(_as_value_error(number)),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}]}),
]
Axis = Annotated[list[Number], Field(min_length=1), AfterValidator(_distinct)]
Names = AfterValidator(_distinct)
Operator = Literal["H", "G", "N"]
Drawn = Literal["H", "G", "N", "N_phi"]


class Config(Closed):
    """The user's page, config/config.yaml."""

    scale: str = Field(description="Which file of config/scales: how large everything is.")
    data_dir: str | None = Field(None, description="Folder with image sets you already have; null: download them.")
    device: Literal["cpu", "cuda", "auto"] = Field(
        "cpu", description="Where to train. auto: a GPU if there is one, else the CPU."
    )
    seeds: Count | None = Field(
        None,
        description="Members per cell, instead of the scale's number; in multiples of seeds_per_job, more of"
        " them train only new members.",
    )


class Dataset(Closed):
    """Which part of a dataset a scale uses, and how its labels are changed."""

    source: _one_of("dataset", DATASETS) | None = Field(
        None, description="The dataset that it is taken from; null: that of its own name."
    )
    train: Count | None = Field(None, description="Training examples, class-balanced; null: all.")
    test: Count | None = Field(None, description="Test examples, class-balanced; null: all.")
    label_noise: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="Probability that a training label is replaced by one drawn uniformly from all classes, by a fixed"
        " seed; test labels stay as they are. Datasets in memory only.",
    )
    short_side: Count | None = Field(
        None, description="Streamed datasets: px; larger images are stored with their shorter side reduced to it."
    )
    quality: Annotated[int, Field(ge=1, le=95)] | None = Field(
        None, description="Streamed datasets: quality of the stored JPEGs, 1 to 95."
    )


ModelSpec = Annotated[Union[tuple(MODELS.values())], Field(discriminator="name")]  # noqa: UP007


class Recipe(Closed):
    """How one network is trained; everything but the activation, the method, its strength and the seed."""

    dataset: Identifier = Field(description="A dataset of this scale.")
    title: str = Field("", description="As written above a panel of a figure; empty: the recipe's name.")
    model: ModelSpec = Field(description="The network and its sizes.")
    resolution: Count | None = Field(
        None, description="Streamed datasets: px; side of the square that the network sees of an image."
    )
    augment: Literal["none", "crop_flip", "resized_crop_flip"] = Field(
        "none",
        description="crop_flip: random crop after padding by 1/8 of the side, and random horizontal flip."
        " resized_crop_flip (streamed datasets): 8 to 100 % of the area, resized, and random horizontal flip.",
    )
    epochs: Count = Field(description="Passes over the training data.")
    test_epochs: Count = Field(1, description="Epochs from one test to the next; the last epoch always ends with one.")
    batch_size: Count = Field(
        description="Examples per step; the last incomplete batch of an epoch is left out. SAM and the penalties take"
        " their gradient over all of them (m = batch_size)."
    )
    micro_batch: Count | None = Field(
        None,
        description="Most examples computed at once: a gradient is the mean over parts of this size, each with its own"
        " statistics of batch norm; null: all of them.",
    )
    processes: Count = Field(
        1, description="Processes that share a training, each with a GPU of its own; they need a micro_batch."
    )
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32",
        description="Of forward passes: tf32 is float32 with short products on a GPU, bf16 automatic mixed precision;"
        " parameters, gradients, norms and updates are float32.",
    )
    channels_last: bool = Field(False, description="Memory order of images; often faster, above all on GPUs.")
    compile: bool = Field(False, description="Compile the step (torch.compile): faster, and slower to start.")
    learning_rate: PositiveFloat = Field(description="Peak learning rate; cosine schedule to 0.")
    warmup_epochs: NonNegativeFloat = Field(0.0, description="Epochs of linear warm-up before the cosine.")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="Momentum of SGD.")
    weight_decay: NonNegativeFloat = Field(0.0, description="Weight decay, acting on the update, outside the loss.")
    threads: Count = Field(1, description="CPU threads of a job. Metrics depend on it, so it is fixed here.")
    seeds_per_job: Count = Field(
        1, description="How many seeds one process trains, one after the other. Metrics do not depend on it."
    )
    memory_mb: Count = Field(2000, description="Memory to ask a cluster for, in MB; grows with each attempt.")
    runtime_minutes: Count = Field(30, description="Time limit to ask a cluster for; grows with each attempt.")

    @model_validator(mode="after")
    def _parts_fit(self) -> "Recipe":
        part = self.micro_batch or self.batch_size
        if self.batch_size % part:
            raise ValueError(f"micro_batch is {part} (allowed: divisors of batch_size, {self.batch_size})")
        parts = self.batch_size // part
        if self.processes > parts:
            raise ValueError(
                f"processes is {self.processes} (allowed: up to {parts}, the parts of micro_batch examples)"
            )
        return self

    @model_validator(mode="after")
    def _warmup_fits(self) -> "Recipe":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs:g} (allowed: less than epochs, {self.epochs})")
        return self


class Measurement(Closed):
    """How curvature is measured, the same for all figures."""

    examples: Count = Field(500, description="Training examples it is measured on, class-balanced.")
    micro_batch: Count | None = Field(None, description="Most examples at once, for memory; null: all. Up to rounding.")
    probes: Count = Field(16, description="Random probes of traces and norms.")
    spectrum_probes: Count = Field(2, description="Random start vectors of Lanczos.")
    lanczos_steps: Count = Field(30, description="Steps of Lanczos from each of them.")
    update_batches: Count = Field(
        8, description="Training batches, of the recipe's size, on which shares of the penalty's update are measured."
    )


class Scale(Closed):
    """How large everything is: which recipes, how many seeds, which values on each axis."""

    seeds: Count = Field(description="Members per cell: seeds 0 to seeds − 1.")
    datasets: dict[Identifier, Dataset] = Field(description="Datasets by name, and how much of each.")
    recipes: dict[Identifier, Recipe] = Field(min_length=1, description="Recipes by name.")
    panels: dict[Identifier, Annotated[list[str], Field(min_length=1), Names]] = Field(
        description="Lists of recipes by name: a figure names one, and shows a panel a recipe."
    )
    axes: dict[Identifier, Axis] = Field(description="Values of strengths and parameters, by name.")
    measurement: Measurement = Field(Measurement(), description="How curvature is measured.")

    @model_validator(mode="after")
    def _datasets_are_known(self) -> "Scale":
        for name, dataset in self.datasets.items():
            if (dataset.source or name) not in DATASETS:
                raise ValueError(f"datasets.{name}: {unknown('dataset', name, DATASETS)}; or name one as its 'source'")
            streamed = self.dataset_kind(name).streamed
            for key in ("short_side", "quality"):
                value = getattr(dataset, key)
                if streamed != (value is not None):
                    allowed = "a number" if streamed else "null: it is not stored as JPEG"
                    raise ValueError(f"datasets.{name}.{key} is {value or 'null'} (allowed: {allowed})")
            if streamed and dataset.label_noise:
                allowed = f"0, where '{dataset.source or name}' is streamed"
                raise ValueError(f"datasets.{name}.label_noise is {dataset.label_noise:g} (allowed: {allowed})")
        return self

    @model_validator(mode="after")
    def _names_are_listed(self) -> "Scale":
        for name, recipe in self.recipes.items():
            if recipe.dataset not in self.datasets:
                known = unknown("dataset of this scale", recipe.dataset, self.datasets)
                raise ValueError(f"recipes.{name}.dataset: {known}")
            self._fits_its_dataset(f"recipes.{name}", recipe)
        for name, recipes in self.panels.items():
            for recipe in recipes:
                if recipe not in self.recipes:
                    raise ValueError(f"panels.{name}: {unknown('recipe of this scale', recipe, self.recipes)}")
        return self

    def _fits_its_dataset(self, where: str, recipe: Recipe) -> None:
        kind, shape = self.dataset_kind(recipe.dataset), self.input_shape(recipe)
        if kind.streamed:
            wrong, data, allowed = recipe.augment == "crop_flip", "images of any size", "none, resized_crop_flip"
        elif len(kind.shape) == 3:
            wrong, data, allowed = recipe.augment == "resized_crop_flip", "images of one size", "none, crop_flip"
        else:
            wrong, data, allowed = recipe.augment != "none", f"inputs {kind.shape}, not images", "none"
        if wrong:
            raise ValueError(
                f"{where}: augment is '{recipe.augment}', but '{recipe.dataset}' has {data} (allowed: {allowed})"
            )
        if kind.streamed != (recipe.resolution is not None):
            allowed = "a number of px, as 224" if recipe.resolution is None else "null: its inputs have one size"
            found = recipe.resolution or "null"
            raise ValueError(f"{where}: resolution is {found} for '{recipe.dataset}' (allowed: {allowed})")
        if recipe.channels_last and len(shape) != 3:
            raise ValueError(
                f"{where}: channels_last is true, but '{recipe.dataset}' has inputs {shape} (allowed: false)"
            )

    def dataset_kind(self, name: str) -> type[DatasetKind]:
        """The class of one of the scale's datasets."""
        return DATASETS[self.datasets[name].source or name]

    def input_shape(self, recipe: Recipe) -> tuple[int, ...]:
        """Of one input as the recipe's network sees it, channels first."""
        kind, side = self.dataset_kind(recipe.dataset), recipe.resolution
        return (*kind.shape, side, side) if kind.streamed and side else tuple(kind.shape)


class Grid(Closed):
    """The trainings a figure compares: every combination of its axes.

    A number in a name may be an axis of the scale in braces: ``beta_gelu-beta={beta}`` is one activation a value.
    """

    panels: Identifier = Field(description="Name of a list of recipes of the scale.")
    activation: Annotated[list[_templates(ACTIVATIONS)], Field(min_length=1), Names]
    method: Annotated[
        dict[_templates(METHODS), Identifier], Field(min_length=1), BeforeValidator(_distinct_methods)
    ] = Field(
        description="Each training method with the axis of its strengths; strength 0 of any of them is plain SGD."
    )


class Curves(Closed):
    """How a grid is drawn: a line of mean accuracies with an interval over seeds against a strength or a parameter."""

    x: str = Field("strength", description="strength, or the activation's parameter along the axis, as in 'beta'.")
    x_label: str = Field(description="Below the axis: what it is, its symbol and its unit.")
    lines: Literal["activation", "method"] = Field(description="What a line is, and has its colour.")
    columns: Literal["recipe", "activation", "split"] = Field(
        "recipe",
        description="Panels side by side: recipes; or a row a recipe, and a column an activation, or train and test.",
    )
    groups: list[list[_templates(ACTIVATIONS)]] = Field(
        [], description="Instead of columns: a row a recipe, and a column each of these groups of activations."
    )

    @model_validator(mode="after")
    def _one_division(self) -> "Curves":
        if self.groups and self.columns != "recipe":
            raise ValueError("give 'columns' or 'groups', not both")
        return self


class Measured(Closed):
    """What is measured on the networks of a grid while they train."""

    at: Identifier = Field(description="Name of an axis: when, as fractions of the training, 0 to 1.")
    quantities: Annotated[list[_one_of("quantity", QUANTITIES)], Field(min_length=1), Names] = Field(
        description="What is measured; src/nme/measure.py describes each."
    )


class Landscape(Closed):
    """An exact loss landscape over two weights of one hidden layer; nothing is trained."""

    activation: Annotated[list[_registered(ACTIVATIONS)], Field(min_length=1), Names]
    widths: Annotated[list[Count], Field(min_length=2), AfterValidator(_two_by_two)] = Field(
        description="Inputs, then hidden units."
    )
    points: Annotated[int, Field(ge=3)] = Field(description="Grid points along each of the two weights.")
    half_width: PositiveFloat = Field(description="Both weights run over ± this.")
    seed: NonNegativeInt = Field(description="Seed of the other weights, the input and the target.")


class Contrast(Closed):
    """A difference of test accuracies, in points: the sum of ``plus`` minus the sum of ``minus``.

    A term is ``activation/method/axis``: a cell for each strength of that axis; or ``activation/sgd``. A comma
    separates alternatives, as in ``relu,gelu/sam/rho``: a cell for each. ``sgd,grad_norm`` puts plain SGD first.
    """

    name: str = Field(description="What the difference is, for the table.")
    figure: Identifier | None = Field(None, description="Whose trainings, if not the claim's figure's.")
    trace: Operator | None = Field(
        None, description="Instead of accuracies: its trace at the end, in percent of tr G + |tr N|, where measured."
    )
    plus: list[str] = Field([], description="Terms that are added.")
    minus: list[str] = Field([], description="Terms that are subtracted.")
    expect: Literal["positive", "similar", "different", "not negative"] = Field(
        description="What the claim says of it."
    )
    over: Literal["mean", "each", "any", "trend"] | None = Field(
        None,
        description="How the cells of its terms enter. mean: averaged. each: all cells, each by itself, are as"
        " expected. any: one cell is. trend: the fitted change from the first to the last strength or β. null: mean;"
        " each if similar or different is expected.",
    )

    @model_validator(mode="after")
    def _some_term(self) -> "Contrast":
        if not self.plus and not self.minus:
            raise ValueError("give a term in 'plus' or 'minus'")
        return self

    @model_validator(mode="after")
    def _similar_is_each(self) -> "Contrast":
        if self.expect in ("similar", "different") and self.over not in (None, "each"):
            raise ValueError(f"over is '{self.over}' (allowed with expect '{self.expect}': each)")
        return self


class SmallestEffect(Closed):
    """Smallest effects of interest, δ: smaller ones do not count as a difference."""

    points: PositiveFloat = Field(1, description="Of accuracies, in points.")
    percent: PositiveFloat = Field(5, description="Of traces, in percent of tr G + |tr N|.")


class Claim(Closed):
    """One claim of the paper; it holds on a recipe if all its contrasts are as expected there."""

    number: Count = Field(description="Its number in the paper's list.")
    says: str = Field(description="The claim, in a sentence.")
    figure: Identifier = Field(description="The figure whose trainings bear on it.")
    contrasts: Annotated[list[Contrast], Field(min_length=1)] = Field(description="The differences it is about.")


class Claims(Closed):
    """The claims, and what counts as a difference."""

    smallest_effect: SmallestEffect = Field(SmallestEffect(), description="Smallest effects of interest.")
    list: Annotated[list[Claim], Field(min_length=1, description="The claims, in the order of the table.")]


class Map(Closed):
    """Effects of claims over the recipes of a scale, against the share of the NME in the penalty's update.

    A setting of the map is a recipe that the figures of its claims and the figure of its shares have in common.
    """

    claims: Annotated[list[Count], Field(min_length=1), Names] = Field(
        description="Numbers of claims about accuracies; a panel per contrast."
    )
    shares: Identifier = Field(description="The figure that measures update_shares of plain SGD.")
    activation: _registered(ACTIVATIONS) = Field("gelu", description="The activation whose shares are taken.")


class Figure(Closed):
    """One figure: what it compares, how it is drawn and captioned.

    Without ``curves`` the drawing is ``src/nme/figures/<name>.py``.
    """

    kind: Literal["paper", "supplementary", "claims"] = Field(
        description="A figure of the paper, one of ours, or the claims."
    )
    title: str = Field(description="A short title, for the report.")
    caption: str = Field(description="What the figure shows and the claim it bears on, for the report.")
    grid: Grid | None = Field(None, description="Trainings it is made of.")
    curves: Curves | None = Field(None, description="How the accuracies of the grid are drawn.")
    measure: Measured | None = Field(None, description="What is measured on the grid's networks.")
    landscape: Landscape | None = Field(None, description="An exact landscape it is made of.")
    claims: Claims | None = Field(None, description="Claims about the other figures' trainings.")
    map: Map | None = Field(None, description="Effects of claims over recipes, against shares of the NME.")

    @model_validator(mode="after")
    def _one_source(self) -> "Figure":
        if sum(source is not None for source in (self.grid, self.landscape, self.claims, self.map)) != 1:
            raise ValueError("give exactly one of 'grid', 'landscape', 'claims' and 'map'")
        for key in ("curves", "measure"):
            if getattr(self, key) and not self.grid:
                raise ValueError(f"'{key}' needs 'grid'")
        if self.curves and self.measure:
            raise ValueError("'curves' draws accuracies: give it or 'measure'")
        return self


Colour = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]


class Style(Closed):
    """One colour for the same thing on every figure."""

    activation: dict[_coloured(ACTIVATIONS), Colour] = Field(description="Colour of each activation, as #rrggbb.")
    method: dict[_coloured(METHODS), Colour] = Field(description="Colour of each training method, as #rrggbb.")
    operator: dict[Drawn, Colour] = Field(
        description="Colour of H, G, N and of N_phi, the part of N from activation second derivatives, as #rrggbb."
    )


class Project(Closed):
    """All configuration files, checked against each other."""

    config: Config
    scale: Scale
    figures: dict[str, Figure]
    style: Style


Section = TypeVar("Section", bound=BaseModel)


def check(model: type[Section], values: Any, where: str) -> Section:
    """The validated section.

    Raises:
        NmeError: one line per mistake: where it is, the key, the value and what is allowed.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = [f"{where}: {_explain(model, e)}" for e in error.errors()]
        raise NmeError("\n".join(dict.fromkeys(lines))) from None


def _explain(model: type[BaseModel], error: Any) -> str:
    # Names of discriminated models stand in the location between a key and its own keys; a reader knows no such level.
    path = [p for i, p in enumerate(error["loc"]) if not (i and error["loc"][i - 1] == "model" and p in MODELS)]
    key = ".".join(str(p) for p in path if p != "[key]")
    if error["type"] == "extra_forbidden":
        parent, last = path[:-1], path[-1]
        return (f"{'.'.join(map(str, parent))}: " if parent else "") + unknown(
            "key", last, _keys(model, error["loc"][:-1])
        )
    if error["type"] == "union_tag_not_found":
        return f"{key}.name: this key is missing (allowed: {', '.join(MODELS)})"
    if error["type"] == "union_tag_invalid":
        return f"{key}.name: {unknown('model', error['ctx']['tag'], MODELS)}"
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "value_error":
        return f"{key}{' ' if message.startswith('is ') else ': '}{message}" if key else message
    if not key:
        return f"must be keys with values, not {error['input']!r}"
    if error["type"] == "missing":
        return f"{key}: this key is missing"
    if error["type"] == "literal_error":
        return f"{key} is {error['input']!r} (allowed: {error['ctx']['expected']})"
    return f"{key} is {error['input']!r} ({message[0].lower()}{message[1:]})"


def _keys(model: Any, path: tuple) -> list[str]:
    """The keys allowed at ``path`` below ``model``: pydantic's own schema tells."""
    schema = model.model_json_schema()
    node = schema
    for part in path:
        node = _resolve(schema, node)
        if isinstance(part, int):
            node = node.get("items", {})
        elif part in node.get("properties", {}):
            node = node["properties"][part]
        elif "mapping" in node.get("discriminator", {}) and part in node["discriminator"]["mapping"]:
            node = {"$ref": node["discriminator"]["mapping"][part]}
        else:
            node = node.get("additionalProperties") or next(iter(node.get("patternProperties", {}).values()), {})
    return list(_resolve(schema, node).get("properties", {}))


def _resolve(schema: dict, node: Any) -> dict:
    """Follow references, and of an optional section take the section."""
    while isinstance(node, dict):
        if "$ref" in node:
            node = schema["$defs"][node["$ref"].rsplit("/", 1)[1]]
        elif "anyOf" in node:
            node = node["anyOf"][0]
        else:
            return node
    return {}


def read_yaml(path: Path) -> Any:
    """The content of a YAML file.

    Raises:
        NmeError: the file is missing or is not YAML; the message names the line.
    """
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise NmeError(f"{path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise NmeError(f"{path}: not valid YAML: {error}") from None


def load_project(values: dict[str, Any], folder: Path | str = "config") -> Project:
    """Everything that is configured, checked.

    Args:
        values: the content of config.yaml, possibly with changes from a command line.
        folder: where scales/, figures/ and style.yaml are.

    Raises:
        NmeError: any mistake in any of the files; or a data_dir that does not exist.
    """
    folder = Path(folder)
    config = check(Config, values, f"{folder}/config.yaml")
    if config.data_dir is not None and not Path(config.data_dir).expanduser().is_dir():
        raise NmeError(f"data_dir is '{config.data_dir}', which is not a folder (give an existing one, or null)")
    scales = {path.stem for path in folder.glob("scales/*.yaml")}
    if config.scale not in scales:
        raise NmeError(f"scale ({folder}/config.yaml, or --config): {unknown('scale', config.scale, scales)}")
    path = folder / "scales" / f"{config.scale}.yaml"
    scale = check(Scale, read_yaml(path), str(path))
    if config.seeds is not None:
        scale = scale.model_copy(update={"seeds": config.seeds})
    figures = {}
    for path in sorted(folder.glob("figures/*.yaml")):
        figure = figures[path.stem] = check(Figure, read_yaml(path), str(path))
        if not figure.curves and path.stem not in drawable():
            known = unknown("figure", path.stem, drawable())
            raise NmeError(f"{path}: {known}: src/nme/figures has no such drawing, and there is no 'curves'")
        if figure.grid:
            _check_names(figure, scale, str(path), config.scale)
    path = folder / "style.yaml"
    return Project(config=config, scale=scale, figures=figures, style=check(Style, read_yaml(path), str(path)))


def _check_names(figure: Figure, scale: Scale, path: str, name: str) -> None:
    """The lists and axes that a grid names are those of the scale."""
    grid = figure.grid
    if grid.panels not in scale.panels:
        known = unknown(f"list of panels of scale '{name}'", grid.panels, scale.panels)
        raise NmeError(f"{path}: grid.panels: {known}")
    axes = {"grid.activation": AXIS_IN_NAME.findall(" ".join(grid.activation))}
    axes["grid.method"] = [*AXIS_IN_NAME.findall(" ".join(grid.method)), *grid.method.values()]
    axes["measure.at"] = [figure.measure.at] if figure.measure else []
    for key, wanted in axes.items():
        for axis in wanted:
            if axis not in scale.axes:
                known = unknown(f"axis of scale '{name}'", axis, scale.axes)
                raise NmeError(f"{path}: {key}: {known}")
    file = Path(path).parents[1] / "scales" / f"{name}.yaml"
    for registry, names in ((ACTIVATIONS, grid.activation), (METHODS, grid.method)):
        for template in names:
            for axis in AXIS_IN_NAME.findall(template):
                for value in scale.axes[axis]:
                    _check_value(registry, AXIS_IN_NAME.sub(value, template), f"{file}: axes.{axis}")
    for axis in axes["measure.at"]:
        late = [value for value in scale.axes[axis] if float(value) > 1]
        if late:
            raise NmeError(f"{file}: axes.{axis} has {late[0]} (allowed: fractions, 0 to 1)")
    if figure.curves and figure.curves.x != "strength":
        for activation in (text.split("-")[0] for text in grid.activation):
            if figure.curves.x not in ACTIVATIONS[activation].parameters:
                known = unknown(f"parameter of '{activation}'", figure.curves.x, ACTIVATIONS[activation].parameters)
                raise NmeError(f"{path}: curves.x: {known}")
        for method, axis in grid.method.items():
            positive = [value for value in scale.axes[axis] if float(value) > 0]
            if len(positive) > 1:
                raise NmeError(
                    f"{file}: axes.{axis} has {len(positive)} strengths of '{method}', but '{Path(path).stem}' has"
                    f" '{figure.curves.x}' on its x axis (allowed: one, and 0)"
                )


def _check_value(registry: Registry, text: str, where: str) -> None:
    try:
        registry.parse(text)
    except NmeError as error:
        raise NmeError(f"{where}: {error}") from None


def write_schemas(folder: Path) -> None:
    """Write the JSON schema of each kind of configuration file, for editors and for the workflow catalog."""
    for model in (Config, Scale, Figure, Style):
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
        with atomic(folder / f"{model.__name__.lower()}.schema.json") as path:
            path.write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
