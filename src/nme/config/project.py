"""All configuration files together, checked against each other before any job starts.

``config/config.yaml`` is the user's page, ``config/scales/*.yaml`` set the size, ``config/figures/*.yaml`` describe the
figures, and ``config/style.yaml`` sets the colours.
"""

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    Field,
)

from nme.activations import ACTIVATIONS
from nme.config.fields import AXIS_IN_NAME, IDENTIFIER, Closed, Drawn, coloured
from nme.config.figure import DRAWINGS, Figure, Grid
from nme.config.messages import check
from nme.config.scale import Scale
from nme.errors import NmeError, unknown
from nme.methods import METHODS
from nme.models.settings import Count
from nme.registry import Registry, Thing


class Config(Closed):
    """The user's page, config/config.yaml."""

    scale: str = Field(description="Name of a file in config/scales, which sets the size of everything.")
    data_dir: str | None = Field(None, description="Folder with image sets you already have; null: download them.")
    device: Literal["cpu", "cuda", "auto"] = Field(
        "cpu", description="Device that trains. auto: a GPU if there is one, otherwise the CPU."
    )
    seeds: Count | None = Field(
        None,
        description="Members per cell, instead of the scale's numbers; an increase by multiples of seeds_per_job trains"
        " only new members.",
    )


Colour = Annotated[str, Field(pattern=r"^#[0-9a-fA-F]{6}$")]


class Style(Closed):
    """The colour of each thing, the same on every figure."""

    activation: dict[Annotated[str, coloured(ACTIVATIONS)], Colour] = Field(
        description="Colour of each activation, as #rrggbb."
    )
    method: dict[Annotated[str, coloured(METHODS)], Colour] = Field(
        description="Colour of each training method, as #rrggbb."
    )
    operator: dict[Drawn, Colour] = Field(
        description="Colour of H, G, N and of N_phi, the part of N from activation second derivatives, as #rrggbb."
    )


class Project(Closed):
    """All configuration files, checked against each other."""

    config: Config
    scale: Scale
    figures: dict[str, Figure]
    style: Style


def read_yaml(path: Path) -> Any:
    """Read a YAML file.

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
    """Load the whole configuration and check it.

    Args:
        values: the content of config.yaml, possibly with changes from a command line.
        folder: where scales/, figures/ and style.yaml are.

    Raises:
        NmeError: any mistake in any of the files; or a data_dir that does not exist.
    """
    folder = Path(folder)
    if not (folder / "scales").is_dir():
        raise NmeError(f"{folder}/scales: no such folder (a module of another workflow needs a copy of nme's config)")
    if isinstance(values, dict):  # --config gives null as a text
        values = {key: None if value == "null" else value for key, value in values.items()}
    config = check(Config, values, f"{folder}/config.yaml")
    if config.data_dir is not None and not Path(config.data_dir).expanduser().is_dir():
        raise NmeError(f"data_dir is '{config.data_dir}', which is not a folder (give an existing one, or null)")
    scales = {path.stem for path in folder.glob("scales/*.yaml")}
    if config.scale not in scales:
        raise NmeError(f"scale ({folder}/config.yaml, or --config): {unknown('scale', config.scale, scales)}")
    path_of_scale = folder / "scales" / f"{config.scale}.yaml"
    scale = check(Scale, read_yaml(path_of_scale), str(path_of_scale))
    if config.seeds is not None:
        scale = scale.model_copy(update={"seeds": config.seeds, "figure_seeds": {}})
    figures = {}
    for path in [*folder.glob("scales/*.y*ml"), *folder.glob("figures/*.y*ml")]:
        if path.suffix != ".yaml" or not re.fullmatch(IDENTIFIER, path.stem):
            raise NmeError(f"{path}: not a name (allowed: lower-case letters, digits and _, from a letter on; .yaml)")
    for path in sorted(folder.glob("figures/*.yaml")):
        figure = figures[path.stem] = check(Figure, read_yaml(path), str(path))
        if not figure.curves and path.stem not in DRAWINGS:
            known = unknown("figure", path.stem, DRAWINGS)
            raise NmeError(f"{path}: {known}: src/nme/figures has no drawing of this name, and 'curves' is missing")
        if figure.grid:
            _check_names(figure, figure.grid, scale, str(path), config.scale)
    trained = {name for name, figure in figures.items() if figure.grid}
    for name in sorted(scale.figure_seeds.keys() - trained):
        raise NmeError(f"{path_of_scale}: figure_seeds: {unknown('figure with members', name, trained)}")
    path = folder / "style.yaml"
    return Project(config=config, scale=scale, figures=figures, style=check(Style, read_yaml(path), str(path)))


def _check_names(figure: Figure, grid: Grid, scale: Scale, path: str, name: str) -> None:
    """Check that the scale has the lists and axes that a figure and its grid name."""
    if grid.panels not in scale.panels:
        known = unknown(f"list of panels of scale '{name}'", grid.panels, scale.panels)
        raise NmeError(f"{path}: grid.panels: {known}")
    axes = {"grid.activation": AXIS_IN_NAME.findall(" ".join(grid.activation))}
    axes["grid.method"] = [*AXIS_IN_NAME.findall(" ".join(grid.method)), *grid.method.values()]
    axes["measure.at"] = [figure.measure.at] if figure.measure else []
    for key, needed in axes.items():
        for axis in needed:
            if axis not in scale.axes:
                known = unknown(f"axis of scale '{name}'", axis, scale.axes)
                raise NmeError(f"{path}: {key}: {known}")
    file = Path(path).parents[1] / "scales" / f"{name}.yaml"
    _check_values(ACTIVATIONS, grid.activation, scale, file)
    _check_values(METHODS, grid.method, scale, file)
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


def _check_values(registry: Registry[type[Thing]], names: Iterable[str], scale: Scale, file: Path) -> None:
    """Check that every value of an axis is allowed in each name with this axis; ``file`` defines the axes."""
    for name in names:
        for axis in AXIS_IN_NAME.findall(name):
            for value in scale.axes[axis]:
                try:
                    registry.parse(AXIS_IN_NAME.sub(value, name))
                except NmeError as error:
                    raise NmeError(f"{file}: axes.{axis}: {error}") from None
