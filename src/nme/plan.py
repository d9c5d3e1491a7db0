"""What a figure would cost before anything runs: jobs, members, steps, hours, memory and disk.

A training step costs its method's count of gradients (``Method.gradients``), and a gradient three forward passes, whose
floating point operations are counted on the recipe's network. ``SPEED`` turns operations into seconds; it was measured
on one core of a laptop-class processor, and is a guess of half the dense float32 speed for a data centre's GPU.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from nme import grid
from nme.config import Project, Recipe
from nme.datasets import DATASETS
from nme.methods import METHODS


@dataclass(frozen=True)
class Speed:
    """How fast a device is: operations a second, seconds a gradient beside them, and seconds to start a job."""

    operations: float
    overhead: float
    start: float


SPEED = {"cpu": Speed(2.5e10, 0.4e-3, 3.5), "cuda": Speed(1e13, 3e-3, 15)}
SNAPSHOT_BYTES = 4  # a parameter
METRICS_BYTES = 12_000  # a job's parquet file, with its provenance


@dataclass(frozen=True)
class Cost:
    """The cost of some trainings and their measurements.

    Attributes:
        jobs: training and measurement jobs.
        members: trained networks.
        steps: training steps of all members.
        hours: of one core, or of one GPU, of all jobs one after the other.
        memory_mb: the most that a job asks for at its first attempt.
        disk_mb: results, without prepared data.
    """

    jobs: int
    members: int
    steps: int
    hours: float
    memory_mb: int
    disk_mb: float


def steps_of(recipe: Recipe, train: int | None) -> int:
    """Training steps of one member; ``train``: examples, None for all of the dataset."""
    examples = train or DATASETS[recipe.dataset].counts[0]
    return recipe.epochs * (examples // recipe.batch_size)


def network_of(recipe: Recipe) -> tuple[float, int]:
    """Operations of one example's forward pass, and the number of parameters; nothing is computed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from nme.activations import ACTIVATIONS

    shape, classes = DATASETS[recipe.dataset].shape, len(DATASETS[recipe.dataset].classes)
    with torch.device("meta"):
        model = recipe.model.build(tuple(shape), classes, ACTIVATIONS.parse("relu"))
        with FlopCounterMode(display=False) as counter:
            model.eval()(torch.empty(2, *shape))
    return counter.get_total_flops() / 2, sum(p.numel() for p in model.parameters())


def cost(project: Project, figures: Iterable[str], device: str, networks: dict[str, tuple[float, int]]) -> Cost:
    """The cost of everything that these figures are made from, each training once.

    Args:
        project: at its scale.
        figures: names.
        device: ``cpu`` or ``cuda``.
        networks: ``network_of`` each recipe.
    """
    scale, speed = project.scale, SPEED[device]
    wanted = [project.figures[name] for name in figures]
    names = {claimed for figure in wanted if figure.claims for claimed in _claimed(figure)}
    wanted += [project.figures[name] for name in names]
    trained = {job for figure in wanted if figure.grid for job in grid.training_jobs(figure, scale)}
    kept = grid.measurements(project)
    measured = {job for figure in wanted if figure.measure for job in grid.training_jobs(figure, scale)}
    seconds, steps, members, disk = 0.0, 0, 0, 0.0
    for cell, seeds in trained:
        recipe = scale.recipes[cell.recipe]
        dataset = DATASETS[recipe.dataset]
        subset = scale.datasets[recipe.dataset]
        operations, parameters = networks[cell.recipe]
        gradient = 3 * operations * recipe.batch_size / speed.operations + speed.overhead
        a_member = steps_of(recipe, subset.train)
        forward = operations * (subset.test or dataset.counts[1]) / speed.operations
        one = a_member * gradient * METHODS.parse(cell.method).gradients + recipe.epochs * forward
        snapshots = len(grid.snapshots(kept.get(cell, {})))
        seconds += speed.start + len(seeds) * one
        steps += len(seeds) * a_member
        members += len(seeds)
        disk += METRICS_BYTES + len(seeds) * snapshots * SNAPSHOT_BYTES * parameters
        if (cell, seeds) in measured:
            batches = scale.measurement.examples / recipe.batch_size
            products = sum(_products(project, name) * len(at) for name, at in kept[cell].items())
            seconds += speed.start + len(seeds) * products * 2.5 * gradient * batches
            disk += METRICS_BYTES
    memory = max((scale.recipes[cell.recipe].memory_mb for cell, _ in trained), default=0)
    jobs = len(trained) + len(measured)
    return Cost(jobs, members, steps, seconds / 3600, memory, disk / 2**20)


def _claimed(figure) -> set[str]:
    return {contrast.figure or claim.figure for claim in figure.claims.list for contrast in claim.contrasts}


def _products(project: Project, quantity: str) -> float:
    """Products with H, G or N that a quantity takes, roughly."""
    settings = project.scale.measurement
    spectrum = 3 * settings.spectrum_probes * settings.lanczos_steps
    return {"traces": settings.probes, "squared_norms": 6 * settings.probes, "spectrum": spectrum}.get(quantity, 1)


def plan(project: Project, device: str) -> dict[str, Cost]:
    """The cost of each figure by itself, and of all of them together, which share trainings."""
    networks = {name: network_of(recipe) for name, recipe in project.scale.recipes.items()}
    found = {name: cost(project, [name], device, networks) for name in project.figures}
    return {**found, "all": cost(project, list(project.figures), device, networks)}
