"""Cells and members, the units of training. Planning imports no torch.

A *cell* is one combination of recipe, activation, training method and strength. A *member* is a cell with a seed.
"""

from dataclasses import dataclass
from itertools import product

from nme.activations import ACTIVATIONS
from nme.config.fields import AXIS_IN_NAME
from nme.config.figure import Figure
from nme.config.project import Project
from nme.config.scale import Scale
from nme.errors import NmeError, unknown
from nme.methods import METHODS
from nme.registry import number


@dataclass(frozen=True, order=True)
class Cell:
    """One combination of compared things; every field in canonical spelling.

    Every method with strength 0 is plain SGD, so all curves share that cell.
    """

    recipe: str
    activation: str
    method: str
    strength: str

    @classmethod
    def of(cls, recipe: str, activation: str, method: str, strength: float | str) -> "Cell":
        """Create the cell from any spelling of its names and numbers.

        Raises:
            NmeError: an unknown name, or a strength that is not a number ≥ 0.
        """
        strength = number(strength)
        trained = METHODS.parse(method)
        if strength == "0" or trained.symbol is None:
            trained, strength = METHODS.parse("sgd"), "0"
        return cls(recipe, str(ACTIVATIONS.parse(activation)), str(trained), strength)

    @property
    def path(self) -> str:
        """The cell's part of a path: ``recipe/activation/method/strength``."""
        return f"{self.recipe}/{self.activation}/{self.method}/{self.strength}"

    @classmethod
    def from_path(cls, path: str) -> "Cell":
        """Parse a ``path``."""
        return cls.of(*path.split("/"))


def jobs_of_seeds(seeds: int, seeds_per_job: int) -> list[range]:
    """Distribution of a cell's members over jobs.

    Every ``seeds_per_job`` seeds share one process. Each remaining seed has its own process, so that an additional seed
    trains only new members, unless it completes a job.

    >>> jobs_of_seeds(7, 3)
    [range(0, 3), range(3, 6), range(6, 7)]
    """
    whole = seeds - seeds % seeds_per_job
    shared = [range(first, first + seeds_per_job) for first in range(0, whole, seeds_per_job)]
    return [*shared, *(range(seed, seed + 1) for seed in range(whole, seeds))]


def format_seeds(seeds: range) -> str:
    """Format seeds as in a path: ``0-4`` or ``5``."""
    return f"{seeds[0]}-{seeds[-1]}" if len(seeds) > 1 else str(seeds[0])


def parse_seeds(text: str) -> range:
    """Parse the output of ``format_seeds``."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def job_of_path(scale: Scale, path: str, seeds: str) -> tuple[Cell, range]:
    """The cell and the seeds of the job at a path, which somebody may have typed. Any range of seeds is one.

    Raises:
        NmeError: an unknown name, or another spelling than the path's own, which would be a second path of the job.
    """
    recipe = path.split("/")[0]
    if recipe not in scale.recipes:
        raise NmeError(unknown("recipe", recipe, scale.recipes))
    cell, members = Cell.from_path(path), parse_seeds(seeds)
    if cell.path != path:
        raise NmeError(f"the path of this cell is '{cell.path}', not '{path}'")
    if not members or format_seeds(members) != seeds:
        raise NmeError(f"seeds are '{seeds}' (allowed: '5', or a range as in '0-4')")
    return cell, members


def expand(name: str, axes: dict[str, list[str]]) -> list[str]:
    """Expand a name with axes in braces into one name per value.

    >>> expand("beta_gelu-beta={beta}", {"beta": ["1", "4"]})
    ['beta_gelu-beta=1', 'beta_gelu-beta=4']
    """
    names = [name]
    for axis in AXIS_IN_NAME.findall(name):
        names = [n.replace(f"{{{axis}}}", value) for n in names for value in axes[axis]]
    return names


def cells(figure: Figure, scale: Scale) -> list[Cell]:
    """The cells of a figure, each once, in the order of the configuration; none if the figure trains nothing."""
    grid = figure.grid
    if grid is None:
        return []
    found: list[Cell] = []
    activations = [a for name in grid.activation for a in expand(name, scale.axes)]
    for recipe, activation in product(scale.panels[grid.panels], activations):
        for method, axis in grid.method.items():
            combinations = product(expand(method, scale.axes), scale.axes[axis])
            found += [Cell.of(recipe, activation, m, strength) for m, strength in combinations]
    return list(dict.fromkeys(found))


def recipes_of(figure: Figure, scale: Scale) -> list[str]:
    """The recipes of a figure, one per panel; none if the figure trains nothing."""
    return scale.panels[figure.grid.panels] if figure.grid else []


def training_jobs(project: Project, name: str) -> list[tuple[Cell, range]]:
    """The training jobs of a figure."""
    scale = project.scale
    return [
        (cell, seeds)
        for cell in cells(project.figures[name], scale)
        for seeds in jobs_of_seeds(scale.seeds_of(name), scale.recipes[cell.recipe].seeds_per_job)
    ]


def measurements(project: Project) -> dict[Cell, dict[str, list[float]]]:
    """Collect the measurements of each cell, over all figures that measure.

    Returns:
        For each measured cell its quantities, each with its times: fractions of the training, ascending.
    """
    needed: dict[Cell, dict[str, set[float]]] = {}
    for figure in project.figures.values():
        if figure.measure:
            at = {float(value) for value in project.scale.axes[figure.measure.at]}
            for cell in cells(figure, project.scale):
                for quantity in figure.measure.quantities:
                    needed.setdefault(cell, {}).setdefault(quantity, set()).update(at)
    return {cell: {name: sorted(at) for name, at in sorted(found.items())} for cell, found in needed.items()}


def snapshots(measurement: dict[str, list[float]]) -> list[float]:
    """Times at which a cell's network is saved, as fractions of the training: all times of its quantities."""
    return sorted({at for times in measurement.values() for at in times})
