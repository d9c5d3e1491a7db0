"""Pace of a machine: measured over estimated seconds of a scale's finished jobs, from which later estimates learn."""

from collections import defaultdict

from nme.grid.cells import Cell

Key = tuple[str, ...]


class Pace:
    """Ratios of measured to estimated seconds: of a recipe's method, or else of the recipe, or else of the stage.

    Attributes:
        jobs: number of finished jobs known.
    """

    def __init__(self) -> None:
        self.jobs = 0
        self._sums: dict[Key, list[float]] = defaultdict(lambda: [0.0, 0.0])

    def learn(self, stage: str, cell: Cell, measured: float, estimated: float) -> None:
        """Take the seconds of one finished job into account; ``stage`` is ``train`` or ``measure``."""
        self.jobs += 1
        for key in _keys(stage, cell):
            self._sums[key][0] += measured
            self._sums[key][1] += estimated

    def of(self, stage: str, cell: Cell) -> float:
        """Factor for the estimate of a job; 1 where no job of its stage is finished."""
        for key in _keys(stage, cell):
            measured, estimated = self._sums.get(key, (0.0, 0.0))
            if estimated:
                return measured / estimated
        return 1.0


def _keys(stage: str, cell: Cell) -> list[Key]:
    """From the closest jobs to the most distant ones."""
    return [(stage, cell.recipe, cell.method), (stage, cell.recipe), (stage,)]
