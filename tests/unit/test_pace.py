"""What estimates learn from finished jobs."""

from nme.grid.cells import Cell
from nme.grid.pace import Pace

PENALTY = Cell.of("digits_mlp", "gelu", "grad_norm", 0.1)
SAM = Cell.of("digits_mlp", "gelu", "sam", 0.1)
OTHER = Cell.of("mnist1d_cnn", "gelu", "grad_norm", 0.1)


def test_the_closest_finished_jobs_count():
    pace = Pace()
    assert pace.of("train", PENALTY) == 1
    pace.learn("train", PENALTY, 30, 10)
    assert (pace.of("train", PENALTY), pace.of("train", SAM), pace.of("train", OTHER)) == (3, 3, 3)
    assert pace.of("measure", PENALTY) == 1, "a stage of its own"
    pace.learn("train", SAM, 10, 10)
    assert (pace.of("train", PENALTY), pace.of("train", SAM)) == (3, 1), "each method by itself"
    assert pace.of("train", OTHER) == 40 / 20, "all jobs of the stage together"
    pace.learn("train", OTHER, 5, 10)
    assert (pace.of("train", OTHER), pace.of("train", PENALTY)) == (0.5, 3)


def test_jobs_without_an_estimate_teach_nothing():
    pace = Pace()
    pace.learn("measure", PENALTY, 1, 0)
    assert pace.of("measure", PENALTY) == 1
