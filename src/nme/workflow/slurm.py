"""What an earlier run of Snakemake left on SLURM: jobs that go on without it."""

import re
import subprocess
from pathlib import Path

from nme.errors import NmeError

# The SLURM plugin names all jobs of a run by one UUID.
NAME_OF_RUN = re.compile(r"(.*_)?[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def check_earlier_jobs(folder: Path) -> None:
    """Raise if jobs that an earlier run submitted from ``folder`` are still in the queue.

    A run that was killed cannot cancel its jobs. Snakemake does not know them again, and would submit each once more.

    Raises:
        NmeError: it says which, and how to go on; or squeue fails.
    """
    try:
        queue = subprocess.run(["squeue", "--noheader", "--format=%i|%j|%Z"], capture_output=True, text=True)
    except FileNotFoundError:
        return  # the executor says it better
    if queue.returncode:
        raise NmeError(f"squeue fails, so jobs of an earlier run cannot be seen: {queue.stderr.strip()} (try again)")
    jobs = [line.split("|", 2) for line in queue.stdout.splitlines()]
    ours = [number for number, name, where in jobs if NAME_OF_RUN.fullmatch(name) and Path(where) == folder]
    if ours:
        raise NmeError(
            f"SLURM jobs of an earlier run from this folder are still in the queue: {', '.join(ours)}. Wait until they"
            f" are done, their results count; or `scancel {' '.join(ours)}`, and what they have begun is continued"
        )
