"""Several processes that share one training, each on its own device, with ``torch.distributed``.

``nme train`` starts them itself if the recipe asks for more than one (``launch``); under ``torchrun`` it uses the
existing processes. Only the first one writes files; the others print nothing but error messages.
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
from nme.runtime.device import reserve_gpus

STARTED = "RANK"  # torchrun and ``launch`` set it


def is_launched() -> bool:
    """True if this process is already one of several."""
    return STARTED in os.environ


def launch(processes: int, device: str, arguments: list[str], stopped: int) -> int:
    """Run ``nme`` with these arguments in several processes, and wait for them.

    A signal to stop is passed on to them; a process that has not saved its state half a minute later is killed.

    Args:
        processes: number of processes.
        device: ``cpu``, ``cuda`` or ``auto``; each process takes its own GPU.
        arguments: command-line arguments.
        stopped: exit code of a process that was asked to stop and has saved its state.

    Returns:
        0, or the exit code of the first process that failed; 128 plus the signal's number if a signal killed it.

    Raises:
        Interrupted: this process was asked to stop, and so were the others.
        NmeError: there are fewer GPUs than processes.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the processes report their own errors
    # One machine, a free port, no second attempt: the pipeline repeats failed jobs.
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
    if device != "cpu" and torch.cuda.is_available():
        found = torch.cuda.device_count()
        if found < processes:
            raise NmeError(
                f"the recipe's processes is {processes}, but this job sees {found} GPUs (allowed: up to {found})"
            )
        reserve_gpus(processes)
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
def join(processes: int, device: torch.device) -> Iterator[None]:
    """Join the other processes of the training, if there are any, for the duration of the block.

    Raises:
        NmeError: the number of processes differs from the recipe's.
    """
    present = int(os.environ.get("WORLD_SIZE", "1"))
    if present != processes:
        raise NmeError(f"there are {present} processes, but the recipe's processes is {processes}")
    if processes == 1:
        yield
        return
    _end_with_parent()
    start_group(device)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def start_group(device: torch.device) -> None:
    """Find the other processes, by the variables of ``torchrun``: NCCL for a GPU's tensors, gloo for those of CPUs."""
    if device.type == "cuda":
        distributed.init_process_group("cpu:gloo,cuda:nccl", device_id=device)
    else:
        distributed.init_process_group("gloo")


def _end_with_parent() -> None:
    """End this process when its parent is killed; otherwise it would run on unnoticed."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def rank() -> int:
    """Number of this process, counted from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world() -> int:
    """Number of processes."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def share(count: int) -> range:
    """This process's share of ``count`` things: a contiguous range; the sizes of two shares differ by at most one.

    >>> share(5)
    range(0, 5)
    """
    return range(count * rank() // world(), count * (rank() + 1) // world())


def sum_over_processes(tensor: torch.Tensor) -> torch.Tensor:
    """The sum over all processes, in each of them."""
    if distributed.is_initialized():
        tensor = tensor.clone()
        distributed.all_reduce(tensor)
    return tensor


def meet() -> None:
    """Wait until all processes have called this function."""
    if distributed.is_initialized():
        distributed.barrier()


def any_of(flag: bool) -> bool:
    """True, in every process, if the flag is set in any of them. The CPUs exchange it: no GPU is waited for."""
    return bool(sum_over_processes(torch.tensor(float(flag))) > 0) if distributed.is_initialized() else flag
