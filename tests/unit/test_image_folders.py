"""Trees of JPEG images: listed class by class, counted, and each mistake named by its folder or file."""

import shutil

import numpy as np
import pytest
from image_trees import CLASSES, Small, write_tree

from nme.datasets import DATASETS
from nme.datasets.base import Places
from nme.errors import NmeError


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path)


def found(tree):
    return Small().find(Places((tree.parent,)))


def message(*folders):
    with pytest.raises(NmeError) as caught:
        Small().find(Places(folders))
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def test_images_are_listed_class_by_class_and_sorted(tree):
    result = found(tree)
    for listing, name, each in ((result.train, "train", 4), (result.test, "val", 2)):
        assert listing.folder == tree / name
        assert listing.images == sorted(str(p.relative_to(tree / name)) for p in (tree / name).glob("*/*"))
        assert len(listing.images) == 3 * each
        assert [CLASSES[label] for label in listing.labels] == [image.split("/")[0] for image in listing.images]
        assert listing.labels.dtype == np.int64
    assert result.source == f"{tree}, a sample"


def test_the_first_folder_that_has_it_is_taken(tree, tmp_path):
    (tmp_path / "other").mkdir()
    tree.rename(tmp_path / "other" / "small_sample")
    again = Small().find(Places((tmp_path / "none", tmp_path / "other", tmp_path)))
    assert again.train.folder == tmp_path / "other" / "small_sample" / "train"


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", CLASSES)
def test_a_missing_class_is_named(tree, split, name):
    shutil.rmtree(tree / split / name)
    assert message(tree.parent) == f"{tree / split / name}: this class folder is missing (expected: 3 classes)"


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_missing_split_is_named(tree, split):
    shutil.rmtree(tree / split)
    assert message(tree.parent).startswith(f"{tree / split}: no such folder")


@pytest.mark.parametrize("name", ["n00", "n02b", "N01", ".cache"])
def test_a_foreign_class_is_named(tree, name):
    (tree / "val" / name).mkdir()
    assert message(tree.parent).startswith(f"{tree / 'val' / name}: not one of the 3 expected classes")


@pytest.mark.parametrize("name", ["n02_000.png", "n02_000.jpeg", "Thumbs.db", ".partial-x", "n02_009.JPEG.part"])
def test_a_file_that_is_no_image_is_named(tree, name):
    (tree / "train" / "n02" / name).touch()
    assert message(tree.parent).startswith(f"{tree / 'train' / 'n02' / name}: not a *.JPEG")


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("change", [-1, 1])
def test_a_wrong_count_names_the_class(tree, split, name, change):
    if change < 0:
        (tree / split / name / f"{name}_001.JPEG").unlink()
    else:
        (tree / split / name / f"{name}_010.JPEG").touch()
    each = {"train": 4, "val": 2}[split]
    text = message(tree.parent)
    assert text.startswith(f"{tree / split / name}: has {each + change} images, expected {each} ")


@pytest.mark.parametrize("emptied", [CLASSES[1:2], CLASSES])
def test_an_empty_class_is_named(tree, emptied):
    for name in emptied:
        for image in (tree / "train" / name).iterdir():
            image.unlink()
    assert message(tree.parent).startswith(f"{tree / 'train' / emptied[0]}: has 0 images")


def test_the_official_number_may_be_of_classes_of_different_sizes(tmp_path, monkeypatch):
    """Like ImageNet, most of whose classes have 1,300 images and others fewer."""
    tree = write_tree(tmp_path, (5, 3, 4))
    assert message(tmp_path) == f"{tree / 'train'}: has 12 images, expected 100"
    monkeypatch.setattr(Small, "counts", (12, 6))
    result = found(tree)
    assert np.bincount(result.train.labels).tolist() == [5, 3, 4]
    assert result.source == f"{tree}, whole"


def test_the_official_number_with_an_empty_class_is_refused(tmp_path, monkeypatch):
    tree = write_tree(tmp_path, (6, 0, 6))
    monkeypatch.setattr(Small, "counts", (12, 6))
    assert message(tmp_path).startswith(f"{tree / 'train' / 'n02'}: has 0 images")


@pytest.mark.parametrize("folders", [[], ["here"], ["here", "there"]])
def test_what_is_not_there_is_named_and_where_it_was_looked_for(tmp_path, folders):
    text = message(*(tmp_path / folder for folder in folders))
    assert text.startswith("dataset not found: looked for small/{train,val}/")
    assert "small_sample/{train,val}/" in text
    for folder in folders:
        assert str(tmp_path / folder) in text
    assert "data_dir" in text
    assert ("data_dir is not set" in text) == (not folders)


@pytest.mark.parametrize(("name", "classes"), [("imagenet", 1000), ("imagenette", 10)])
def test_shipped_classes_are_distinct_and_in_torchvisions_order(name, classes):
    listed = DATASETS[name].classes
    assert list(listed) == sorted(set(listed))
    assert len(listed) == classes
    assert all(len(c) == 9 and c[0] == "n" and c[1:].isdigit() for c in listed)
    assert set(listed) <= set(DATASETS["imagenet"].classes)
