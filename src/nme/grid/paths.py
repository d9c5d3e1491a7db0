"""Paths of results. A path is the identity of a result, so two figures that ask for the same cell share it."""

from nme.config.figure import Claim, Map
from nme.config.project import Project
from nme.data.prepared import DATASET_FILES, SHARDED_FILES
from nme.errors import NmeError
from nme.grid.cells import Cell, format_seeds, training_jobs


def job_folder(scale: str, stage: str, cell: Cell, seeds: range) -> str:
    """Folder with the results of a job of the stage ``train`` or ``measure``."""
    return f"results/{scale}/{stage}/{cell.path}/seed={format_seeds(seeds)}"


def metrics_path(scale: str, cell: Cell, seeds: range) -> str:
    """Path of the metrics of one training job."""
    return f"{job_folder(scale, 'train', cell, seeds)}/metrics.parquet"


def measured_path(scale: str, cell: Cell, seeds: range) -> str:
    """Path of the measurements on the networks of one training job."""
    return f"{job_folder(scale, 'measure', cell, seeds)}/measured.parquet"


def sources(project: Project, name: str) -> list[str]:
    """Input files of a figure's table."""
    figure, scale = project.figures[name], project.config.scale
    if figure.landscape:
        return [f"results/{scale}/landscape/{name}.parquet"]
    if figure.claims or figure.map:
        return [table_path(project, n) for n in figures_read(project, name)]
    path = measured_path if figure.measure else metrics_path
    return [path(scale, cell, seeds) for cell, seeds in training_jobs(project, name)]


def figures_read(project: Project, name: str) -> list[str]:
    """Names of the figures whose tables the claims or the map read; empty for other figures."""
    figure = project.figures[name]
    claims = figure.claims.list if figure.claims else claims_of_map(project, figure.map) if figure.map else []
    read = [contrast.figure or claim.figure for claim in claims for contrast in claim.contrasts]
    return list(dict.fromkeys([*read, *([figure.map.shares] if figure.map else [])]))


def table_path(project: Project, name: str) -> str:
    """Path of the table that a figure shows: its own table, the landscape, the claims or the map."""
    figure = project.figures[name]
    if figure.landscape:
        return sources(project, name)[0]
    if figure.claims or figure.map:
        return f"results/{project.config.scale}/{name}.parquet"
    return f"results/{project.config.scale}/tables/{name}.parquet"


def claims_of_map(project: Project, chart: Map) -> list[Claim]:
    """The claims that a map names, in its order."""
    known = {c.number: c for f in project.figures.values() if f.claims for c in f.claims.list}
    missing = [number for number in chart.claims if number not in known]
    if missing:
        numbers = ", ".join(map(str, sorted(known))) or "none, since no figure has claims"
        raise NmeError(f"map.claims: there is no claim {missing[0]} (allowed: {numbers})")
    return [known[number] for number in chart.claims]


def dataset_files(project: Project, recipe: str) -> dict[str, str]:
    """The prepared files that a recipe trains on."""
    dataset = project.scale.recipes[recipe].dataset
    files = SHARDED_FILES if project.scale.dataset_kind(dataset).streamed else DATASET_FILES
    return {name: f"results/{project.config.scale}/data/{dataset}/{file}" for name, file in files.items()}
