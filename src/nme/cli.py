"""The command line: one verb per stage, which Snakemake's rules call, and ``plan`` and ``status``."""

import gc
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nme import __version__
from nme.errors import Interrupted, NmeError

if TYPE_CHECKING:
    from nme.config.messages import Section
    from nme.config.project import Project
    from nme.grid import specs

app = typer.Typer(
    help=__doc__,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

TEMPORARY_FAILURE = 75  # EX_TEMPFAIL of sysexits.h: run it again

Spec = Annotated[str, typer.Option(help="The settings that decide the result, as JSON; see Snakemake's params.")]
Output = Annotated[Path, typer.Option(help="The file to write; it is complete or absent.")]


def _parse(model: "type[Section]", text: str) -> "Section":
    from nme.config.messages import check

    try:
        values = json.loads(text)
    except ValueError as error:
        raise NmeError(f"--spec is not JSON: {error}") from None
    return check(model, values, "--spec")


@contextmanager
def _exclusive(spec: "specs.Spec", output: Path) -> Iterator[bool]:
    """Inside, no other process makes ``output``; True if another one did while this one waited for it."""
    from nme.outputs import parquet
    from nme.outputs.locks import lock_of, one_at_a_time
    from nme.outputs.provenance import spec_hash

    with one_at_a_time(lock_of(output), lambda text: print(text, file=sys.stderr, flush=True)) as waited:
        made = waited and output.exists() and parquet.read_record(output)["spec_sha256"] == spec_hash(spec.as_json())
        if made:
            print(f"{output}: written by the other process; nothing to do", file=sys.stderr)
        yield made


@app.callback(invoke_without_command=True)
def _main(
    version: Annotated[bool, typer.Option("--version", help="Print version and location.")] = False,
) -> None:
    if version:
        print(f"nme {__version__} ({Path(__file__).parent})")
        raise typer.Exit


@app.command()
def prepare(
    spec: Spec,
    output: Annotated[Path, typer.Option(help="Folder for the manifest and the data files.")],
    data_dir: Annotated[Path | None, typer.Option(envvar="NME_DATA_DIR", help="Image sets you already have.")] = None,
    downloads: Annotated[Path | None, typer.Option(help="Folder for downloads.")] = Path("results/downloads"),
    threads: Annotated[int, typer.Option(help="Processes that convert a streamed dataset.")] = 1,
) -> None:
    """Find, verify and convert a dataset; run it again to continue a stopped conversion of a streamed dataset."""
    from nme.datasets.base import Places
    from nme.grid.specs import PrepareSpec
    from nme.stages.prepare import prepare

    if data_dir is not None and not data_dir.expanduser().is_dir():
        inside = "; inside the container, a folder outside of the project needs --bind (profiles/slurm)"
        hint = inside if "APPTAINER_CONTAINER" in os.environ else ""
        raise NmeError(f"data_dir is '{data_dir}', which is not a folder (give an existing one{hint})")
    folders = (data_dir.expanduser(),) if data_dir else ()
    prepare(_parse(PrepareSpec, spec), Places(folders, downloads), output, threads)


@app.command()
def train(
    spec: Spec,
    data: Annotated[Path, typer.Option(help="Manifest of the prepared dataset.")],
    output: Output,
    device: Annotated[str, typer.Option(envvar="NME_DEVICE", help="cpu, cuda or auto.")] = "cpu",
    checkpoint_seconds: Annotated[float, typer.Option(help="How often the state is saved.")] = 60,
) -> None:
    """Train the members of one cell; run it again to continue a stopped job."""
    from nme.grid.specs import TrainSpec
    from nme.runtime import processes
    from nme.runtime.device import prepare_device
    from nme.stages.train import train
    from nme.training.progress import training_progress

    settings = _parse(TrainSpec, spec)
    recipe = settings.recipe
    if processes.is_launched():
        chosen = prepare_device(device, recipe.threads, recipe.precision)
        with processes.join(recipe.processes, chosen):
            if processes.rank() > 0:
                train(settings, data, output, chosen, checkpoint_seconds, log=lambda sentence: None)
            else:
                with training_progress(len(settings.seeds), recipe.epochs) as (report, log):
                    train(settings, data, output, chosen, checkpoint_seconds, report, log)
    elif recipe.processes > 1:
        with _exclusive(settings, output) as made:
            code = 0 if made else processes.launch(recipe.processes, device, sys.argv[1:], TEMPORARY_FAILURE)
        if code:
            raise typer.Exit(code)
    else:
        chosen = prepare_device(device, recipe.threads, recipe.precision)
        with (
            training_progress(len(settings.seeds), recipe.epochs) as (report, log),
            _exclusive(settings, output) as made,
        ):
            if not made:
                train(settings, data, output, chosen, checkpoint_seconds, report, log)


@app.command()
def measure(
    spec: Spec,
    data: Annotated[Path, typer.Option(help="Manifest of the prepared dataset.")],
    snapshots: Annotated[Path, typer.Option(help="Folder of the networks that the training saved.")],
    output: Output,
    device: Annotated[str, typer.Option(envvar="NME_DEVICE", help="cpu, cuda or auto.")] = "cpu",
) -> None:
    """Measure the networks that a training job saved."""
    from nme.grid.specs import MeasureSpec
    from nme.runtime.device import prepare_device
    from nme.stages.measure import measure

    settings = _parse(MeasureSpec, spec)
    chosen = prepare_device(device, settings.recipe.threads)
    with _exclusive(settings, output) as made:
        if not made:
            measure(settings, data, snapshots, output, chosen)


@app.command()
def landscape(spec: Spec, output: Output) -> None:
    """Measure loss and NME over two weights of a small network (Figure 1)."""
    from nme.grid.specs import LandscapeSpec
    from nme.runtime.device import prepare_device
    from nme.stages.landscape import landscape

    prepare_device("cpu", threads=1)
    landscape(_parse(LandscapeSpec, spec), output)


@app.command()
def tables(spec: Spec, output: Output) -> None:
    """Collect the final metrics of a figure's cells, one row per member, or the values measured on its cells."""
    from nme.grid.specs import TableSpec
    from nme.stages.tables import write_table

    write_table(_parse(TableSpec, spec), output)


@app.command()
def claims(
    spec: Spec,
    output: Annotated[Path, typer.Option(help="The parquet file; the same table as .md and .html goes next to it.")],
    tables: Annotated[list[Path], typer.Argument(help="Tables of the figures in the claims, each FIGURE.parquet.")],
) -> None:
    """Decide which of the paper's claims hold here."""
    from nme.grid.specs import ClaimsSpec
    from nme.stages.claims import write_claims

    write_claims(_parse(ClaimsSpec, spec), tables, output)


@app.command("map")
def effects_map(
    spec: Spec,
    output: Output,
    tables: Annotated[list[Path], typer.Argument(help="Tables of the figures in the map, each FIGURE.parquet.")],
) -> None:
    """Relate the effects of claims on each recipe to the share of the NME in the penalty's update."""
    from nme.grid.specs import MapSpec
    from nme.stages.map import write_map

    write_map(_parse(MapSpec, spec), tables, output)


@app.command()
def plot(
    spec: Spec,
    table: Annotated[Path, typer.Option(help="The figure's table.")],
    output: Annotated[Path, typer.Option(help="The PDF; a PNG and a CSV of the plotted numbers go next to it.")],
) -> None:
    """Draw a figure."""
    from nme.grid.specs import PlotSpec
    from nme.stages.plot import plot

    plot(_parse(PlotSpec, spec), table, output)


@app.command()
def status(
    scale: Annotated[str | None, typer.Option(help="Instead of the configured one.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Instead of the configured number.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu or cuda, instead of the configured one.")] = None,
    config: Annotated[Path, typer.Option(help="The user's page.")] = Path("config/config.yaml"),
) -> None:
    """Show the progress of each figure: jobs that are done, running or failed, and the remaining time."""
    from rich.console import Console
    from rich.table import Table

    from nme.grid.status import status

    project = _project(config, scale, seeds)
    states = ("done", "running", "failed")
    table = Table("figure", *states, "needed", "hours left", "drawn", title=f"scale {project.config.scale}")
    table.caption = "hours: estimate for as many parallel jobs as run now; failed jobs continue in the next run"
    rows = status(project, _planned_device(project, device))
    for row in rows:
        cells = (*map(row.count, states), row.needed, f"{row.hours_left:.2f}", "yes" if row.drawn else "no")
        table.add_row(row.figure, *map(str, cells), end_section=row is rows[-2])
    Console().print(table)


@app.command()
def plan(
    scale: Annotated[str | None, typer.Option(help="Instead of the configured one.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Instead of the configured number.")] = None,
    config: Annotated[Path, typer.Option(help="The user's page.")] = Path("config/config.yaml"),
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Show the cost of each figure: jobs, members, steps, hours of a core or of a GPU, memory, disk."""
    from dataclasses import asdict

    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    from nme.grid.measured_steps import measured_steps
    from nme.grid.plan import plan

    project = _project(config, scale, seeds)
    found = plan(project, Path())
    if as_json:
        print(json.dumps({"scale": project.config.scale, **{name: asdict(cost) for name, cost in found.items()}}))
        return
    table = Table(title=f"scale {project.config.scale}", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))  # 80 columns
    table.add_column("figure")
    for heading in ("jobs", "members", "steps", "core-hours", "GPU-hours", "GB RAM", "GB disk"):
        table.add_column(heading, justify="right")
    card = measured_steps().card
    measured = f", on GPUs from steps measured on {card} where there are any" if card else ""
    table.caption = (
        f"hours on cores or on GPUs, estimated from counted operations{measured}, and scaled by the durations of this "
        "scale's finished jobs; figures share trainings"
    )
    for name, cost in found.items():
        hours = (f"{h:.2f}" if h < 10 else f"{h:,.0f}" for h in cost.hours.values())
        sizes = (f"{cost.memory_mb / 1000:g}", f"{cost.disk_mb / 1000:.2f}")
        cells = (cost.jobs, cost.members, f"{cost.steps:,}", *hours, *sizes)
        table.add_row(name, *map(str, cells), end_section=name == list(found)[-2])
    Console().print(table)


def _planned_device(project: "Project", device: str | None) -> str:
    from nme.errors import unknown
    from nme.grid.plan import SPEED

    chosen = device or ("cpu" if project.config.device == "cpu" else "cuda")
    if chosen not in SPEED:
        raise NmeError(unknown("device", chosen, SPEED))
    return chosen


def _project(config: Path, scale: str | None, seeds: int | None) -> "Project":
    from nme.config.project import load_project, read_yaml

    values = read_yaml(config) or {}
    given = {"scale": scale, "seeds": seeds}
    if isinstance(values, dict):
        values |= {key: value for key, value in given.items() if value is not None}
    return load_project(values, config.parent)


def main() -> None:
    """Run the command line; a mistake in the input gives one message and exit code 2, a stopped job exit code 75."""
    # Put large tensors into huge pages if the system has them: small pages cost a third of a loader's time. PyTorch
    # reads this variable before its first tensor.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    gc.set_threshold(100_000)  # the default threshold adds a tenth to the time of importing torch
    try:
        app()
    except NmeError as error:
        code, message = 2, f"nme: error: {error}"
    except Interrupted as stop:
        code, message = TEMPORARY_FAILURE, f"nme: {stop}"
    except OSError as error:
        code, message = 1, f"nme: error: {error.filename or 'writing'}: {error.strerror or error}"
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":  # PyTorch's, which may not be imported
            raise
        what = ". ".join(str(error).split(". ")[:2])
        code, message = 1, f"nme: error: the GPU's memory is full ({what}). Set a smaller micro_batch"
    else:
        return
    rank = os.environ.get("RANK", "0")  # several processes all stop together
    if rank == "0" or code != TEMPORARY_FAILURE:
        print(message if rank == "0" else f"process {rank}: {message}", file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
