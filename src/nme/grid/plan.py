"""Estimated cost of a figure before anything runs: jobs, members, steps, hours, memory and disk.

A training step costs its method's number of gradients (``Method.gradients``), and a gradient costs three forward
passes, whose floating-point operations are counted on the recipe's network. ``SPEED`` turns operations and layers into
seconds: small networks take as long to start operations as to compute them. The CPU's is that of one core of a server
of 2023, from the jobs of three scales (docs/benchmarks.md); the GPU's is a guess, half the dense float32 speed of a
data-centre GPU. ``FASTER``, also a guess, is the gain of a shorter ``precision`` there. Both guesses yield to step
times measured on a GPU (``nme.grid.measured_steps``), for networks that have them. All estimates of a scale are scaled
by the durations of its finished jobs (``nme.grid.pace``).
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from nme.config.project import Project
from nme.config.scale import Measurement, Recipe, Scale
from nme.errors import NmeError
from nme.grid import cells
from nme.grid.cells import Cell, measurements, training_jobs
from nme.grid.measured_steps import MeasuredSteps, measured_steps
from nme.grid.pace import Pace
from nme.grid.paths import figures_read, measured_path, metrics_path
from nme.grid.specs import Spec, measure_spec, train_spec
from nme.methods import METHODS
from nme.outputs import parquet
from nme.outputs.provenance import spec_hash


@dataclass(frozen=True)
class Speed:
    """Speed of a device: operations per second, overhead in seconds per layer and gradient, seconds to start a job."""

    operations: float
    overhead: float
    start: float


Job = tuple[Cell, range]  # with the seeds of its members

SPEED = {"cpu": Speed(5e10, 0.22e-3, 3.0), "cuda": Speed(1e13, 0.1e-3, 15)}
FASTER = {"fp32": 1, "tf32": 3, "bf16": 6}
SNAPSHOT_BYTES = 4  # per parameter
METRICS_BYTES = 12_000  # per job: its parquet file, with provenance


@dataclass(frozen=True)
class Cost:
    """The cost of some trainings and their measurements.

    Attributes:
        jobs: training and measurement jobs.
        members: trained networks.
        steps: training steps of all members.
        hours: by device, for all jobs one after the other on one core (``cpu``) or one GPU (``cuda``).
        memory_mb: largest memory request of a job at its first attempt.
        disk_mb: size of the results, without prepared data.
    """

    jobs: int
    members: int
    steps: int
    hours: dict[str, float]
    memory_mb: int
    disk_mb: float


def steps_of(scale: Scale, recipe: Recipe) -> int:
    """Training steps of one member."""
    examples = scale.datasets[recipe.dataset].train or scale.dataset_kind(recipe.dataset).counts[0]
    return recipe.epochs * (examples // recipe.batch_size)


class Network(NamedTuple):
    """What a network's steps cost: operations of one example's forward pass, layers, parameters."""

    operations: float
    layers: int
    parameters: int


def network_of(scale: Scale, recipe: Recipe) -> Network:
    """Count on the recipe's network; nothing is computed."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from nme.activations import ACTIVATIONS

    shape, classes = scale.input_shape(recipe), len(scale.dataset_kind(recipe.dataset).classes)
    with torch.device("meta"):
        model = recipe.model.build(shape, classes, ACTIVATIONS.parse("relu"))
        with FlopCounterMode(display=False) as counter:
            model.eval()(torch.empty(2, *shape))
    layers = sum(not module._modules for module in model.modules())
    return Network(counter.get_total_flops() / 2, layers, sum(p.numel() for p in model.parameters()))


class Estimate:
    """Estimated seconds of each job of a project on a device, without its start.

    Args:
        project: project, with its scale.
        device: ``cpu`` or ``cuda``.
        root: folder with the results, whose finished jobs on this kind of device scale the estimates; None: none do.
    """

    def __init__(self, project: Project, device: str, root: Path | None = None):
        self.project, self.device, self.speed = project, device, SPEED[device]
        self.steps = measured_steps() if device == "cuda" else MeasuredSteps([])
        self.kept = measurements(project)
        self.networks = {name: network_of(project.scale, recipe) for name, recipe in project.scale.recipes.items()}
        faster = FASTER if device == "cuda" else dict.fromkeys(FASTER, 1)
        recipes = project.scale.recipes
        self.operations = {name: self.speed.operations * faster[r.precision] for name, r in recipes.items()}
        self.pace = Pace() if root is None else self._pace(root)

    def training(self, cell: Cell, seeds: range) -> float:
        """Seconds of a training job."""
        return self.pace.of("train", cell) * self._training(cell, seeds)

    def measuring(self, cell: Cell, seeds: range) -> float:
        """Seconds of the job that measures a training job's snapshots."""
        return self.pace.of("measure", cell) * self._measuring(cell, seeds)

    def _pace(self, root: Path) -> Pace:
        project, scale, pace = self.project, self.project.config.scale, Pace()
        for cell, seeds in {job for name in project.figures for job in training_jobs(project, name)}:
            asked = self.kept.get(cell, {})
            spec: Spec = train_spec(project.scale.recipes[cell.recipe], cell, seeds, cells.snapshots(asked))
            seconds = self._seconds_of(root / metrics_path(scale, cell, seeds), spec)
            if seconds is not None:
                pace.learn("train", cell, seconds, self._training(cell, seeds))
            if not asked:
                continue
            spec = measure_spec(project, cell, seeds, asked)
            seconds = self._seconds_of(root / measured_path(scale, cell, seeds), spec)
            if seconds is not None:
                pace.learn("measure", cell, seconds, self._measuring(cell, seeds))
        return pace

    def _seconds_of(self, result: Path, spec: Spec) -> float | None:
        """Duration of a finished job with these settings on this kind of device."""
        try:
            record = parquet.read_record(result)
        except NmeError:  # missing, or damaged
            return None
        same = record["spec_sha256"] == spec_hash(spec.as_json())
        return record["seconds"] if same and record["device"].startswith("cpu") == (self.device == "cpu") else None

    def _training(self, cell: Cell, seeds: range) -> float:
        scale = self.project.scale
        recipe, operations = scale.recipes[cell.recipe], self.networks[cell.recipe].operations
        tested = scale.datasets[recipe.dataset].test or scale.dataset_kind(recipe.dataset).counts[1]
        tested *= -(-recipe.epochs // recipe.test_epochs)
        step, forward = self._measured(recipe, cell.method), self._measured(recipe, "sgd")
        if step is None or forward is None:
            step = self._gradient(cell, self.operations[cell.recipe]) * METHODS.parse(cell.method).gradients
            testing = tested * operations / self.operations[cell.recipe]
        else:
            testing = tested * forward / recipe.batch_size / 3
        return len(seeds) * (steps_of(scale, recipe) * step + testing)

    def _measured(self, recipe: Recipe, method: str) -> float | None:
        """Measured seconds of a step, on a GPU, if there are any."""
        return self.steps.seconds(recipe, self.project.scale.input_shape(recipe), method)

    def _measuring(self, cell: Cell, seeds: range) -> float:
        settings = self.project.scale.measurement
        batches = settings.examples / self.project.scale.recipes[cell.recipe].batch_size
        products = sum(_products(settings, name, batches) * len(at) for name, at in self.kept[cell].items())
        return len(seeds) * products * 2.5 * self._gradient(cell, self.speed.operations)  # in fp32

    def _gradient(self, cell: Cell, speed: float) -> float:
        recipe, network = self.project.scale.recipes[cell.recipe], self.networks[cell.recipe]
        return 3 * network.operations * recipe.batch_size / speed + network.layers * self.speed.overhead


def cost(estimates: dict[str, Estimate], figures: Iterable[str]) -> Cost:
    """Total cost of the jobs of these figures, each training counted once; estimates are by device."""
    one = estimates["cpu"]
    project, scale = one.project, one.project.scale
    figures = list(figures)
    needed = [*figures, *(read for name in figures for read in figures_read(project, name))]
    trained = {job for name in needed for job in training_jobs(project, name)}
    measured = {job for name in needed if project.figures[name].measure for job in training_jobs(project, name)}
    jobs = len(trained) + len(measured)
    hours = {device: _seconds(estimate, trained, measured) / 3600 for device, estimate in estimates.items()}
    steps, members, disk = 0, 0, jobs * METRICS_BYTES
    for cell, seeds in trained:
        recipe = scale.recipes[cell.recipe]
        steps += len(seeds) * steps_of(scale, recipe)
        members += len(seeds)
        snapshots = len(cells.snapshots(one.kept.get(cell, {})))
        disk += len(seeds) * snapshots * SNAPSHOT_BYTES * one.networks[cell.recipe].parameters
    memory = max((scale.recipes[cell.recipe].memory_mb for cell, _ in trained), default=0)
    return Cost(jobs, members, steps, hours, memory, disk / 2**20)


def _seconds(estimate: Estimate, trained: set[Job], measured: set[Job]) -> float:
    training, measuring = [estimate.training(*job) for job in trained], [estimate.measuring(*job) for job in measured]
    return sum(training) + sum(measuring) + (len(training) + len(measuring)) * estimate.speed.start


def _products(settings: Measurement, quantity: str, batches: float) -> float:
    """Approximate number of products with one training batch's H, G or N that a quantity takes.

    ``batches`` is ``settings.examples`` in units of training batches.
    """
    if quantity == "update_shares":  # 20 F for each of its batches; a product costs 2.5 gradients of 3 F each
        return 3 * settings.update_batches
    spectrum = 3 * settings.spectrum_probes * settings.lanczos_steps
    found = {"traces": settings.probes, "squared_norms": 6 * settings.probes, "spectrum": spectrum}
    return batches * found.get(quantity, 1)


def plan(project: Project, root: Path | None = None) -> dict[str, Cost]:
    """Cost of each figure by itself, and of all figures together, which share trainings.

    The finished jobs below ``root`` scale the estimates of the others.
    """
    estimates = {device: Estimate(project, device, root) for device in SPEED}
    found = {name: cost(estimates, [name]) for name in project.figures}
    return {**found, "all": cost(estimates, list(project.figures))}
