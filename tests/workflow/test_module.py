"""The workflow as a module of another one, in a folder that has the configuration and nothing else of the project."""

import shutil

import pytest
from workflow_project import Project, jobs

SNAKEFILE = """
module sharpness:
    snakefile:
        "{snakefile}"
    config:
        {{"scale": "tiny"}}


use rule * from sharpness as sharpness_*


rule page:
    input:
        "figures/fig1.png",
    output:
        "page.txt",
    shell:
        "ls {{input}} > {{output}}"
"""


@pytest.fixture
def other(project, tmp_path) -> Project:
    """Another workflow, whose environment has ``nme``; the commands come from ``project``."""
    folder = tmp_path / "other"
    folder.mkdir()
    shutil.copytree(project.folder / "config", folder / "config")
    (folder / "Snakefile").write_text(SNAKEFILE.format(snakefile=project.folder / "workflow/Snakefile"))
    (folder / "src").symlink_to(project.folder / "src")
    return Project(folder)


def test_another_workflow_makes_the_figure_it_asks_for(other):
    text = other.run("snakemake", "--cores", "1", "page")
    assert jobs(text) == {"sharpness_landscape": 1, "sharpness_plot": 1, "page": 1}
    assert (other.folder / "page.txt").read_text() == "figures/fig1.png\n"
    assert (other.folder / "figures/fig1.png").stat().st_size > 10_000
    assert jobs(other.run("snakemake", "-n", "page")) == {}
