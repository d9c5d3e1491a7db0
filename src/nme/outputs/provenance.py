"""Provenance of a result: settings, versions, device, time and memory, stored inside the result itself."""

import hashlib
import json
import os
import platform
import re
import resource
import sys
from functools import cache
from importlib import metadata
from pathlib import Path

import nme
from nme import __version__

# The file is in the project's folder: an editable installation (`make`, the image) imports nme from there.
LOCK = Path(nme.__file__).parents[2] / "requirements.lock"
COMPUTING = ("mnist1d", "numpy", "pandas", "pillow", "pyarrow", "scikit-learn", "scipy", "torch", "torchvision")


def spec_hash(spec: dict) -> str:
    """Identify settings by the SHA-256 of their canonical JSON."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@cache
def lock_file() -> str:
    """SHA-256 of the lock file if its versions of the computing packages are installed, otherwise ``none``."""
    if not LOCK.is_file():
        return "none"
    content = LOCK.read_bytes()
    locked = dict(re.findall(r"^([\w.-]+)==([^\s;]+)", content.decode(), re.MULTILINE))
    installed = {name: _installed(name) for name in COMPUTING}
    same = installed == {name: locked.get(name) for name in COMPUTING}
    return hashlib.sha256(content).hexdigest()[:12] if same else "none"


def _installed(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def provenance(spec: dict, seconds: float, **more: str | int | float) -> dict:
    """Record for a result's metadata; ``container`` is the file name of the container image, empty outside of one.

    Args:
        spec: the settings that decide the result.
        seconds: wall time of the job.
        more: device, data and other entries of the stage.
    """
    unit = 1 if sys.platform == "darwin" else 1024  # ru_maxrss: bytes on macOS, KiB elsewhere
    return {
        "spec": spec,
        "spec_sha256": spec_hash(spec),
        "nme": __version__,
        "lock_file": lock_file(),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "container": Path(os.environ.get("APPTAINER_CONTAINER", "")).name,
        "seconds": round(seconds, 3),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1),
        **more,
    }
