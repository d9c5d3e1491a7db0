"""Slow: the command of docs/cluster.md on a real SLURM, in the real image."""

import json

import pyarrow.parquet as pq
import pytest
from slurm_clone import IMAGE

pytestmark = pytest.mark.slow


def assert_made_inside(clone, figure: str) -> None:
    assert (clone.folder / f"figures/{figure}.pdf").stat().st_size > 10_000
    results = clone.folder / "results/tiny"
    computed = [*results.glob("train/**/*.parquet"), *results.glob("measure/**/*.parquet")]
    assert {path.name for path in computed} == {"metrics.parquet", "measured.parquet"}
    for path in computed:
        assert json.loads(pq.read_schema(path).metadata[b"nme"])["container"] == IMAGE.name
    assert set(clone.states()) == {"COMPLETED"}
    jobs = clone.history("Partition", "ReqTRES")
    on_gpus = [job for job in jobs if job["Partition"] == "gpu"]
    assert len(on_gpus) == len(computed)
    assert all("gres/gpu=1" in job["ReqTRES"] for job in on_gpus)
    others = [job for job in jobs if job["Partition"] == "cpu"]
    assert others, "the data are prepared on the CPU partition"
    assert not any("gpu" in job["ReqTRES"] for job in others)


def test_a_figure_is_made_inside_the_image(clone_inside):
    clone_inside.run("figures/spectrum.pdf", limit=1500)
    assert_made_inside(clone_inside, "spectrum")


def test_an_ordinary_user_makes_a_figure_inside_the_image(clone_of_another_user):
    clone_of_another_user.run("figures/spectrum.pdf", limit=1500)
    assert_made_inside(clone_of_another_user, "spectrum")


def test_an_unusable_image_is_said_before_anything_is_submitted(clone_inside):
    link = clone_inside.folder / "containers" / IMAGE.name
    link.unlink()
    assert "the container image is missing" in clone_inside.run("figures/fig2.pdf", ok=False)
    link.write_bytes(b"no image")
    assert "not a container image" in clone_inside.run("figures/fig2.pdf", ok=False)
    with IMAGE.open("rb") as whole:
        link.write_bytes(whole.read(50 << 20))  # a copy that was cut
    assert "the container image" in clone_inside.run("figures/fig2.pdf", ok=False)
    assert not clone_inside.history()
