"""The image is looked at before anything is submitted."""

import shutil
from pathlib import Path

import pytest

from nme import __version__
from nme.errors import NmeError
from nme.workflow import container_image as image


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(NmeError, match=r"gone\.sif: the container image is missing .*make image"):
        image.check_image(tmp_path / "gone.sif")


GOOD = {image.VERSION_LABEL: __version__, image.CODE_LABEL: image.code_hash()}


@pytest.mark.parametrize(
    ("labels", "failure", "wrong"),
    [
        (GOOD, "", None),
        (GOOD, "exit code 1", "fails in the container image: exit code 1"),
        ({**GOOD, image.VERSION_LABEL: "0.0.1"}, "", f"of nme 0.0.1, this is nme {__version__}"),
        ({**GOOD, image.CODE_LABEL: "of before"}, "", "built from code that differs"),
        ({}, "", "of nme without a version"),
    ],
)
def test_labels_and_a_command_inside_decide(tmp_path, monkeypatch, labels, failure, wrong):
    path = tmp_path / "some.sif"
    path.write_bytes(b"image")
    monkeypatch.setattr(image, "_labels", lambda path: labels)
    monkeypatch.setattr(image, "_failure", lambda path: failure)
    if wrong is None:
        image.check_image(path)
    else:
        with pytest.raises(NmeError, match=wrong):
            image.check_image(path)


def test_any_edit_of_the_code_counts(tmp_path, monkeypatch):
    import nme

    copy = tmp_path / "nme"
    shutil.copytree(Path(nme.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = image.code_hash()
    monkeypatch.setattr(nme, "__file__", str(copy / "__init__.py"))
    assert image.code_hash() == before
    (copy / "models/cnn.py").write_text("# edited\n" + (copy / "models/cnn.py").read_text())
    assert image.code_hash() != before
