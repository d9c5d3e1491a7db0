# Shared by all rules: the checked configuration, and functions from wildcards to settings. The logic is in nme.grid.

import json

from snakemake.exceptions import WorkflowError

from nme import grid
from nme.config import load_project
from nme.environment import export
from nme.errors import NmeError
from nme.image import check_image
from nme.slurm import check_earlier_jobs

try:
    PROJECT = load_project(config, "config")
    export(PROJECT.config)
    CLAIMS = {
        n: grid.claims_spec(PROJECT, n) for n, f in PROJECT.figures.items() if f.claims
    }
    MAPS = {n: grid.map_spec(PROJECT, n) for n, f in PROJECT.figures.items() if f.map}
except NmeError as error:
    raise WorkflowError(str(error)) from None

SCALE = PROJECT.config.scale
MEASUREMENTS = grid.measurements(PROJECT)


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
        check(*arguments)
    except NmeError as error:
        raise WorkflowError(str(error)) from None


def figures_of_kind(*kinds):
    return [f"figures/{n}.pdf" for n, f in PROJECT.figures.items() if f.kind in kinds]


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


def cell_of(wildcards):
    return grid.Cell(
        wildcards.recipe, wildcards.activation, wildcards.method, wildcards.strength
    )


def dataset_settings(wildcards):
    return json.dumps(grid.dataset_spec(PROJECT, wildcards.dataset))


def cell_settings(wildcards):
    cell, seeds = cell_of(wildcards), grid.parse_seeds(wildcards.seeds)
    snapshots = grid.snapshots(MEASUREMENTS.get(cell, {}))
    return json.dumps(grid.train_spec(recipe_of(wildcards), cell, seeds, snapshots))


def measure_settings(wildcards):
    cell, seeds = cell_of(wildcards), grid.parse_seeds(wildcards.seeds)
    return json.dumps(grid.measure_spec(PROJECT, cell, seeds, MEASUREMENTS[cell]))


def landscape_settings(wildcards):
    return json.dumps(grid.landscape_spec(PROJECT.figures[wildcards.figure]))


def table_settings(wildcards):
    return json.dumps(grid.table_spec(PROJECT, wildcards.figure))


def claims_settings(wildcards):
    return json.dumps(CLAIMS["claims"])


def map_settings(wildcards):
    return json.dumps(MAPS["map"])


def plot_settings(wildcards):
    return json.dumps(grid.plot_spec(PROJECT, wildcards.figure), ensure_ascii=False)


def cell_data(wildcards):
    return grid.dataset_files(PROJECT, wildcards.recipe)


def claims_tables(wildcards):
    return grid.sources(PROJECT, "claims")


def map_tables(wildcards):
    return grid.sources(PROJECT, "map")


def figure_sources(wildcards):
    return grid.sources(PROJECT, wildcards.figure)


def figure_table(wildcards):
    return grid.table_path(PROJECT, wildcards.figure)


def figure_caption(wildcards):
    caption = PROJECT.figures[wildcards.figure].caption
    return f"{caption} {grid.described(PROJECT, wildcards.figure)}"


def figure_labels(wildcards):
    return {"figure": PROJECT.figures[wildcards.figure].title}


def figure_kind(wildcards):
    return {
        "paper": "Figures of the paper",
        "supplementary": "Supplementary figures",
        "claims": "Claims",
    }[PROJECT.figures[wildcards.figure].kind]
