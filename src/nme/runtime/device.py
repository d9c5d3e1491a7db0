"""Choosing the device, and making what runs on it reproducible, and as fast as that allows."""

import ctypes
import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO

import torch

from nme.errors import NmeError
from nme.outputs.locks import Lock, take_lock

_places: list[IO] = []  # of this process on its GPU, until it ends


def prepare_device(name: str, threads: int, precision: str = "fp32") -> torch.device:
    """The device called ``name`` (cpu, cuda or auto), set up so that the same work gives the same bits.

    Of several GPUs it is the one with the fewest processes of nme on it.

    Args:
        name: ``auto`` is a GPU if there is one, else the CPU.
        threads: of the CPU; results depend on it.
        precision: ``tf32`` allows short products of float32 on a GPU; any other forbids them.

    Raises:
        NmeError: ``cuda`` without a usable GPU, or an unknown name.
    """
    if name not in ("cpu", "cuda", "auto"):
        raise NmeError(f"device is '{name}' (allowed: auto, cpu, cuda)")
    present = torch.cuda.is_available()
    if name == "cuda" and not present:
        raise NmeError("device is 'cuda', but PyTorch finds no usable GPU here (allowed here: cpu, auto)")
    torch.set_num_threads(threads)
    _keep_freed_memory()
    # As torch.use_deterministic_algorithms(True), which imports PyTorch's compiler: 1.3 s for every job.
    torch.set_deterministic_debug_mode("error")
    torch.utils.deterministic.fill_uninitialized_memory = False  # with NaN, to find bugs: 4 % of a step
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    if not present or name == "cpu":
        return torch.device("cpu")
    identifiers = [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]
    place = take_place(identifiers, Path(tempfile.gettempdir()))
    # Those of one job are to have one each.
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", place)))
    torch.cuda.set_device(device)
    return device


def _keep_freed_memory() -> None:
    """Memory that a step frees stays with the process, for the next step.

    Else glibc gives it back step by step, and what the system then clears anew takes a fifth of a small network's step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    trim_threshold, mmap_threshold = -1, -3  # of malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_threshold, 32 * 2**20)  # the largest it takes


def take_place(identifiers: list[str], folder: Path) -> int:
    """The index of a GPU with the fewest processes on it; this one is counted there until it ends.

    Args:
        identifiers: of the GPUs that this process sees; two processes may see different ones.
        folder: of this machine, for the lock files, a file a place on a GPU.
    """
    place = 0
    while True:
        for index, identifier in enumerate(identifiers):
            file = (folder / f"nme-{os.getuid()}-{identifier}-{place}.lock").open("a")
            if take_lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB) is not Lock.TAKEN:
                _places.append(file)
                return index
            file.close()
        place += 1


def device_name(device: torch.device) -> str:
    """What does the work: the GPU's name, or ``cpu`` with its kind of vector instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.backends.cpu.get_cpu_capability()})"
