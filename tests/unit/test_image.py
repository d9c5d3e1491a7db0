"""The image is looked at before anything is submitted, and installs what the project asks for."""

import re
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from nme import __version__, image
from nme.errors import NmeError

ROOT = Path(__file__).parents[2]


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(NmeError, match=r"gone\.sif: the container image is missing .*make image"):
        image.check_image(tmp_path / "gone.sif")


@pytest.mark.parametrize(
    ("labels", "wrong"),
    [({image.LABEL: __version__}, None), (None, None), ({image.LABEL: "0.0.1"}, "of nme 0.0.1"), ({}, "without")],
)
def test_the_version_label_decides(tmp_path, monkeypatch, labels, wrong):
    path = tmp_path / "some.sif"
    path.write_bytes(b"image")
    monkeypatch.setattr(image, "_labels", lambda path: labels)
    if wrong is None:
        image.check_image(path)
    else:
        with pytest.raises(NmeError, match=f"{wrong}.*this is nme {__version__}"):
            image.check_image(path)


def test_the_lock_file_satisfies_every_requirement():
    lines = (ROOT / "containers" / "requirements.lock").read_text().splitlines()
    locked = {re.sub("[-_.]+", "-", name).lower(): version for name, _, version in (x.partition("==") for x in lines)}
    import tomllib

    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    for requirement in map(Requirement, wanted):
        version = locked[re.sub("[-_.]+", "-", requirement.name).lower()]
        assert requirement.specifier.contains(version), f"{requirement} is not met by {version}: make lock"
