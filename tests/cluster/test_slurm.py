"""Slow: a real SLURM and the real image. Needs a cluster that answers and containers/nme-<version>.sif."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from nme import __version__

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
IMAGE = ROOT / "containers" / f"nme-{__version__}.sif"


@pytest.fixture
def clone(tmp_path):
    if shutil.which("sinfo") is None or subprocess.run(["sinfo"], capture_output=True).returncode:
        pytest.skip("no SLURM answers here")
    if shutil.which("apptainer") is None:
        pytest.skip("no apptainer on the PATH")
    if not IMAGE.exists():
        pytest.skip(f"{IMAGE.name} is not built")
    folder = tmp_path / "clone"
    folder.mkdir()
    for name in ("Snakefile", "workflow", "config", "profiles"):
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, folder / name)
    (folder / "slurm").symlink_to("profiles/slurm")
    (folder / "containers").mkdir()
    (folder / "containers" / IMAGE.name).symlink_to(IMAGE)
    return folder


def test_a_figure_is_made_on_slurm_inside_the_image(clone):
    """The sentence of the README, with a small scale, a CPU, and a shorter wait before the first look at the queue."""
    snakemake = Path(sys.executable).with_name("snakemake")
    command = [snakemake, "--profile", "slurm", "--slurm-init-seconds-before-status-checks", "3", "--jobs", "8"]
    options = ["--config", "scale=tiny", "device=cpu", "--", "figures/fig2.pdf"]
    done = subprocess.run([*command, *options], cwd=clone, text=True, capture_output=True, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (clone / "figures/fig2.pdf").stat().st_size > 10_000
    trained = sorted(clone.glob("results/tiny/train/**/metrics.parquet"))
    assert len(trained) == 12
    for path in trained:
        record = json.loads(pq.read_schema(path).metadata[b"nme"])
        assert record["container"] == IMAGE.name
    history = subprocess.run(
        ["sacct", "-n", "-P", "-X", "--format=Partition,ReqTRES,State"],
        text=True,
        capture_output=True,
        check=True,
    )
    ours = [line for line in history.stdout.splitlines() if line.startswith("gpu|")]
    assert len(ours) >= 12
    assert all("gres/gpu=1" in line for line in ours)
