"""Projects to run, and one that has been run."""

import pytest
from workflow_project import Project


@pytest.fixture
def project(tmp_path) -> Project:
    return Project.fresh(tmp_path / "project")


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """The tiny scale with everything made; tests copy it."""
    project = Project.fresh(tmp_path_factory.mktemp("finished") / "project")
    project.snakemake("all")
    return project
