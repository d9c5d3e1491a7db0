"""From the configuration to cells, members and paths, and back. Pure Python: planning imports no torch.

A *cell* is one combination of recipe, activation, training method and strength; a *member* is a cell with a seed. The
path of a result is its identity, so two figures that ask for the same cell share it.
"""

from dataclasses import dataclass
from itertools import product

from nme.activations import ACTIVATIONS
from nme.config import Figure, Project, Recipe, Scale
from nme.methods import METHODS
from nme.registry import number

# Raise a stage's number when its results change for the same settings: Snakemake then makes them again.
STAGE_VERSION = {"prepare": 1, "train": 1, "landscape": 1, "tables": 1, "plot": 1}


DATASET_FILES = {"train": "train.arrow", "test": "test.arrow", "manifest": "manifest.json"}


@dataclass(frozen=True, order=True)
class Cell:
    """One combination of what is compared; every field in its one spelling.

    Strength 0 of any method is plain SGD, so all curves share that cell.
    """

    recipe: str
    activation: str
    method: str
    strength: str

    @classmethod
    def of(cls, recipe: str, activation: str, method: str, strength: float | str) -> "Cell":
        """The cell, from any spelling of its names and numbers.

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
        """The cell whose ``path`` this is."""
        return cls.of(*path.split("/"))


def jobs_of_seeds(seeds: int, seeds_per_job: int) -> list[range]:
    """How the members of a cell are shared out to jobs.

    The first ``seeds_per_job`` seeds share one process; every further seed has its own, so that one more seed trains
    only new members. With fewer seeds than that, each has its own.
    """
    first = seeds_per_job if seeds >= seeds_per_job else 1
    return [range(first), *(range(s, s + 1) for s in range(first, seeds))]


def format_seeds(seeds: range) -> str:
    """``0-4`` or ``5``, as in a path."""
    return f"{seeds[0]}-{seeds[-1]}" if len(seeds) > 1 else str(seeds[0])


def parse_seeds(text: str) -> range:
    """The seeds that ``format_seeds`` wrote."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def metrics_path(scale: str, cell: Cell, seeds: range) -> str:
    """Where the metrics of one training job are."""
    return f"results/{scale}/train/{cell.path}/seed={format_seeds(seeds)}/metrics.parquet"


def cells(figure: Figure, scale: Scale) -> list[Cell]:
    """The cells of a grid figure, each once, in the order of the configuration."""
    grid = figure.grid
    combinations = product(scale.recipes, grid.activation, grid.method, scale.axes[grid.strength])
    return list(dict.fromkeys(Cell.of(*combination) for combination in combinations))


def training_jobs(figure: Figure, scale: Scale) -> list[tuple[Cell, range]]:
    """The training jobs of a grid figure."""
    return [
        (cell, seeds)
        for cell in cells(figure, scale)
        for seeds in jobs_of_seeds(scale.seeds, scale.recipes[cell.recipe].seeds_per_job)
    ]


def sources(project: Project, name: str) -> list[str]:
    """The files that a figure's table is made from."""
    figure, scale = project.figures[name], project.config.scale
    if figure.landscape:
        return [f"results/{scale}/landscape/{name}.parquet"]
    return [metrics_path(scale, cell, seeds) for cell, seeds in training_jobs(figure, project.scale)]


def table_path(project: Project, name: str) -> str:
    """What a figure is drawn from: its table, or the landscape itself."""
    if project.figures[name].landscape:
        return sources(project, name)[0]
    return f"results/{project.config.scale}/tables/{name}.parquet"


def dataset_spec(project: Project, dataset: str) -> dict:
    """What decides the content of a prepared dataset."""
    return {
        "dataset": dataset,
        **project.scale.datasets[dataset].model_dump(),
        "version": STAGE_VERSION["prepare"],
    }


# Settings of a recipe that say how a job runs, not what it computes.
_RUNNING = {"title", "seeds_per_job", "memory_mb", "runtime_minutes"}


def train_spec(recipe: Recipe, cell: Cell, seeds: range) -> dict:
    """What decides the metrics of a training job, besides its data."""
    return {
        "recipe": recipe.model_dump(exclude=_RUNNING),
        "activation": cell.activation,
        "method": cell.method,
        "strength": cell.strength,
        "seeds": list(seeds),
        "version": STAGE_VERSION["train"],
    }


def landscape_spec(figure: Figure) -> dict:
    """What decides a landscape."""
    return {**figure.landscape.model_dump(), "version": STAGE_VERSION["landscape"]}


def table_spec(project: Project, name: str) -> dict:
    """What decides the table of a grid figure: its cells, their seeds, where they are and how panels are titled."""
    figure, scale = project.figures[name], project.scale
    return {
        "scale": project.config.scale,
        "seeds": scale.seeds,
        "recipes": {r: {"title": s.title or r, "seeds_per_job": s.seeds_per_job} for r, s in scale.recipes.items()},
        "cells": [cell.path for cell in cells(figure, scale)],
        "version": STAGE_VERSION["tables"],
    }


def plot_spec(project: Project, name: str) -> dict:
    """What decides how a figure looks, besides its table: only the colours that it shows."""
    grid = project.figures[name].grid
    spec = {"figure": name, "version": STAGE_VERSION["plot"]}
    if grid:
        spec["activation"] = _colours(project.style.activation, grid.activation)
    return spec


def _colours(chosen: dict[str, str], names: list[str]) -> dict[str, str]:
    """The colours of those names that have one: their own, or that of all of their name, whatever the parameter."""
    found = {name: chosen.get(name, chosen.get(name.split("-")[0])) for name in names}
    return {name: colour for name, colour in found.items() if colour}


def dataset_files(project: Project, recipe: str) -> dict[str, str]:
    """The prepared files that a recipe trains on."""
    folder = f"results/{project.config.scale}/data/{project.scale.recipes[recipe].dataset}"
    return {name: f"{folder}/{file}" for name, file in DATASET_FILES.items()}
