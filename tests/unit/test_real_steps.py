"""Slow: each training method on real images, with the networks of the paper's scale at reduced resolution."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from nme import batches
from nme.config import Recipe
from nme.datasets import Places
from nme.methods import METHODS
from nme.prepare import prepare
from nme.train import Job, Member

SHARED = Path(__file__).parents[3] / "shared" / "data"
CPU = torch.device("cpu")
RECIPES = {
    "cifar10": {
        "model": {"name": "wide_resnet", "depth": 16, "widen": 2},
        "augment": "crop_flip",
        "batch_size": 32,
        "learning_rate": 0.02,
    },
    "imagenette": {
        "model": {"name": "resnet50"},
        "augment": "resized_crop_flip",
        "resolution": 64,
        "batch_size": 16,
        "micro_batch": 8,
        "learning_rate": 0.003,  # 0.1 for 256 examples, as usual, and less
    },
}
STRENGTH = {"ρ": 0.01, "σ²": 1e-5, None: 0}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not SHARED.is_dir(), reason=f"the real image data are not at {SHARED}"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for name in ("cifar10-imagefolder", "imagenet10-224px"):
        with tarfile.open(SHARED / f"{name}.tar.gz") as archive:
            archive.extractall(folder, filter="data")
    return folder


@pytest.fixture(scope="module", params=RECIPES)
def prepared(request, folder, tmp_path_factory):
    """A recipe, and its data as the prepare stage leaves them."""
    output = tmp_path_factory.mktemp(request.param)
    spec = {"dataset": request.param, "train": None, "test": 100, "version": 1}
    if request.param == "imagenette":
        spec |= {"short_side": 80, "quality": 90}
    prepare(spec, Places((folder,)), output, threads=2)
    settings = {"epochs": 1, "warmup_epochs": 0.3, "threads": 2, **RECIPES[request.param]}
    recipe = Recipe(dataset=request.param, **settings)
    return recipe, batches.load(output / "manifest.json", CPU, recipe.resolution, workers=1)


def losses(prepared, method, steps):
    recipe, (train, test, described) = prepared
    strength = STRENGTH[method.symbol]
    job = Job(recipe, "gelu", method, strength, train, test, len(described["classes"]), CPU)
    member, found = Member(job, 0), []
    for _ in range(steps):
        before = float(member.sums[0])
        member.advance()
        found.append(float(member.sums[0]) - before)
    assert all(p.isfinite().all() for p in member.model.parameters())
    return found


def test_sgd_descends_in_thirty_steps(prepared):
    found = losses(prepared, METHODS.parse("sgd"), 30)
    print(prepared[0].dataset, found)
    assert np.mean(found[-10:]) < np.mean(found[:10])


def test_every_method_takes_steps(method, prepared):
    found = losses(prepared, method, 2)
    print(prepared[0].dataset, method, found)
    assert np.isfinite(found).all()
    assert max(found) < 4  # chance is 2.3
