"""What the rules' commands find in their environment: where things are and run, which does not decide what they are.

It travels here and not in a rule's params, so that moving to another device or data folder makes nothing again.
"""

import os
import sys
from pathlib import Path

from nme.config import Config
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
    if config.data_dir:
        os.environ["NME_DATA_DIR"] = str(Path(config.data_dir).expanduser().absolute())
    elif not Path(os.environ.get("NME_DATA_DIR") or ".").expanduser().is_dir():
        raise NmeError(f"NME_DATA_DIR is '{os.environ['NME_DATA_DIR']}', which is not a folder (give one, or unset it)")
    given = os.environ.get("NME_DATA_DIR")
    folders = [Path(given).expanduser()] if given else []
    folders += [Path(name).resolve() for name in LINKABLE if Path(name).is_symlink()]
    for folder in folders:
        _bind(folder)


def _bind(folder: Path) -> None:
    bound = [part for part in os.environ.get("APPTAINER_BIND", "").split(",") if part]
    # One that is not there stops every job with a message of Apptainer's instead of ours.
    if folder.is_dir() and not folder.resolve().is_relative_to(Path.cwd()) and str(folder) not in bound:
        os.environ["APPTAINER_BIND"] = ",".join([*bound, str(folder)])
