"""Several processes that share one training, each on a device of its own, by ``torch.distributed``.

``nme train`` starts them itself where the recipe asks for more than one (``launch``); under ``torchrun`` it takes those
that are there. The first one alone writes files; the others speak of mistakes only.
"""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from nme.errors import Interrupted, NmeError

STARTED = "RANK"  # torchrun and ``launch`` set it


def started() -> bool:
    """Whether this process is one of several already."""
    return STARTED in os.environ


def launch(processes: int, device: str, arguments: list[str], stopped: int) -> int:
    """Run ``nme`` with these arguments in so many processes, and wait for them.

    They are told of signals to stop, and killed where they have not saved their state half a minute later.

    Args:
        processes: how many.
        device: ``cpu``, ``cuda`` or ``auto``; of GPUs each takes its own.
        arguments: of the command line.
        stopped: the exit code of a process that was told to stop and has saved its state.

    Returns:
        0, or the exit code of the first that failed: 128 and the signal's number where it was killed.

    Raises:
        Interrupted: this process was told to stop; so were the others.
        NmeError: there are fewer GPUs.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes say what is wrong
    # One machine, a free port, no second attempt: trying again is the pipeline's business.
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id="nme",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        max_restarts=0,
        monitor_interval=0.1,
    )
    signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))  # a cluster's warning
    if device != "cpu" and torch.cuda.is_available() and torch.cuda.device_count() < processes:
        found = torch.cuda.device_count()
        raise NmeError(
            f"the recipe's processes is {processes}, but this job sees {found} GPUs (allowed: up to {found})"
        )
    try:
        elastic_launch(config, sys.executable)("-m", "nme.cli", *arguments)
    except ChildFailedError as error:
        if stopped in [failure.exitcode for failure in error.failures.values()]:
            return stopped
        code = error.get_first_failure()[1].exitcode
        return code if code > 0 else 128 - code
    except SignalException as stop:
        raise Interrupted(f"stopped by {stop.sigval.name}; run it again to continue") from None
    return 0


@contextmanager
def joined(processes: int, device: torch.device) -> Iterator[None]:
    """Inside, this process works with the others, if there are any.

    Raises:
        NmeError: there are not as many as the recipe says.
    """
    present = int(os.environ.get("WORLD_SIZE", "1"))
    if present != processes:
        raise NmeError(f"there are {present} processes, but the recipe's processes is {processes}")
    if processes == 1:
        yield
        return
    _end_with_parent()
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


def _end_with_parent() -> None:
    """When the process that started this one is killed, this one ends too: nobody else would know of it."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def rank() -> int:
    """The number of this process, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """How many there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def share(count: int) -> range:
    """Which of ``count`` things are this process's: a run of them, as many as the others' or one more or less.

    >>> share(5)
    range(0, 5)
    """
    return range(count * rank() // world(), count * (rank() + 1) // world())


def summed(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, in each of them."""
    if distributed.is_initialized():
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
    return tensor


def meet() -> None:
    """Wait until all processes are here."""
    if distributed.is_initialized():
        distributed.barrier()


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process; the same answer in each."""
    return bool(summed(torch.tensor(float(flag), device=device)) > 0) if distributed.is_initialized() else flag
