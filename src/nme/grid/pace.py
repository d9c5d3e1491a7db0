"""Pace of a machine: measured over estimated seconds of a scale's finished jobs, from which later estimates learn."""

from collections import defaultdict
from statistics import median

from nme.grid.cells import Cell

Key = tuple[str, ...]


class Pace:
    """Ratios of measured to estimated seconds: of a recipe's method, or else of the recipe, or else of the stage.

    Of several jobs the median counts: one that was suspended, or had other work beside it, took too long.

    Attributes:
        jobs: number of finished jobs known.
    """

    def __init__(self) -> None:
        self.jobs = 0
        self._ratios: dict[Key, list[float]] = defaultdict(list)

    def learn(self, stage: str, cell: Cell, measured: float, estimated: float) -> None:
        """Take the seconds of one finished job into account; ``stage`` is ``train`` or ``measure``."""
        if not estimated:
            return
        self.jobs += 1
        for key in _keys(stage, cell):
            self._ratios[key].append(measured / estimated)

    def of(self, stage: str, cell: Cell) -> float:
        """Factor for the estimate of a job; 1 where no job of its stage is finished."""
        return next((median(self._ratios[key]) for key in _keys(stage, cell) if key in self._ratios), 1.0)


def _keys(stage: str, cell: Cell) -> list[Key]:
    """From the closest jobs to the most distant ones."""
    return [(stage, cell.recipe, cell.method), (stage, cell.recipe), (stage,)]
