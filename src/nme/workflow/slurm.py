"""Check for SLURM jobs that an earlier run of Snakemake left running."""

import re
import subprocess
from pathlib import Path

from nme.errors import NmeError

# The SLURM plugin names all jobs of a run by one UUID.
NAME_OF_RUN = re.compile(r"(.*_)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def check_earlier_jobs(folder: Path) -> None:
    """Raise if jobs that an earlier run submitted from ``folder`` are still in the queue.

    A killed run cannot cancel its jobs. The next run does not recognise them, and would submit each of them again.

    Raises:
        NmeError: there are such jobs (the message names them and the remedy), or squeue fails.
    """
    try:
        queue = subprocess.run(["squeue", "--noheader", "--format=%i|%j|%Z"], capture_output=True, text=True)
    except FileNotFoundError:
        return  # the executor has a better message
    if queue.returncode:
        raise NmeError(f"squeue fails, so jobs of an earlier run cannot be seen: {queue.stderr.strip()} (try again)")
    jobs = [line.split("|", 2) for line in queue.stdout.splitlines()]
    ours = [number for number, name, where in jobs if NAME_OF_RUN.fullmatch(name) and Path(where) == folder]
    if ours:
        raise NmeError(
            f"SLURM jobs of an earlier run from this folder are still in the queue: {', '.join(ours)}. Wait until they"
            f" are done: their results will be used. Or `scancel {' '.join(ours)}`: the new run continues their work"
        )
