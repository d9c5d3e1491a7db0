"""How far each figure is: which files it needs and which are there."""

from dataclasses import dataclass
from pathlib import Path

from nme.config import Project
from nme.grid import sources


@dataclass(frozen=True)
class Progress:
    """Result files of one figure, and whether it is drawn (from the results of whichever scale came last)."""

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
            drawn=(root / "figures" / f"{name}.pdf").exists(),
        )
        for name in project.figures
    ]
