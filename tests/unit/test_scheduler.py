"""Timers of Snakemake's scheduler: one at a time, however many jobs finish."""

import threading

import pytest
from snakemake.scheduling.job_scheduler import JobScheduler

from nme.workflow.scheduler import keep_one_timer


class Scheduler:
    """What the timer needs of Snakemake's scheduler, whose look at the jobs this counts."""

    def __init__(self):
        self._open_jobs = threading.Semaphore(0)

    def looks(self) -> int:
        """How many looks are due."""
        found = 0
        while self._open_jobs.acquire(blocking=False):
            found += 1
        return found


@pytest.fixture
def start(monkeypatch):
    """The timer as Snakemake starts it; a new Snakemake may have another, which the module would then not replace."""
    monkeypatch.setattr(JobScheduler, "_schedule_reevalutation", JobScheduler._schedule_reevalutation)
    keep_one_timer()
    return JobScheduler._schedule_reevalutation


def test_many_finished_jobs_have_one_timer(start):
    scheduler, other = Scheduler(), Scheduler()
    for _ in range(50):
        start(scheduler, 0.05)
    start(other, 0.05)
    assert scheduler._open_jobs.acquire(timeout=5)
    assert other._open_jobs.acquire(timeout=5)
    assert scheduler.looks() == other.looks() == 0


def test_each_look_may_start_the_next_timer(start):
    scheduler = Scheduler()
    for _ in range(3):
        start(scheduler, 0.01)
        assert scheduler._open_jobs.acquire(timeout=5)


def test_the_end_of_a_run_waits_for_no_timer(start):
    before = set(threading.enumerate())
    start(Scheduler(), 5)
    (timer,) = set(threading.enumerate()) - before
    assert timer.daemon
    timer.cancel()
