"""How far each figure is: which files it needs and which are there."""

import csv
from dataclasses import dataclass
from pathlib import Path

from nme.config import Project
from nme.grid import sources


@dataclass(frozen=True)
class Progress:
    """Result files of one figure at a scale, and whether ``figures/`` holds it as drawn from them."""

    figure: str
    done: int
    wanted: int
    drawn: bool


def status(project: Project, root: Path = Path()) -> list[Progress]:
    """Progress of every figure at the project's scale, from the files below ``root``."""
    return [
        Progress(
            figure=name,
            done=sum((root / path).exists() for path in sources(project, name)),
            wanted=len(sources(project, name)),
            drawn=_scale_drawn(root / "figures" / f"{name}.csv") == project.config.scale,
        )
        for name in project.figures
    ]


def _scale_drawn(numbers: Path) -> str | None:
    """The scale of the plotted numbers beside a figure; None if there are none."""
    if not numbers.exists():
        return None
    with numbers.open(encoding="utf-8", newline="") as file:
        return next(csv.DictReader(file), {}).get("scale")
