"""What the rules' commands find in their environment: where things are and run, which does not decide what they are.

It travels here and not in a rule's params, so that moving to another device or data folder makes nothing again.
"""

import os
import sys
from pathlib import Path

from nme.config.project import Config
from nme.errors import NmeError

LINKABLE = ("results", "figures", "logs")  # folders that users put on another disk


def export(config: Config) -> None:
    """Set PATH (so that ``nme`` is found where its environment was not activated), NME_DEVICE and NME_DATA_DIR.

    And APPTAINER_BIND, so that folders outside of the project's are seen inside the image: the data's, and those that
    a link in the project leads to.

    Raises:
        NmeError: NME_DATA_DIR is set and is no folder.
    """
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    os.environ["NME_DEVICE"] = config.device
    given = os.environ.get("NME_DATA_DIR")
    if not config.data_dir and given and not Path(given).expanduser().is_dir():
        raise NmeError(f"NME_DATA_DIR is '{given}', which is not a folder (give one, or unset it)")
    if config.data_dir or given:
        folder = Path(config.data_dir or given).expanduser().resolve()  # inside the image links lead elsewhere
        os.environ["NME_DATA_DIR"] = str(folder)
        _bind(folder)
    for link in (Path(name) for name in LINKABLE):
        if link.is_symlink():
            _bind(Path(os.path.abspath(link.readlink())))  # under the name that the link has for it


def _bind(folder: Path) -> None:
    bound = [part for part in os.environ.get("APPTAINER_BIND", "").split(",") if part]
    # One that is not there stops every job with a message of Apptainer's instead of ours.
    if folder.is_dir() and not folder.resolve().is_relative_to(Path.cwd()) and str(folder) not in bound:
        os.environ["APPTAINER_BIND"] = ",".join([*bound, str(folder)])
