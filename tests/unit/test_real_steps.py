"""Slow: real images are prepared and verified, and each method trains the paper's networks at reduced resolution."""

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from specs import spec_in_memory

from nme.config.scale import Recipe
from nme.data.load import load
from nme.datasets.base import Places
from nme.errors import NmeError
from nme.methods import METHODS
from nme.stages.prepare import prepare
from nme.training.member import Job, Member

SHARED = Path(__file__).parents[3] / "shared" / "data"
CPU = torch.device("cpu")
RECIPES = {
    "cifar10": {
        "model": {"name": "wide_resnet", "depth": 16, "widen": 2},
        "augment": "crop_flip",
        "batch_size": 32,
        "learning_rate": 0.05,
    },
    "imagenette": {
        "model": {"name": "resnet50"},
        "augment": "resized_crop_flip",
        "resolution": 64,
        "batch_size": 16,
        "micro_batch": 8,
        "learning_rate": 0.001,
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
    size = {"short_side": 80, "quality": 90} if request.param == "imagenette" else {"train": 1200}
    spec = spec_in_memory(request.param, test=100, **size)
    prepare(spec, Places((folder,)), output, threads=2)
    settings = {"epochs": 1, "warmup_epochs": 0.2, "threads": 2, **RECIPES[request.param]}
    recipe = Recipe(dataset=request.param, **settings)
    return recipe, load(output / "manifest.json", CPU, recipe.resolution, workers=1)


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
    assert np.mean(found[-10:]) < np.mean(found[:3]) - 0.1


@pytest.mark.parametrize("name", METHODS)
def test_every_method_takes_steps(name, prepared):
    found = losses(prepared, METHODS.parse(name), 2)
    print(prepared[0].dataset, name, found)
    assert np.isfinite(found).all()
    assert max(found) < 5  # chance is 2.3


STORED = {"short_side": 64, "quality": 90}


@pytest.mark.parametrize("harm", ["corrupt", "image", "class"])
def test_harm_to_imagenette_is_named(folder, tmp_path, harm):
    shutil.copytree(folder / "imagenet10", tmp_path / "imagenet10")
    where = tmp_path / "imagenet10/train/n03000684"
    image = sorted(where.iterdir())[7]
    if harm == "corrupt":
        image.write_bytes(image.read_bytes()[:2000])
        expected = f"{image}: cannot be decoded"
    elif harm == "image":
        image.unlink()
        expected = f"{where}: has 59 images, expected 60"
    else:
        shutil.rmtree(where)
        expected = f"{where}: this class folder is missing"
    with pytest.raises(NmeError) as caught:
        prepare(spec_in_memory("imagenette", **STORED), Places((tmp_path,)), tmp_path / "out")
    assert expected in str(caught.value)
    assert not (tmp_path / "out/manifest.json").exists()


def test_all_classes_of_imagenet_are_prepared(tmp_path):
    with tarfile.open(SHARED / "imagenet1k-one-per-class-160px.tar.gz") as archive:
        archive.extractall(tmp_path, filter="data")
    (tmp_path / "imagenet").mkdir()
    for split in ("train", "val"):
        (tmp_path / "imagenet" / split).symlink_to(tmp_path / "imagenet1k-one-per-class/val")
    prepare(spec_in_memory("imagenet", **STORED), Places((tmp_path,)), tmp_path / "out", threads=2)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert [split["per_class"] for split in manifest["splits"].values()] == [[1] * 1000] * 2
    train, _, _ = load(tmp_path / "out/manifest.json", CPU, 64, 0)
    batch = train.batch(torch.arange(50), "none", torch.Generator())
    assert batch.inputs.shape == (50, 3, 64, 64)
    assert torch.equal(batch.labels, train.labels[:50])
