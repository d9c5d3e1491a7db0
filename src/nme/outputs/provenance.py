"""Where a result comes from: settings, versions, device, time and memory, kept inside the result itself."""

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

# It is in the project's folder, which an editable installation (`make`, the image) leaves in its place.
LOCK = Path(nme.__file__).parents[2] / "requirements.lock"
COMPUTING = ("mnist1d", "numpy", "pandas", "pillow", "pyarrow", "scikit-learn", "scipy", "torch", "torchvision")


def spec_hash(spec: dict) -> str:
    """Identifies settings: SHA-256 of their canonical JSON."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


@cache
def lock_file() -> str:
    """Identify the lock file whose versions of the computing packages are installed, by its SHA-256; or ``none``."""
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
    """A record for a result's metadata; ``container`` is the image's file name, empty outside of one.

    Args:
        spec: the settings that decide the result.
        seconds: wall time of making it.
        more: device, data, and what else belongs to this stage.
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
