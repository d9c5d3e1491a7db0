"""Specs: the settings that decide the result of a job, one function per stage. Snakemake's params hold them."""

from nme.activations import ACTIVATIONS
from nme.config.figure import Figure
from nme.config.project import Project
from nme.config.scale import Recipe
from nme.grid.cells import Cell, cells, expand
from nme.methods import METHODS

# Raise a stage's number when its results change for the same settings: Snakemake then makes them again.
STAGE_VERSION = {"prepare": 2, "train": 5, "measure": 3, "landscape": 2, "tables": 1, "claims": 4, "map": 1, "plot": 5}


def dataset_spec(project: Project, dataset: str) -> dict:
    """What decides the content of a prepared dataset."""
    kind = project.scale.dataset_kind(dataset)
    unused = set() if kind.streamed else {"short_side", "quality"}
    return {
        "dataset": dataset,
        **project.scale.datasets[dataset].model_dump(exclude=unused),
        "source": kind.name,
        "version": STAGE_VERSION["prepare"],
    }


# Settings of a recipe that say how a job runs, not what it computes.
_RUNNING = {"title", "seeds_per_job", "memory_mb", "runtime_minutes"}


def train_spec(recipe: Recipe, cell: Cell, seeds: range, snapshots: list[float]) -> dict:
    """What decides the metrics and snapshots of a training job, besides its data.

    The network is kept for measurement at the fractions ``snapshots`` of the training.
    """
    return {
        "recipe": recipe.model_dump(exclude=_RUNNING),
        "activation": cell.activation,
        "method": cell.method,
        "strength": cell.strength,
        "seeds": list(seeds),
        "snapshots": snapshots,
        "version": STAGE_VERSION["train"],
    }


def measure_spec(project: Project, cell: Cell, seeds: range, measurement: dict[str, list[float]]) -> dict:
    """What decides the measurements on the networks of a training job, besides them and the data.

    ``measurement`` is the cell's of ``measurements``.
    """
    # A setting of one quantity is left out where that is not measured: a change of it must not repeat the others.
    unused = set() if "update_shares" in measurement else {"update_batches"}
    return {
        **project.scale.measurement.model_dump(exclude_none=True, exclude=unused),
        "recipe": project.scale.recipes[cell.recipe].model_dump(exclude=_RUNNING),
        "activation": cell.activation,
        "seeds": list(seeds),
        "quantities": measurement,
        "version": STAGE_VERSION["measure"],
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
        "recipes": {
            name: {
                "title": recipe.title or name,
                "seeds_per_job": recipe.seeds_per_job,
                "chance": 1 / len(scale.dataset_kind(recipe.dataset).classes),
            }
            for name in scale.panels[figure.grid.panels]
            for recipe in [scale.recipes[name]]
        },
        "cells": [cell.path for cell in cells(figure, scale)],
        "measured": figure.measure is not None,
        "version": STAGE_VERSION["tables"],
    }


def plot_spec(project: Project, name: str) -> dict:
    """What decides how a figure looks, besides its table: only the colours that it shows."""
    figure, axes = project.figures[name], project.scale.axes
    spec = {"figure": name, "scale": project.config.scale, "version": STAGE_VERSION["plot"]}
    if figure.curves:
        spec["curves"] = figure.curves.model_dump()
    if figure.measure:
        hidden = set() if "update_shares" in figure.measure.quantities else {"N_phi"}
        spec["colours"] = {name: c for name, c in project.style.operator.items() if name not in hidden}
    elif figure.grid:
        lines = figure.curves.lines if figure.curves else "activation"
        names = ["sgd", *figure.grid.method] if lines == "method" else figure.grid.activation
        registry = METHODS if lines == "method" else ACTIVATIONS
        shown = [str(registry.parse(n)) for name in names for n in expand(name, axes)]
        spec["colours"] = _colours(getattr(project.style, lines), shown)
    return spec


def _colours(chosen: dict[str, str], names: list[str]) -> dict[str, str]:
    """The colours of those names that have one: their own, or that of all of their name, whatever the parameter."""
    found = {name: chosen.get(name, chosen.get(name.split("-")[0])) for name in names}
    return {name: colour for name, colour in found.items() if colour}
