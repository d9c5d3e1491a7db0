"""The packages that the check needs, all named at once with their versions; imports none of them."""

import re
from importlib import metadata


def version(text: str) -> tuple[int, ...]:
    """Leading numbers of a version.

    >>> version("2.11.0+cu130")
    (2, 11, 0)
    """
    return tuple(int(number) for number in re.findall(r"\d+", text.partition("+")[0])[:3])


def needed() -> dict[str, str]:
    """Lowest version by package; torchvision's is that of the installed PyTorch, since the two must match."""
    torch = version(_installed("torch") or "2.11")
    return {
        "torch": "2.11",
        "numpy": "2.0",
        "scipy": "1.14",
        "pydantic": "2.9",
        "pillow": "11",
        "torchvision": f"0.{torch[1] + 15}",
    }


def missing() -> list[str]:
    """A line for each package that is missing or too old."""
    lines = []
    for package, lowest in needed().items():
        found = _installed(package)
        if not found or version(found) < version(lowest):
            lines.append(f"{package} {lowest} or newer (found {found or 'none'})")
    found = _installed("torchvision")
    if found and version(found)[:2] != version(needed()["torchvision"]):
        lines.append(f"torchvision {needed()['torchvision']}.* for PyTorch {_installed('torch')} (found {found})")
    return lines


def message(lines: list[str]) -> str:
    """The error: what is missing, and how to bring it to a machine without network."""
    bring = "pip download --dest wheels PACKAGE==VERSION, on a machine with network and the same Python; here: pip"
    listed = "\n".join(f"  {line}" for line in lines)
    return f"gpu: error: packages are missing:\n{listed}\n{bring} install --no-index --find-links wheels PACKAGE"


def _installed(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
