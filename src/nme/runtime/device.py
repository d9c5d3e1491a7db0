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
    if "LOCAL_RANK" in os.environ:  # one of the processes of a job: each has its own of the GPUs that the job sees
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
    else:
        device = torch.device("cuda", take_places(1, _identifiers(), Path(tempfile.gettempdir()))[0])
    torch.cuda.set_device(device)
    return device


def reserve_gpus(processes: int) -> None:
    """Let the child processes of this one see only as many GPUs as there are of them: those with the fewest processes.

    Otherwise the jobs of a machine with many GPUs would all take the first ones.
    """
    places = take_places(processes, _identifiers(), Path(tempfile.gettempdir()))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    names = visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(names[place] for place in sorted(places))


def _identifiers() -> list[str]:
    return [str(torch.cuda.get_device_properties(i).uuid) for i in range(torch.cuda.device_count())]


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


def take_places(count: int, identifiers: list[str], folder: Path) -> list[int]:
    """Indices of different GPUs with the fewest processes; this process counts as one on each until it ends.

    Args:
        count: number of GPUs, at most as many as there are.
        identifiers: identifiers of the visible GPUs; two processes may see different GPUs.
        folder: local folder for the lock files, one file per place on a GPU.
    """
    taken: list[int] = []
    place = 0
    while True:
        for index, identifier in enumerate(identifiers):
            if index in taken:
                continue
            file = (folder / f"nme-{os.getuid()}-{identifier}-{place}.lock").open("a")
            if take_lock(file, fcntl.LOCK_EX | fcntl.LOCK_NB) is Lock.TAKEN:
                file.close()
                continue
            _places.append(file)
            taken.append(index)
            if len(taken) == count:
                return taken
        place += 1


def device_name(device: torch.device) -> str:
    """Name of the GPU, or ``cpu`` with its kind of vector instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.backends.cpu.get_cpu_capability()})"
