"""Where a result comes from: settings, versions, device, time and memory, kept inside the result itself."""

import hashlib
import json
import os
import platform
import resource
import sys
from pathlib import Path

from nme import __version__


def spec_hash(spec: dict) -> str:
    """Identifies settings: SHA-256 of their canonical JSON."""
    return hashlib.sha256(json.dumps(spec, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


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
        "python": platform.python_version(),
        "machine": platform.machine(),
        "container": Path(os.environ.get("APPTAINER_CONTAINER", "")).name,
        "seconds": round(seconds, 3),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20, 1),
        **more,
    }
