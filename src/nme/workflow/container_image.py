"""Check of the container image before anything is submitted: it must exist, be complete and contain this code."""

import hashlib
from pathlib import Path
from typing import Any

import nme
from nme.errors import NmeError

VERSION_LABEL, CODE_LABEL = "nme.version", "nme.code"  # written by containers/nme.def
HOW = "build it with `make image` here or on a different machine, see docs/cluster.md#the-image; or run without it"


def code_hash() -> str:
    """Identify the code of this package: SHA-256 of the names and contents of its modules."""
    folder, found = Path(nme.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return found.hexdigest()


def check_image(image: Path) -> None:
    """Raise unless jobs can run in the image with the same code as in ``src``.

    Snakemake cannot detect that an image contains older code than ``src``, and would mix results of both. Labels are
    read with Apptainer, through spython. A command is run inside, too: it fails if the file was truncated during a
    copy.

    Raises:
        NmeError: the image is missing or incomplete, or contains a different version or different code of nme.
    """
    if not image.is_file():
        raise NmeError(f"{image}: the container image is missing ({HOW})")
    labels = _labels(image)
    if labels.get(VERSION_LABEL) != nme.__version__:
        found = labels.get(VERSION_LABEL, "without a version")
        raise NmeError(f"{image}: the container image is of nme {found}, this is nme {nme.__version__} ({HOW})")
    if labels.get(CODE_LABEL) != code_hash():
        raise NmeError(f"{image}: the container image was built from code that differs from src/nme ({HOW})")
    failure = _failure(image)
    if failure:
        raise NmeError(f"{image}: `nme --version` fails in the container image: {failure} ({HOW})")


def _client() -> Any:
    try:
        from spython.main import get_client
    except ImportError:
        raise NmeError("spython, which reads the image, is missing (pip install --editable '.[slurm]')") from None
    return get_client(quiet=True)


def _labels(image: Path) -> dict[str, str]:
    found = _client().inspect(str(image))
    found = found.get("data", found) if isinstance(found, dict) else {}
    if "attributes" not in found:
        raise NmeError(f"{image}: not a container image that Apptainer can read ({HOW})")
    return found["attributes"].get("labels") or {}


def _failure(image: Path) -> str:
    """Last line of Apptainer's error message if a command fails in the image; empty if it runs."""
    done = _client().execute(str(image), ["nme", "--version"], return_result=True)
    if not isinstance(done, dict):
        return str(done)
    said = "".join(done["message"]).strip()
    return "" if done["return_code"] == 0 else said.splitlines()[-1] if said else f"exit code {done['return_code']}"
