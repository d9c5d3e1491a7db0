"""Preparation of streamed datasets: each image once, with label and pixels; mistakes named; stopped and resumed."""

import hashlib
import io
import json
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from image_trees import CLASSES, Small, picture, spec_of, write_tree
from PIL import Image
from torchvision.transforms.v2 import functional as transforms

from nme.data import write_shards as prepare_shards
from nme.data.shards import write_shard
from nme.datasets import DATASETS
from nme.datasets.base import Places
from nme.errors import NmeError
from nme.stages.prepare import prepare

AS_THEY_ARE = {"short_side": 1000}


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    monkeypatch.setitem(DATASETS, "small", Small)
    monkeypatch.setattr(prepare_shards, "ROWS", 5)


def prepared(folder: Path, name: str = "data", threads: int = 1, **changes: object) -> Path:
    """The folder of the tree's preparation, in the folder of the tree."""
    prepare(spec_of(**changes), Places((folder,)), folder / name, threads)
    return folder / name


def message(folder: Path, **changes: object) -> str:
    with pytest.raises(NmeError) as caught:
        prepared(folder, **changes)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def manifest_of(folder: Path) -> dict:
    return json.loads((folder / "manifest.json").read_text())


def tables(folder: Path, split: str) -> list[pa.Table]:
    """The shards, as any reader of Arrow sees them."""
    paths = sorted((folder / "shards").glob(f"{split}-*.arrow"))
    return [pa.ipc.open_file(pa.OSFile(str(path))).read_all() for path in paths]


def rows(folder: Path, split: str) -> list[dict]:
    return pa.concat_tables(tables(folder, split)).to_pylist()


def pixels(jpeg: bytes | Path) -> np.ndarray:
    source = io.BytesIO(jpeg) if isinstance(jpeg, bytes) else jpeg
    return np.asarray(Image.open(source).convert("RGB"), dtype=np.float64)


# ------------------------------------------------------------- what is in


@pytest.mark.parametrize(("split", "place", "each"), [("train", "train", 4), ("test", "val", 2)])
def test_images_that_need_no_change_are_taken_as_they_are_each_once(tmp_path, split, place, each):
    tree = write_tree(tmp_path)
    folder = prepared(tmp_path, **AS_THEY_ARE)
    sources = {path.read_bytes(): path for path in (tree / place).glob("*/*.JPEG")}
    found = rows(folder, split)
    assert Counter(row["jpeg"] for row in found) == dict.fromkeys(sources, 1)
    assert len(found) == 3 * each
    for row in found:
        assert CLASSES[row["label"]] == sources[row["jpeg"]].parent.name
        assert (row["height"], row["width"], 3) == pixels(row["jpeg"]).shape


def test_the_manifest_describes_the_shards(tmp_path):
    tree = write_tree(tmp_path, (4, 4, 4), (3, 3, 3))
    folder = prepared(tmp_path)
    manifest = manifest_of(folder)
    assert {path.name for path in folder.iterdir()} == {"shards", "manifest.json"}
    listed = [shard["file"] for split in ("train", "test") for shard in manifest["shards"][split]]
    assert sorted(listed) == sorted(path.name for path in (folder / "shards").iterdir())
    for split, each in (("train", 4), ("test", 3)):
        labels = [row["label"] for row in rows(folder, split)]
        assert manifest["splits"][split]["per_class"] == [labels.count(c) for c in range(3)] == [each] * 3
        assert manifest["splits"][split]["examples"] == len(labels)
        for shard, table in zip(manifest["shards"][split], tables(folder, split), strict=True):
            assert shard["rows"] == len(table) <= 5
            assert shard["sha256"] == hashlib.sha256((folder / "shards" / shard["file"]).read_bytes()).hexdigest()
    assert tuple(manifest["classes"]) == CLASSES
    assert manifest["source"] == f"{tree}, a sample"
    assert manifest["spec"] == spec_of().as_json()


# Height and width of an image, and of what is stored with a shorter side of at most 24.
SIZES = [
    ((40, 60), (24, 36)),
    ((60, 41), (35, 24)),  # as torchvision, rounded down
    ((25, 25), (24, 24)),
    ((24, 70), (24, 70)),  # large enough only on the other side
    ((10, 20), (10, 20)),  # never enlarged
    ((10, 90), (10, 30)),  # the ends of very long ones are cut off
    ((200, 30), (72, 24)),
]


@pytest.mark.parametrize(("size", "expected"), SIZES, ids=str)
def test_the_shorter_side_is_reduced_and_the_shape_kept(tmp_path, size, expected):
    tree = write_tree(tmp_path, (1, 1, 1), (1, 1, 1))
    (source,) = (tree / "train" / "n02").iterdir()
    picture(np.random.default_rng(0), *size).save(source, quality=95)
    (row,) = (row for row in rows(prepared(tmp_path, quality=95), "train") if row["label"] == 1)
    assert (row["height"], row["width"]) == expected == pixels(row["jpeg"]).shape[:2]
    if size == expected:
        assert row["jpeg"] == source.read_bytes()
    centre = [min(side, 3 * min(size)) for side in size]
    image = transforms.center_crop(torch.tensor(pixels(source)).permute(2, 0, 1), centre)
    image = transforms.resize(image, list(expected), antialias=True).permute(1, 2, 0).numpy()
    assert np.abs(image - pixels(row["jpeg"])).mean() < 5


@pytest.mark.parametrize(("mode", "kind"), [("L", "JPEG"), ("CMYK", "JPEG"), ("RGB", "PNG"), ("RGBA", "PNG")])
@pytest.mark.parametrize("side", [20, 40])
def test_whatever_the_images_are_rgb_jpegs_are_stored(tmp_path, mode, kind, side):
    """ImageNet has grey and CMYK images, and a PNG whose name ends in .JPEG."""
    tree = write_tree(tmp_path, (1, 1, 1), (1, 1, 1))
    (source,) = (tree / "train" / "n03").iterdir()
    picture(np.random.default_rng(0), side, side).convert(mode).save(source, kind)
    (row,) = (row for row in rows(prepared(tmp_path, quality=95), "train") if row["label"] == 2)
    stored = Image.open(io.BytesIO(row["jpeg"]))
    assert (stored.format, stored.mode) == ("JPEG", "RGB")
    expected = Image.open(source).convert("RGB").resize((min(side, 24),) * 2, Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(expected, dtype=np.float64) - pixels(row["jpeg"])).mean() < 3


@pytest.mark.parametrize(("short_side", "tolerance"), [(1000, 1e-9), (24, 1)], ids=["as they are", "resized"])
def test_mean_and_std_are_those_of_the_training_pixels(tmp_path, short_side, tolerance):
    write_tree(tmp_path)
    folder = prepared(tmp_path, short_side=short_side)
    values = np.concatenate([pixels(row["jpeg"]).reshape(-1, 3) for row in rows(folder, "train")])
    manifest = manifest_of(folder)
    np.testing.assert_allclose(manifest["mean"], values.mean(0), rtol=0, atol=tolerance)
    np.testing.assert_allclose(manifest["std"], values.std(0), rtol=0, atol=tolerance)


def test_lower_quality_is_fewer_bytes(tmp_path):
    write_tree(tmp_path)
    sizes = [
        sum(len(row["jpeg"]) for row in rows(prepared(tmp_path, str(q), quality=q), "train")) for q in (20, 60, 95)
    ]
    assert sizes == sorted(set(sizes))


def test_each_shard_is_a_mixture_of_classes_and_all_are_about_as_large(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_shards, "ROWS", 10)
    write_tree(tmp_path, (14, 14, 14))
    shards = tables(prepared(tmp_path), "train")
    assert sorted(len(shard) for shard in shards) == [8, 8, 8, 9, 9]
    assert all(len(set(shard["label"].to_pylist())) > 1 for shard in shards)


@pytest.mark.parametrize(("size", "per_class"), [(3, [1, 1, 1]), (7, [3, 2, 2]), (12, [4, 4, 4])], ids=str)
def test_subsets_are_balanced(tmp_path, size, per_class):
    write_tree(tmp_path)
    folder = prepared(tmp_path, train=size, test=4, **AS_THEY_ARE)
    found = rows(folder, "train")
    assert [sum(row["label"] == c for row in found) for c in range(3)] == per_class
    assert manifest_of(folder)["splits"]["train"]["per_class"] == per_class
    assert manifest_of(folder)["splits"]["test"]["per_class"] == [2, 1, 1]
    assert len({row["jpeg"] for row in found}) == size, "each at most once"


@pytest.mark.parametrize(("key", "size", "allowed"), [("train", 13, 12), ("test", 7, 6)])
def test_a_subset_that_is_too_large_names_its_key(tmp_path, key, size, allowed):
    write_tree(tmp_path)
    assert f"datasets.small.{key} is {size} (allowed: up to {allowed}, " in message(tmp_path, **{key: size})
    assert not (tmp_path / "data" / "manifest.json").exists()


def test_the_result_does_not_depend_on_the_number_of_processes(tmp_path):
    write_tree(tmp_path)
    assert contents(prepared(tmp_path, "one")) == contents(prepared(tmp_path, "two", threads=2))


# --------------------------------------------------------------- mistakes


def damage(path: Path, how: str) -> None:
    whole = path.read_bytes()
    path.write_bytes({"empty": b"", "text": b"<html>Not Found</html>\n", "half": whole[: len(whole) // 2]}[how])


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("how", ["empty", "text", "half"])
@pytest.mark.parametrize("short_side", [24, 1000])
def test_a_damaged_image_is_named(tmp_path, split, how, short_side):
    path = write_tree(tmp_path) / split / "n02" / "n02_001.JPEG"
    prepared(tmp_path, short_side=short_side)
    damage(path, how)
    assert f"{path}: cannot be decoded" in message(tmp_path, short_side=short_side)
    assert not (tmp_path / "data" / "manifest.json").exists(), "the older one does not describe what is there"


def test_a_damaged_image_is_named_by_several_processes_and_mended(tmp_path):
    path = write_tree(tmp_path) / "train" / "n03" / "n03_000.JPEG"
    whole = path.read_bytes()
    expected = contents(prepared(tmp_path, "expected"))
    damage(path, "half")
    assert f"{path}: cannot be decoded" in message(tmp_path, threads=2)
    path.write_bytes(whole)
    assert contents(prepared(tmp_path)) == expected


def test_a_missing_image_is_named_by_its_class_and_dataset(tmp_path):
    path = write_tree(tmp_path) / "train" / "n02" / "n02_001.JPEG"
    path.unlink()
    assert message(tmp_path).startswith(f"small: {path.parent}: has 3 images, expected 4 ")
    assert not (tmp_path / "data").exists()


# ----------------------------------------------------------------- resume


class Stopped(BaseException):
    """Stands for the kill of a process: nothing catches it."""


def stopped(folder: Path, after: int, **changes: object) -> Path:
    """Folder with the shards of a preparation that was stopped after some of them."""
    done = []

    def write_or_stop(shard):
        if len(done) == after:
            raise Stopped
        done.append(write_shard(shard))
        return done[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare_shards, "write_shard", write_or_stop)
        with pytest.raises(Stopped):
            prepared(folder, **changes)
    assert not (folder / "data" / "manifest.json").exists()
    assert not (folder / "data" / "shards").exists()
    return folder / "data" / "shards.partial"


def resumed(folder: Path, **changes: object) -> tuple[dict[str, bytes], set[str]]:
    """The files after a second run, and the shards that were kept according to the log."""
    log, spec = [], spec_of(**changes)
    subset = prepare_shards.Subset("small", {"train": spec.train, "test": spec.test}, spec.short_side, spec.quality)
    places = Places((folder,))
    prepare_shards.prepare_shards(Small(), subset, spec.as_json(), places, folder / "data", log=log.append)
    assert not (folder / "data" / "shards.partial").exists()
    return contents(folder / "data"), {line.split(":")[0] for line in log if ", kept" in line}


@pytest.mark.parametrize("after", [0, 1, 3, 4])
def test_a_stopped_preparation_goes_on_and_ends_with_the_same_bytes(tmp_path, after):
    write_tree(tmp_path)  # three shards of training images, two of test images
    expected = contents(prepared(tmp_path, "expected"))
    partial = stopped(tmp_path, after)
    (partial / ".partial-killed").write_bytes(b"half a shard")
    for path in partial.iterdir():
        os.utime(path, ns=(10**18, 10**18))
    names = [f"train-{n:05}.arrow" for n in range(3)] + [f"test-{n:05}.arrow" for n in range(2)]
    result, kept = resumed(tmp_path)
    assert result == expected
    assert kept == set(names[:after])
    untouched = {p.name for p in (tmp_path / "data/shards").iterdir() if p.stat().st_mtime_ns == 10**18}
    assert untouched == kept


def foreign(path: Path, metadata: dict | None) -> bytes:
    batch = pa.record_batch({"label": pa.array([1, 2])}, metadata=metadata)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, batch.schema) as out:
        out.write_batch(batch)
    return path.read_bytes()


def flipped(path: Path) -> bytes:
    """One bit of an image is another."""
    whole = bytearray(path.read_bytes())
    whole[whole.rindex(b"\xff\xd9") - 1] ^= 1
    return bytes(whole)


DAMAGES = {
    "empty": lambda path: b"",
    "text": lambda path: b"ARROW1 and nothing else",
    "half": lambda path: path.read_bytes()[: path.stat().st_size // 2],
    "all but the end": lambda path: path.read_bytes()[:-1],
    "a bit": flipped,
    "no metadata": lambda path: foreign(path, None),
    "other metadata": lambda path: foreign(path, {"pandas": "{}"}),
    "another shard": lambda path: path.with_name("train-00000.arrow").read_bytes(),
}


@pytest.mark.parametrize("how", DAMAGES)
def test_a_damaged_or_foreign_shard_is_made_again(tmp_path, how):
    write_tree(tmp_path)
    expected = contents(prepared(tmp_path, "expected"))
    path = stopped(tmp_path, 3) / "train-00001.arrow"
    path.write_bytes(DAMAGES[how](path))
    result, kept = resumed(tmp_path)
    assert result == expected
    assert kept == {"train-00000.arrow", "train-00002.arrow"}


@pytest.mark.parametrize(
    ("changes", "same"),
    [({"quality": 50}, set()), ({"short_side": 20}, set()), ({"train": 6}, {"test-00000.arrow"}), ({"test": 3}, None)],
    ids=str,
)
def test_shards_of_other_settings_are_made_again(tmp_path, changes, same):
    write_tree(tmp_path)
    expected = contents(prepared(tmp_path, "expected", **changes))
    stopped(tmp_path, 4)
    result, kept = resumed(tmp_path, **changes)
    assert result == expected
    assert kept == ({f"train-{n:05}.arrow" for n in range(3)} if same is None else same)


def test_a_shard_of_which_an_image_has_changed_is_made_again(tmp_path):
    tree = write_tree(tmp_path)
    stopped(tmp_path, 4)
    picture(np.random.default_rng(5), 33, 33).save(tree / "train/n01/n01_002.JPEG", quality=95)
    result, kept = resumed(tmp_path)
    assert len(kept) == 3
    assert result == contents(prepared(tmp_path, "expected"))


@pytest.mark.parametrize("changes", [{}, {"quality": 50}, {"train": 3}], ids=str)
def test_a_finished_preparation_can_be_made_again(tmp_path, changes):
    write_tree(tmp_path)
    prepared(tmp_path)
    assert contents(prepared(tmp_path, **changes)) == contents(prepared(tmp_path, "expected", **changes))
