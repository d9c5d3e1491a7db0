# Shared by all rules: the checked configuration, and functions from wildcards to settings. The logic is in nme.grid.

import json

from snakemake.exceptions import WorkflowError

from nme.config.project import load_project
from nme.errors import NmeError
from nme.grid import captions, cells, claims, paths, specs
from nme.workflow.container_image import check_image
from nme.workflow.environment import export
from nme.workflow.slurm import check_earlier_jobs

try:
    PROJECT = load_project(config, "config")
    export(PROJECT.config)
    CLAIMS = {
        n: claims.claims_spec(PROJECT, n)
        for n, f in PROJECT.figures.items()
        if f.claims
    }
    MAPS = {n: claims.map_spec(PROJECT, n) for n, f in PROJECT.figures.items() if f.map}
except NmeError as error:
    raise WorkflowError(str(error)) from None

SCALE = PROJECT.config.scale
MEASUREMENTS = cells.measurements(PROJECT)


wildcard_constraints:
    scale=SCALE,
    dataset="[a-z0-9_]+",
    recipe="[a-z0-9_]+",
    activation="[a-z0-9_=.-]+",
    method="[a-z0-9_=.-]+",
    strength="[0-9.]+",
    seeds="[0-9]+(-[0-9]+)?",
    figure="|".join(PROJECT.figures),


def require(check, *arguments):
    try:
        return check(*arguments)
    except NmeError as error:
        raise WorkflowError(str(error)) from None


def figures_of_kind(*kinds):
    names = [n for n, figure in PROJECT.figures.items() if figure.kind in kinds]
    return expand("figures/{name}.{kind}", name=names, kind=["pdf", "png", "csv"])


def names_of_figures(condition):
    return "|".join(n for n, figure in PROJECT.figures.items() if condition(figure))


def dataset_names(streamed):
    scale = PROJECT.scale
    names = [n for n in scale.datasets if scale.dataset_kind(n).streamed == streamed]
    # Snakemake ignores an empty constraint. "-" is not the name of any dataset.
    return "|".join(names) or "-"


def recipe_of(wildcards):
    return PROJECT.scale.recipes[wildcards.recipe]


def threads_of(wildcards):
    recipe = recipe_of(wildcards)
    decoding = 2 if PROJECT.scale.dataset_kind(recipe.dataset).streamed else 1
    return recipe.threads * decoding


def gpus_of(wildcards):
    return recipe_of(wildcards).processes if PROJECT.config.device != "cpu" else 0


def job_of(wildcards):
    w = wildcards
    path = f"{w.recipe}/{w.activation}/{w.method}/{w.strength}"
    return require(cells.job_of_path, PROJECT.scale, path, w.seeds)


def dataset_settings(wildcards):
    return json.dumps(specs.dataset_spec(PROJECT, wildcards.dataset).as_json())


def cell_settings(wildcards):
    cell, seeds = job_of(wildcards)
    snapshots = cells.snapshots(MEASUREMENTS.get(cell, {}))
    return json.dumps(
        specs.train_spec(recipe_of(wildcards), cell, seeds, snapshots).as_json()
    )


def measure_settings(wildcards):
    cell, seeds = job_of(wildcards)
    if cell not in MEASUREMENTS:
        raise WorkflowError(f"no figure of scale '{SCALE}' measures '{cell.path}'")
    return json.dumps(
        specs.measure_spec(PROJECT, cell, seeds, MEASUREMENTS[cell]).as_json()
    )


def landscape_settings(wildcards):
    return json.dumps(specs.landscape_spec(PROJECT.figures[wildcards.figure]).as_json())


def table_settings(wildcards):
    return json.dumps(specs.table_spec(PROJECT, wildcards.figure).as_json())


def claims_settings(wildcards):
    return json.dumps(CLAIMS["claims"].as_json())


def map_settings(wildcards):
    return json.dumps(MAPS["map"].as_json())


def plot_settings(wildcards):
    return json.dumps(
        specs.plot_spec(PROJECT, wildcards.figure).as_json(), ensure_ascii=False
    )


def cell_data(wildcards):
    cell, _ = job_of(wildcards)
    return paths.dataset_files(PROJECT, cell.recipe)


def claims_tables(wildcards):
    return paths.sources(PROJECT, "claims")


def map_tables(wildcards):
    return paths.sources(PROJECT, "map")


def figure_sources(wildcards):
    return paths.sources(PROJECT, wildcards.figure)


def figure_table(wildcards):
    return paths.table_path(PROJECT, wildcards.figure)


def figure_caption(wildcards):
    caption = PROJECT.figures[wildcards.figure].caption
    return f"{caption} {captions.scale_sentence(PROJECT, wildcards.figure)}"


def figure_labels(wildcards):
    return {"figure": PROJECT.figures[wildcards.figure].title}


def figure_kind(wildcards):
    return {
        "paper": "Figures of the paper",
        "supplementary": "Supplementary figures",
        "claims": "Claims",
    }[PROJECT.figures[wildcards.figure].kind]
