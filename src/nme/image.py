"""The container image: whether it is there and of this version, before anything is submitted."""

from pathlib import Path

from nme import __version__
from nme.errors import NmeError

LABEL = "nme.version"
HOW = "build it with `make image`, or elsewhere and copy it, see README; or run without containers"


def check_image(image: Path) -> None:
    """Raise unless jobs can run in the image.

    Its label is read with Apptainer, by way of spython. Where Apptainer is not installed, as on some login nodes, only
    the file's presence is checked.

    Raises:
        NmeError: there is no such file, it is no image, or it is of another version of nme.
    """
    if not image.is_file():
        raise NmeError(f"{image}: the container image is missing ({HOW})")
    labels = _labels(image)
    if labels is not None and labels.get(LABEL) != __version__:
        found = labels.get(LABEL, "without a version")
        raise NmeError(f"{image}: the container image is of nme {found}, this is nme {__version__} ({HOW})")


def _labels(image: Path) -> dict[str, str] | None:
    """The image's labels; None where there is no Apptainer to read them."""
    from shutil import which

    if not (which("apptainer") or which("singularity")):
        return None
    try:
        from spython.main import get_client
    except ImportError:
        raise NmeError("spython is not installed; it reads the image (pip install --editable '.[slurm]')") from None
    found = get_client(quiet=True).inspect(str(image))
    if not isinstance(found, dict) or ("data" in found and "attributes" not in found["data"]):
        raise NmeError(f"{image}: not a container image that Apptainer can read ({HOW})")
    attributes = found.get("data", found).get("attributes", found)
    return attributes.get("labels") or {}
