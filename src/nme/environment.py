"""What the rules' commands find in their environment: where things are and run, which does not decide what they are.

It travels here and not in a rule's params, so that moving to another device or data folder makes nothing again.
"""

import os
import sys
from pathlib import Path

from nme.config import Config
from nme.errors import NmeError


def export(config: Config) -> None:
    """Set PATH (so that ``nme`` is found where its environment was not activated), NME_DEVICE and NME_DATA_DIR.

    Raises:
        NmeError: NME_DATA_DIR is set and is no folder.
    """
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    os.environ["NME_DEVICE"] = config.device
    if config.data_dir:
        os.environ["NME_DATA_DIR"] = str(Path(config.data_dir).expanduser().absolute())
    elif not Path(os.environ.get("NME_DATA_DIR") or ".").expanduser().is_dir():
        raise NmeError(f"NME_DATA_DIR is '{os.environ['NME_DATA_DIR']}', which is not a folder (give one, or unset it)")
