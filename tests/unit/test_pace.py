"""What estimates learn from finished jobs."""

import pytest

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
    assert pace.of("train", OTHER) == 2, "the median of all jobs of the stage"
    pace.learn("train", OTHER, 5, 10)
    assert (pace.of("train", OTHER), pace.of("train", PENALTY)) == (0.5, 3)


def test_a_suspended_job_does_not_count():
    pace = Pace()
    for measured in (11, 10, 12, 500):
        pace.learn("train", SAM, measured, 10)
    assert pace.of("train", SAM) == pytest.approx(1.15)


def test_jobs_without_an_estimate_teach_nothing():
    pace = Pace()
    pace.learn("measure", PENALTY, 1, 0)
    assert pace.of("measure", PENALTY) == 1
