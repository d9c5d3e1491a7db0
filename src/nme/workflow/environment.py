"""Environment variables of the rules' commands: locations and the device, which do not decide results.

They are not in a rule's params, so that a different device or data folder repeats no job.
"""

import os
import re
import sys
from pathlib import Path

from nme.config.project import Config
from nme.errors import NmeError

LINKABLE = ("results", "figures", "logs")  # folders that users may put on a different disk


def export(config: Config) -> None:
    """Set PATH (so that ``nme`` is found without activating its environment), NME_DEVICE and NME_DATA_DIR.

    Also set APPTAINER_BIND, so that folders outside of the project are visible inside the container: the data folder,
    and the targets of links in the project.

    Raises:
        NmeError: NME_DATA_DIR is set and is not a folder.
    """
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    os.environ["NME_DEVICE"] = config.device
    given = os.environ.get("NME_DATA_DIR")
    if not config.data_dir and given and not Path(given).expanduser().is_dir():
        raise NmeError(f"NME_DATA_DIR is '{given}', which is not a folder (give one, or unset it)")
    if chosen := config.data_dir or given:
        folder = Path(chosen).expanduser().resolve()  # links may be broken inside the container
        os.environ["NME_DATA_DIR"] = str(folder)
        _bind(folder)
    for link in (Path(name) for name in LINKABLE):
        if link.is_symlink():
            _bind(Path(os.path.abspath(link.readlink())))  # under the path in the link, which may be a link itself


def _bind(folder: Path) -> None:
    bound = os.environ.get("APPTAINER_BIND", "")
    # Apptainer separates folders by commas and their places in the container by colons; a backslash escapes either.
    name = re.sub(r"([,:])", r"\\\1", str(folder))
    # Binding a missing folder would stop every job with Apptainer's message instead of ours.
    if folder.is_dir() and not folder.resolve().is_relative_to(Path.cwd()) and name not in _entries(bound):
        os.environ["APPTAINER_BIND"] = f"{bound},{name}" if bound.strip(",") else name


def _entries(bound: str) -> list[str]:
    """Folders of APPTAINER_BIND, still escaped."""
    return re.findall(r"(?:\\.|[^,\\])+", bound)
