"""From the configuration to cells, members and paths, and back. Pure Python: planning imports no torch.

A *cell* is one combination of recipe, activation, training method and strength; a *member* is a cell with a seed. The
path of a result is its identity, so two figures that ask for the same cell share it.
"""

from dataclasses import dataclass
from itertools import product

from nme.activations import ACTIVATIONS
from nme.config import AXIS_IN_NAME, Claim, Contrast, Figure, Project, Recipe, Scale
from nme.errors import NmeError, unknown
from nme.methods import METHODS
from nme.registry import number

# Raise a stage's number when its results change for the same settings: Snakemake then makes them again.
STAGE_VERSION = {"prepare": 2, "train": 6, "measure": 3, "landscape": 2, "tables": 1, "claims": 4, "plot": 5}


DATASET_FILES = {"train": "train.arrow", "test": "test.arrow", "manifest": "manifest.json"}
SHARDED_FILES = {"shards": "shards", "manifest": "manifest.json"}  # of streamed datasets


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

    Every ``seeds_per_job`` seeds share one process; those that are left have one each, so that one more seed trains
    only new members, until it completes a job.

    >>> jobs_of_seeds(7, 3)
    [range(0, 3), range(3, 6), range(6, 7)]
    """
    whole = seeds - seeds % seeds_per_job
    shared = [range(first, first + seeds_per_job) for first in range(0, whole, seeds_per_job)]
    return [*shared, *(range(seed, seed + 1) for seed in range(whole, seeds))]


def format_seeds(seeds: range) -> str:
    """``0-4`` or ``5``, as in a path."""
    return f"{seeds[0]}-{seeds[-1]}" if len(seeds) > 1 else str(seeds[0])


def parse_seeds(text: str) -> range:
    """The seeds that ``format_seeds`` wrote."""
    first, _, last = text.partition("-")
    return range(int(first), int(last or first) + 1)


def job_folder(scale: str, stage: str, cell: Cell, seeds: range) -> str:
    """Where a job of the stage ``train`` or ``measure`` has its results."""
    return f"results/{scale}/{stage}/{cell.path}/seed={format_seeds(seeds)}"


def metrics_path(scale: str, cell: Cell, seeds: range) -> str:
    """Where the metrics of one training job are."""
    return f"{job_folder(scale, 'train', cell, seeds)}/metrics.parquet"


def measured_path(scale: str, cell: Cell, seeds: range) -> str:
    """Where the measurements of the networks of one training job are."""
    return f"{job_folder(scale, 'measure', cell, seeds)}/measured.parquet"


def expand(name: str, axes: dict[str, list[str]]) -> list[str]:
    """The names that a name with axes in braces stands for, one a value.

    >>> expand("beta_gelu-beta={beta}", {"beta": ["1", "4"]})
    ['beta_gelu-beta=1', 'beta_gelu-beta=4']
    """
    names = [name]
    for axis in AXIS_IN_NAME.findall(name):
        names = [n.replace(f"{{{axis}}}", value) for n in names for value in axes[axis]]
    return names


def cells(figure: Figure, scale: Scale) -> list[Cell]:
    """The cells of a grid figure, each once, in the order of the configuration."""
    grid, found = figure.grid, []
    activations = [a for name in grid.activation for a in expand(name, scale.axes)]
    for recipe, activation in product(scale.panels[grid.panels], activations):
        for method, axis in grid.method.items():
            combinations = product(expand(method, scale.axes), scale.axes[axis])
            found += [Cell.of(recipe, activation, m, strength) for m, strength in combinations]
    return list(dict.fromkeys(found))


def training_jobs(figure: Figure, scale: Scale) -> list[tuple[Cell, range]]:
    """The training jobs of a grid figure."""
    return [
        (cell, seeds)
        for cell in cells(figure, scale)
        for seeds in jobs_of_seeds(scale.seeds, scale.recipes[cell.recipe].seeds_per_job)
    ]


def measurements(project: Project) -> dict[Cell, dict[str, list[float]]]:
    """What is measured on the networks of each cell that a figure measures: all that any of them asks for.

    Returns:
        For each such cell the quantities, each with when: fractions of the training, ascending.
    """
    wanted: dict[Cell, dict[str, set[float]]] = {}
    for figure in project.figures.values():
        if figure.measure:
            at = {float(value) for value in project.scale.axes[figure.measure.at]}
            for cell in cells(figure, project.scale):
                for quantity in figure.measure.quantities:
                    wanted.setdefault(cell, {}).setdefault(quantity, set()).update(at)
    return {cell: {name: sorted(at) for name, at in sorted(found.items())} for cell, found in wanted.items()}


def snapshots(measurement: dict[str, list[float]]) -> list[float]:
    """When the network of a cell is kept, as fractions of the training: whenever a quantity of it is measured."""
    return sorted({at for times in measurement.values() for at in times})


def sources(project: Project, name: str) -> list[str]:
    """The files that a figure's table is made from."""
    figure, scale = project.figures[name], project.config.scale
    if figure.landscape:
        return [f"results/{scale}/landscape/{name}.parquet"]
    if figure.claims:
        read = [c.figure or claim.figure for claim in figure.claims.list for c in claim.contrasts]
        return [table_path(project, n) for n in dict.fromkeys(read)]
    path = measured_path if figure.measure else metrics_path
    return [path(scale, cell, seeds) for cell, seeds in training_jobs(figure, project.scale)]


def table_path(project: Project, name: str) -> str:
    """What a figure is drawn from: its table, the landscape itself, or the claims."""
    figure = project.figures[name]
    if figure.landscape:
        return sources(project, name)[0]
    if figure.claims:
        return f"results/{project.config.scale}/{name}.parquet"
    return f"results/{project.config.scale}/tables/{name}.parquet"


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


def term_cells(project: Project, figure: str, term: str) -> list[tuple[str, str, str]]:
    """The (activation, method, strength) that a term of a contrast stands for, each once, in any recipe of the figure.

    A term is ``activation/method/axis`` or ``activation/sgd``; a comma separates alternatives.

    Raises:
        NmeError: the term is not written so, names an unknown axis, or is not among the figure's cells.
    """
    scale = project.scale
    parts = [part.split(",") for part in term.split("/")]
    if len(parts) not in (2, 3) or (len(parts) == 2 and parts[1] != ["sgd"]):
        raise NmeError(f"'{term}' is no term (allowed: activation/method/axis, or activation/sgd)")
    unknown_axes = {a for a in [*AXIS_IN_NAME.findall(term), *(parts[2:] or [[]])[0]] if a not in scale.axes}
    if unknown_axes:
        known = unknown(f"axis of scale '{project.config.scale}'", min(unknown_axes), scale.axes)
        raise NmeError(f"'{term}': {known}")
    activations, methods = ([n for name in names for n in expand(name, scale.axes)] for names in parts[:2])
    strengths = [value for axis in parts[2] for value in scale.axes[axis]] if len(parts) == 3 else ["0"]
    found = []
    there = cells(project.figures[figure], scale)
    for combination in product(activations, methods, strengths):
        cell = Cell.of(there[0].recipe, *combination)
        if cell not in there:
            raise NmeError(f"'{term}': {figure} has no training {cell.activation}/{cell.method}/{cell.strength}")
        found.append((cell.activation, cell.method, cell.strength))
    return list(dict.fromkeys(found))


def claims_spec(project: Project, name: str) -> dict:
    """What decides the claims table, besides the tables it is made from.

    Raises:
        NmeError: a claim's figure is not there, has no grid, or lacks a training that a contrast names; the terms of a
            contrast do not pair up; two claims have the same number; or no recipe has all contrasts of a claim.
    """
    claims = project.figures[name].claims
    numbers = [claim.number for claim in claims.list]
    twice = [n for n in numbers if numbers.count(n) > 1]
    if twice:
        raise NmeError(f"claims: number {twice[0]} is given to more than one claim (each needs its own)")
    return {
        "scale": project.config.scale,
        "smallest_effect": claims.smallest_effect.model_dump(),
        "claims": [
            {
                "number": claim.number,
                "says": claim.says,
                "figure": claim.figure,
                "contrasts": [_contrast_spec(project, c.figure or claim.figure, c) for c in claim.contrasts],
                "recipes": _recipes(project, claim),
            }
            for claim in claims.list
        ],
        "version": STAGE_VERSION["claims"],
    }


def _recipes(project: Project, claim: Claim) -> list[str]:
    """The recipes that all contrasts of a claim have, in the order of the first one's panels."""
    figures = [project.figures[contrast.figure or claim.figure] for contrast in claim.contrasts]
    panels = [project.scale.panels[figure.grid.panels] for figure in figures]
    found = [recipe for recipe in panels[0] if all(recipe in others for others in panels)]
    if not found:
        raise NmeError(f"claims: claim {claim.number}: its contrasts have no recipe in common (allowed: one or more)")
    return found


def _contrast_spec(project: Project, figure: str, contrast: Contrast) -> dict:
    traced = contrast.trace is not None
    grids = {name: f for name, f in project.figures.items() if f.grid}
    if traced:
        able = [name for name, f in grids.items() if f.measure and "traces" in f.measure.quantities]
    else:
        able = [name for name, f in grids.items() if not f.measure]
    try:
        if figure not in able:
            raise NmeError(unknown("figure with traces" if traced else "figure with accuracies", figure, able))
        terms = {side: [term_cells(project, figure, t) for t in getattr(contrast, side)] for side in ("plus", "minus")}
        over = contrast.over or ("each" if contrast.expect in ("similar", "different") else "mean")
        terms = _paired(terms, over)
        trace = None
        if traced:
            last = max(float(at) for at in project.scale.axes[grids[figure].measure.at])
            trace = {"operator": contrast.trace, "at": last}
    except NmeError as error:
        raise NmeError(f"claims: contrast '{contrast.name}': {error}") from None
    described = {"name": contrast.name, "expect": contrast.expect, "over": over, "trace": trace}
    return {**described, "table": table_path(project, figure), **terms}


def _paired(terms: dict[str, list[list]], over: str) -> dict[str, list[list]]:
    """The terms of a contrast, after a check that their cells pair up; for a trend in ascending order.

    Raises:
        NmeError: their numbers of cells differ and are not 1; or a trend is not over one axis, the same for all terms.
    """
    every = [term for side in terms.values() for term in side]
    lengths = sorted({len(term) for term in every} - {1})
    if over in ("each", "any") and len(lengths) > 1:
        raise NmeError(
            f"over is '{over}', but its terms have {' and '.join(map(str, lengths))} cells"
            " (allowed: the same number, or 1)"
        )
    if over != "trend":
        return terms
    positions = {tuple(sorted(_positions(term))) for term in every}
    if len(positions) > 1:
        raise NmeError(
            "over is 'trend', but its terms are over different values (allowed: the same axis for all terms)"
        )
    return {side: [[cell for _, cell in sorted(_positions(t).items())] for t in own] for side, own in terms.items()}


def _positions(term: list[tuple[str, str, str]]) -> dict[float, tuple[str, str, str]]:
    """The cells of a term of a trend by their strength, or by the one parameter of their activation that varies."""
    activations = [ACTIVATIONS.parse(activation) for activation, _, _ in term]
    methods = {method for _, method, strength in term if strength != "0"}
    by_strength = {float(cell[2]): cell for cell in term}
    found: dict[float, tuple[str, str, str]] = {}
    if len(set(map(str, activations))) == 1 and len(methods) <= 1:
        found = by_strength
    elif len({a.name for a in activations}) == 1 and len(by_strength) == 1 and len({cell[1] for cell in term}) == 1:
        varying = [key for key in activations[0].values if len({a.values[key] for a in activations}) > 1]
        if len(varying) == 1:
            found = {float(a.values[varying[0]]): cell for a, cell in zip(activations, term, strict=True)}
    if len(found) != len(term) or len(term) < 2:
        text = ", ".join("/".join(cell) for cell in term)
        raise NmeError(
            f"over is 'trend', but a term is {text} (allowed: two or more strengths, or two or more values of β)"
        )
    return found


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


def described(project: Project, name: str) -> str:
    """A sentence for the caption: the values and the seeds that a grid figure shows at this scale."""
    figure, scale = project.figures[name], project.scale
    if not figure.grid:
        return ""
    used = [*AXIS_IN_NAME.findall(" ".join([*figure.grid.activation, *figure.grid.method]))]
    used += [*figure.grid.method.values()]
    values = "; ".join(f"{axis} {', '.join(scale.axes[axis])}" for axis in dict.fromkeys(used))
    seeds = f"{scale.seeds} seed{'s' if scale.seeds > 1 else ''}"
    noisy = {
        f"{100 * dataset.label_noise:g} % of the training labels of '{name}' are random; test labels are clean."
        for recipe in scale.panels[figure.grid.panels]
        for name in [scale.recipes[recipe].dataset]
        for dataset in [scale.datasets[name]]
        if dataset.label_noise
    }
    return " ".join([f"Values: {values}. {seeds}; {len(cells(figure, scale))} combinations.", *sorted(noisy)])


def _colours(chosen: dict[str, str], names: list[str]) -> dict[str, str]:
    """The colours of those names that have one: their own, or that of all of their name, whatever the parameter."""
    found = {name: chosen.get(name, chosen.get(name.split("-")[0])) for name in names}
    return {name: colour for name, colour in found.items() if colour}


def dataset_files(project: Project, recipe: str) -> dict[str, str]:
    """The prepared files that a recipe trains on."""
    dataset = project.scale.recipes[recipe].dataset
    files = SHARDED_FILES if project.scale.dataset_kind(dataset).streamed else DATASET_FILES
    return {name: f"results/{project.config.scale}/data/{dataset}/{file}" for name, file in files.items()}
