"""Clones whose Snakemake submits to the SLURM that answers here."""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_clone import IMAGE, Clone


def require_cluster(image: bool) -> None:
    """Skip, with the reason, where something is missing."""
    if shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("no SLURM answers here")
    if image and shutil.which("apptainer") is None:
        pytest.skip("no apptainer on the PATH")
    if image and not IMAGE.exists():
        pytest.skip(f"{IMAGE.name} is not built")


@pytest.fixture
def clone(tmp_path) -> Clone:
    """Jobs run in this environment."""
    require_cluster(image=False)
    return Clone(tmp_path / "clone", inside=False)


@pytest.fixture
def clone_inside(tmp_path) -> Clone:
    """Jobs run in the image."""
    require_cluster(image=True)
    return Clone(tmp_path / "clone", inside=True)


@pytest.fixture
def clone_of_another_user() -> Iterator[Clone]:
    """Jobs run in the image, for the ordinary user that NME_TEST_USER names; this process must be root's."""
    require_cluster(image=True)
    user = os.environ.get("NME_TEST_USER")
    if not user or os.getuid():
        pytest.skip("NME_TEST_USER names no user, or this is not root")
    home = Path(tempfile.mkdtemp(dir=pwd.getpwnam(user).pw_dir))
    clone = Clone(home / "clone", inside=True, user=user)
    for path in (home, *home.rglob("*")):
        shutil.chown(path, user) if not path.is_symlink() else None
    yield clone
    shutil.rmtree(home)
