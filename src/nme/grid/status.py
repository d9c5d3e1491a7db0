"""Progress of each figure: jobs that are done, running or failed, and the remaining time."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

from nme.config.project import Project
from nme.errors import NmeError
from nme.grid.cells import snapshots, training_jobs
from nme.grid.paths import figures_read, measured_path, metrics_path, sources
from nme.grid.plan import Estimate
from nme.grid.specs import Spec, landscape_spec, measure_spec, train_spec
from nme.outputs import parquet
from nme.outputs.locks import at_work, lock_of
from nme.outputs.provenance import spec_hash


@dataclass(frozen=True)
class Job:
    """One training or measurement.

    Attributes:
        state: ``done``: a result with the current settings exists; ``running``: a process holds the job's lock;
            ``failed``: the job wrote into its log and ended without a result; ``waiting``: otherwise.
        seconds: estimated duration.
    """

    state: str
    seconds: float


@dataclass(frozen=True)
class Progress:
    """The jobs of one figure at a scale; ``drawn`` is True if ``figures/`` holds the figure at this scale.

    Attributes:
        jobs: jobs by output.
        hours_left: hours for the unfinished jobs, with as many in parallel as run now.
    """

    figure: str
    drawn: bool
    jobs: dict[str, Job] = field(repr=False)
    hours_left: float

    @property
    def needed(self) -> int:
        """Number of jobs that the figure needs."""
        return len(self.jobs)

    def count(self, state: str) -> int:
        """Number of jobs in a state."""
        return sum(job.state == state for job in self.jobs.values())


def status(project: Project, device: str, root: Path = Path()) -> list[Progress]:
    """Progress of every figure at the project's scale, and of ``all``, from the files below ``root``.

    The remaining time is the estimate of ``nme plan`` for the device.
    """
    estimate = Estimate(project, device, root)
    figures = {name: _jobs(project, name, estimate, root) for name in project.figures}
    everything = {path: job for jobs in figures.values() for path, job in jobs.items()}
    running = max(1, sum(job.state == "running" for job in everything.values()))

    def left(jobs: dict[str, Job]) -> float:
        seconds = [job.seconds + estimate.speed.start for job in jobs.values() if job.state != "done"]
        return sum(seconds) / min(running, len(seconds) or 1) / 3600

    drawn = {n: _scale_drawn(root / "figures" / f"{n}.csv") == project.config.scale for n in figures}
    rows = [Progress(name, drawn[name], jobs, left(jobs)) for name, jobs in figures.items()]
    return [*rows, Progress("all", all(drawn.values()), everything, left(everything))]


def _jobs(project: Project, name: str, estimate: Estimate, root: Path) -> dict[str, Job]:
    """Jobs of a figure, by output; the claims and the map have the jobs of the figures that they read."""
    figure, scale = project.figures[name], project.config.scale
    if figure.claims or figure.map:
        read = [_jobs(project, n, estimate, root) for n in figures_read(project, name)]
        return {path: job for jobs in read for path, job in jobs.items()}
    if figure.landscape:
        (path,) = sources(project, name)
        return {path: _job(root, path, landscape_spec(figure), 0.0)}
    found = {}
    for cell, seeds in training_jobs(project, name):
        kept = estimate.kept.get(cell, {})
        path, recipe = metrics_path(scale, cell, seeds), project.scale.recipes[cell.recipe]
        spec = train_spec(recipe, cell, seeds, snapshots(kept))
        found[path] = _job(root, path, spec, estimate.training(cell, seeds))
        if figure.measure:
            path, measuring = measured_path(scale, cell, seeds), measure_spec(project, cell, seeds, kept)
            found[path] = _job(root, path, measuring, estimate.measuring(cell, seeds))
    return found


def _job(root: Path, path: str, spec: Spec, seconds: float) -> Job:
    output = root / path
    if at_work(lock_of(output)):
        return Job("running", seconds)
    folder = (root / "logs" / Path(path).relative_to("results")).parent
    log = folder.with_name(f"{folder.name}.log")  # empty while the job starts
    try:
        record = parquet.read_record(output)
    except NmeError:  # missing, or damaged
        begun = output.exists() or (log.exists() and log.stat().st_size)
        return Job("failed" if begun else "waiting", seconds)
    if record["spec_sha256"] != spec_hash(spec.as_json()):
        return Job("waiting", seconds)
    return Job("done", seconds)


def _scale_drawn(numbers: Path) -> str | None:
    """Scale of the plotted numbers next to a figure; None if the file does not exist."""
    if not numbers.exists():
        return None
    with numbers.open(encoding="utf-8", newline="") as file:
        return next(csv.DictReader(file), {}).get("scale")
