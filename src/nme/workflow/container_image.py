"""The container image: whether it is there, whole and of this code, before anything is submitted."""

import hashlib
from pathlib import Path

import nme
from nme.errors import NmeError

VERSION_LABEL, CODE_LABEL = "nme.version", "nme.code"  # written by containers/nme.def
HOW = "build it with `make image`, or elsewhere and copy it, see docs/cluster.md#the-image; or run without containers"


def code_hash() -> str:
    """Identifies the code of this package: SHA-256 of its modules, by their names."""
    folder, found = Path(nme.__file__).parent, hashlib.sha256()
    for path in sorted(folder.rglob("*.py")):
        found.update(f"{path.relative_to(folder)}\0".encode() + path.read_bytes())
    return found.hexdigest()


def check_image(image: Path) -> None:
    """Raise unless jobs can run in the image, with the code that is here.

    Snakemake does not see that the code in an image is older than that in ``src``: results of the one would be taken
    for results of the other. Labels are read with Apptainer, by way of spython, and a command is run inside, which a
    file that was cut while it was copied does not survive.

    Raises:
        NmeError: there is no such file, it is no whole image, or it is of another version or code of nme.
    """
    if not image.is_file():
        raise NmeError(f"{image}: the container image is missing ({HOW})")
    labels = _labels(image)
    if labels.get(VERSION_LABEL) != nme.__version__:
        found = labels.get(VERSION_LABEL, "without a version")
        raise NmeError(f"{image}: the container image is of nme {found}, this is nme {nme.__version__} ({HOW})")
    if labels.get(CODE_LABEL) != code_hash():
        raise NmeError(f"{image}: the container image was built from other code than src/nme has now ({HOW})")
    failure = _failure(image)
    if failure:
        raise NmeError(f"{image}: `nme --version` fails in the container image: {failure} ({HOW})")


def _client():
    try:
        from spython.main import get_client
    except ImportError:
        raise NmeError("spython is not installed; it reads the image (pip install --editable '.[slurm]')") from None
    return get_client(quiet=True)


def _labels(image: Path) -> dict[str, str]:
    found = _client().inspect(str(image))
    found = found.get("data", found) if isinstance(found, dict) else {}
    if "attributes" not in found:
        raise NmeError(f"{image}: not a container image that Apptainer can read ({HOW})")
    return found["attributes"].get("labels") or {}


def _failure(image: Path) -> str:
    """Why a command fails in the image, in the last line of what Apptainer says; nothing if it runs."""
    done = _client().execute(str(image), ["nme", "--version"], return_result=True)
    if not isinstance(done, dict):
        return str(done)
    said = "".join(done["message"]).strip()
    return "" if done["return_code"] == 0 else said.splitlines()[-1] if said else f"exit code {done['return_code']}"
