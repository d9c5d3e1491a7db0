"""Several processes that share one training, each on a device of its own, by ``torch.distributed``.

``nme train`` starts them itself where the recipe asks for more than one (``launch``); under ``torchrun`` it takes those
that are there. The first one alone writes files and speaks.
"""

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import distributed

from nme.errors import Interrupted, NmeError

STARTED = "RANK"  # torchrun and ``launch`` set it


def started() -> bool:
    """Whether this process is one of several already."""
    return STARTED in os.environ


def launch(processes: int, arguments: list[str], stopped: int) -> int:
    """Run ``nme`` with these arguments in so many processes, and wait for them.

    They are told of SIGTERM and SIGINT, and have half a minute then to save what they have.

    Args:
        processes: how many.
        arguments: of the command line.
        stopped: the exit code of a process that was told to stop and has saved its state.

    Returns:
        0, or the exit code of the first that failed.

    Raises:
        Interrupted: this process was told to stop; so were the others.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

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
    try:
        elastic_launch(config, sys.executable)("-m", "nme.cli", *arguments)
    except ChildFailedError as error:
        codes = [failure.exitcode for failure in error.failures.values()]
        return stopped if stopped in codes else max(codes, key=abs)
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
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        distributed.destroy_process_group()


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


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set in any process; the same answer in each."""
    return bool(summed(torch.tensor(float(flag), device=device)) > 0) if distributed.is_initialized() else flag
