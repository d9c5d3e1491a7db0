"""Projects to run, and two that have been run."""

import pytest
from workflow_project import Project


@pytest.fixture
def project(tmp_path) -> Project:
    return Project.fresh(tmp_path / "project")


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """The tiny scale with every file made, by a stand-in that computes nothing; tests copy it."""
    project = Project.fresh(tmp_path_factory.mktemp("finished") / "project")
    with project.computing_nothing():
        project.snakemake("all", cores=8)
    return project


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Project:
    """The tiny scale with the cheapest figure of each kind really made; tests copy it."""
    project = Project.fresh(tmp_path_factory.mktemp("trained") / "project")
    project.edit("config/scales/tiny.yaml", lambda scale: scale["axes"].update(probes=[1]))  # half of the trainings
    project.snakemake(*(f"figures/{name}.pdf" for name in project.cheapest()))
    return project
