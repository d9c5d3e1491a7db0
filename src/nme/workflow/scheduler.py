"""One timer of Snakemake's scheduler instead of one per finished job.

Snakemake limits how many jobs start in a second. After each look at the jobs its scheduler therefore starts a timer, to
look again a second later, also when a finished job was the reason to look. So timers only become more: after n finished
jobs it looks n times a second, which takes a fifth of a core after forty jobs (version 9.27).
"""

import threading

from snakemake.scheduling.job_scheduler import JobScheduler


def keep_one_timer() -> None:
    """Let Snakemake's scheduler start no timer while one is running, so that it looks as often as at its start."""
    JobScheduler._schedule_reevalutation = _start_timer


def _start_timer(scheduler: JobScheduler, delay: float) -> None:
    if vars(scheduler).get("nme_timer_runs"):
        return
    scheduler.nme_timer_runs = True

    def look_again() -> None:
        scheduler.nme_timer_runs = False  # first: the scheduler may start the next timer at once
        scheduler._open_jobs.release()

    timer = threading.Timer(delay, look_again)
    timer.daemon = True  # the end of a run does not wait for it
    timer.start()
