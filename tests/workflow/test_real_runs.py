"""Slow: real data. Where they are not there, the test says so and is skipped."""

import os
import shutil
import tarfile

import pytest
from workflow_project import ROOT

from nme.grid.cells import Cell
from nme.grid.paths import metrics_path
from nme.outputs.parquet import read

pytestmark = pytest.mark.slow

SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A read-only folder with Fashion-MNIST as its four archives and CIFAR-10 as a folder of images."""
    if not SHARED.is_dir():
        pytest.skip(f"the real image data are not at {SHARED}")
    folder = tmp_path_factory.mktemp("images")
    shutil.copytree(SHARED / "FashionMNIST", folder / "FashionMNIST")
    with tarfile.open(SHARED / "cifar10-imagefolder.tar.gz") as archive:
        archive.extractall(folder, filter="data")
    return folder


def test_the_workstation_scale_learns_on_real_images(project, images):
    """A few hundred steps of one cell of each recipe, by the workstation's own settings but for the size."""

    def shorten(scale):
        for dataset in scale["datasets"].values():
            dataset.update(test=1000)
        for recipe in scale["recipes"].values():
            recipe.update(epochs=2, warmup_epochs=0)

    project.edit("config/scales/workstation.yaml", shorten)
    project.edit("config/config.yaml", lambda config: config.update(data_dir=str(images)))
    cells = [Cell.of(r, "gelu", "grad_norm", 0.03) for r in ("fashion_mnist_wrn", "cifar10_wrn")]
    targets = [metrics_path("workstation", cell, range(1)) for cell in cells]
    before = sorted(os.listdir(images))
    project.snakemake(*targets, scale="workstation")
    assert sorted(os.listdir(images)) == before
    for target, least in zip(targets, (0.6, 0.25), strict=True):
        table, _ = read(project.folder / target)
        accuracy = table["test_accuracy"].to_pylist()
        print(target, accuracy)
        assert accuracy[-1] > least  # chance is 0.1
