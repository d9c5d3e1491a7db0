"""Measurements in processes of their own."""

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from typing import Any


def in_a_process(script: str, *arguments: str) -> Any:
    """The JSON that a script prints with these arguments.

    This process must not have imported torch: a child's peak memory starts at what its parent holds.
    """
    command = [sys.executable, "-W", "ignore::FutureWarning", script, *arguments]
    environment = {**os.environ, "THP_MEM_ALLOC_ENABLE": "1"}  # as the `nme` command sets it
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def added_peak_mib(step: Callable[[], object]) -> float:
    """Peak memory of two steps beyond that of before, in this process."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    step()
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
