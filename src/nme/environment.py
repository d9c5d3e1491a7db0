"""What the rules' commands find in their environment: where things are and run, which does not decide what they are.

It travels here and not in a rule's params, so that moving to another device or data folder makes nothing again.
"""

import os
import sys
from pathlib import Path

from nme.config import Config


def export(config: Config) -> None:
    """Set PATH (so that ``nme`` is found where its environment was not activated), NME_DEVICE and NME_DATA_DIR."""
    os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    os.environ["NME_DEVICE"] = config.device
    if config.data_dir:
        os.environ["NME_DATA_DIR"] = str(Path(config.data_dir).expanduser().absolute())
