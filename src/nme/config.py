"""The configuration: what a user may write, checked in full before any job starts.

``config/config.yaml`` is the user's page; ``config/scales/*.yaml`` say how large, ``config/figures/*.yaml`` say what a
figure compares, ``config/style.yaml`` which colours. The JSON schemas in ``workflow/schemas`` are made from these
models: ``python -m nme.config workflow/schemas``.
"""

import json
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
from nme.errors import NmeError, unknown
from nme.figures import drawable
from nme.files import atomic
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


Identifier = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
# One spelling per number, so that 0.1, 1e-1 and "0.10" are one cell.
Number = Annotated[
    str,
    BeforeValidator(_as_value_error(number)),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}]}),
]
Axis = Annotated[list[Number], Field(min_length=1), AfterValidator(_distinct)]
Names = AfterValidator(_distinct)


class Config(Closed):
    """The user's page, config/config.yaml."""

    scale: Identifier = Field(description="Which file of config/scales: how large everything is.")
    data_dir: str | None = Field(None, description="Folder with image sets you already have; null: download them.")
    device: Literal["cpu", "cuda", "auto"] = Field(
        "cpu", description="Where to train. auto: a GPU if there is one, else the CPU."
    )


class Dataset(Closed):
    """Which part of a dataset a scale uses."""

    train: Count | None = Field(None, description="Training examples, class-balanced; null: all.")
    test: Count | None = Field(None, description="Test examples, class-balanced; null: all.")


ModelSpec = Annotated[Union[tuple(MODELS.values())], Field(discriminator="name")]  # noqa: UP007


class Recipe(Closed):
    """How one network is trained; everything but the activation, the method, its strength and the seed."""

    dataset: _one_of("dataset", DATASETS) = Field(description="A dataset of this scale.")
    title: str = Field("", description="As written above a panel of a figure; empty: the recipe's name.")
    model: ModelSpec = Field(description="The network and its sizes.")
    augment: Literal["none", "crop_flip"] = Field(
        "none",
        description="crop_flip: random crop after padding by 1/8 of the side, and random horizontal flip.",
    )
    epochs: Count = Field(description="Passes over the training data.")
    batch_size: Count = Field(description="Examples per step; the last incomplete batch of an epoch is left out.")
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
    def _images_for_crops(self) -> "Recipe":
        shape = DATASETS[self.dataset].shape
        if self.augment == "crop_flip" and len(shape) != 3:
            raise ValueError(
                f"augment is 'crop_flip', but '{self.dataset}' has inputs {shape}, not images (allowed: none)"
            )
        return self

    @model_validator(mode="after")
    def _warmup_fits(self) -> "Recipe":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs:g} (allowed: less than epochs, {self.epochs})")
        return self


class Scale(Closed):
    """How large everything is: which recipes, how many seeds, which values on each axis."""

    seeds: Count = Field(description="Members per cell: seeds 0 to seeds − 1.")
    datasets: dict[_one_of("dataset", DATASETS), Dataset] = Field(description="Datasets and how much of each.")
    recipes: dict[Identifier, Recipe] = Field(
        min_length=1, description="Recipes by name; each is a panel of every grid figure."
    )
    axes: dict[Identifier, Axis] = Field(description="Values of strengths and activation parameters, by name.")

    @model_validator(mode="after")
    def _datasets_are_listed(self) -> "Scale":
        for name, recipe in self.recipes.items():
            if recipe.dataset not in self.datasets:
                raise ValueError(f"recipes.{name}: {unknown('dataset of this scale', recipe.dataset, self.datasets)}")
        return self


class Grid(Closed):
    """The trainings a figure compares: every combination of its axes, for every recipe of the scale."""

    activation: Annotated[list[_registered(ACTIVATIONS)], Field(min_length=1), Names]
    method: Annotated[list[_registered(METHODS)], Field(min_length=1), Names]
    strength: Identifier = Field(description="Name of an axis of the scale.")


class Landscape(Closed):
    """An exact loss landscape over two weights of one hidden layer; nothing is trained."""

    activation: Annotated[list[_registered(ACTIVATIONS)], Field(min_length=1), Names]
    widths: Annotated[list[Count], Field(min_length=2), AfterValidator(_two_by_two)] = Field(
        description="Inputs, then hidden units."
    )
    points: Annotated[int, Field(ge=3)] = Field(description="Grid points along each of the two weights.")
    half_width: PositiveFloat = Field(description="Both weights run over ± this.")
    seed: NonNegativeInt = Field(description="Seed of the other weights, the input and the target.")


class Figure(Closed):
    """One figure: what it compares and how it is captioned. The drawing is src/nme/figures/<name>.py."""

    kind: Literal["paper", "supplementary"] = Field(description="A figure of the paper, or one of ours.")
    title: str = Field(description="A short title, for the report.")
    caption: str = Field(description="What the figure shows and the claim it bears on, for the report.")
    grid: Grid | None = Field(None, description="Trainings it is made of.")
    landscape: Landscape | None = Field(None, description="An exact landscape it is made of.")

    @model_validator(mode="after")
    def _one_source(self) -> "Figure":
        if (self.grid is None) == (self.landscape is None):
            raise ValueError("give exactly one of 'grid' and 'landscape'")
        return self


Colour = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]


class Style(Closed):
    """One colour for the same thing on every figure."""

    activation: dict[_coloured(ACTIVATIONS), Colour] = Field(description="Colour of each activation, as #rrggbb.")


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
        raise NmeError(f"{folder}/config.yaml: {unknown('scale', config.scale, scales)}")
    path = folder / "scales" / f"{config.scale}.yaml"
    scale = check(Scale, read_yaml(path), str(path))
    figures = {}
    drawings = drawable()
    for path in sorted(folder.glob("figures/*.yaml")):
        if path.stem not in drawings:
            raise NmeError(f"{path}: {unknown('figure', path.stem, drawings)}: src/nme/figures has no such drawing")
        figure = figures[path.stem] = check(Figure, read_yaml(path), str(path))
        if figure.grid and figure.grid.strength not in scale.axes:
            known = unknown(f"axis of scale '{config.scale}'", figure.grid.strength, scale.axes)
            raise NmeError(f"{path}: grid.strength: {known}")
    path = folder / "style.yaml"
    return Project(config=config, scale=scale, figures=figures, style=check(Style, read_yaml(path), str(path)))


def write_schemas(folder: Path) -> None:
    """Write the JSON schema of each kind of configuration file, for editors and for the workflow catalog."""
    for model in (Config, Scale, Figure, Style):
        schema = {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
        with atomic(folder / f"{model.__name__.lower()}.schema.json") as path:
            path.write_text(json.dumps(schema, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    write_schemas(Path(sys.argv[1]))
