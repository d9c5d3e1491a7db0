"""Choice of the device, with reproducible computation on it, as fast as possible."""

import ctypes
import fcntl
import os
import tempfile
from pathlib import Path
from typing import IO

import torch

from nme.errors import NmeError
from nme.outputs.locks import Lock, take_lock

_places: list[IO] = []  # locked files of this process's place on its GPU, open until the process ends


def prepare_device(name: str, threads: int, precision: str = "fp32") -> torch.device:
    """Set up the device ``name`` (cpu, cuda or auto), so that the same work gives the same bits.

    If there are several GPUs, choose the one with the fewest processes of nme.

    Args:
        name: ``auto`` means a GPU if there is one, otherwise the CPU.
        threads: CPU threads; results depend on this number.
        precision: ``tf32`` allows TF32 products of float32 on a GPU; other values forbid them.

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
    # Same effect as torch.use_deterministic_algorithms(True), which imports PyTorch's compiler: 1.3 s for every job.
    torch.set_deterministic_debug_mode("error")
    # Filling with NaN finds bugs, but costs 4 % of a step. (mypy does not see this property of a module.)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    if not present or name == "cpu":
        return torch.device("cpu")
    identifiers = [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]
    place = take_place(identifiers, Path(tempfile.gettempdir()))
    # The processes of one job take one GPU each.
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", place)))
    torch.cuda.set_device(device)
    return device


def _keep_freed_memory() -> None:
    """Keep the memory that a step frees in the process, for the next step.

    Otherwise glibc returns the memory after each step, and the system's clearing of new memory takes a fifth of a small
    network's step.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # a different C library
        return
    trim_threshold, mmap_threshold = -1, -3  # values from malloc.h
    mallopt(trim_threshold, 2**31 - 1)
    mallopt(mmap_threshold, 32 * 2**20)  # the largest it takes


def take_place(identifiers: list[str], folder: Path) -> int:
    """Index of a GPU with the fewest processes; this process counts as one of them until it ends.

    Args:
        identifiers: identifiers of the visible GPUs; two processes may see different GPUs.
        folder: local folder for the lock files, one file per place on a GPU.
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
    """Name of the GPU, or ``cpu`` with its kind of vector instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.backends.cpu.get_cpu_capability()})"
