"""Choosing the device, and making what runs on it reproducible."""

import os

import torch

from nme.errors import NmeError


def prepare_device(name: str, threads: int) -> torch.device:
    """The device called ``name`` (cpu, cuda or auto), set up so that the same work gives the same bits.

    Args:
        name: ``auto`` is a GPU if there is one, else the CPU.
        threads: of the CPU; results depend on it.

    Raises:
        NmeError: ``cuda`` without a usable GPU, or an unknown name.
    """
    if name not in ("cpu", "cuda", "auto"):
        raise NmeError(f"device is '{name}' (allowed: auto, cpu, cuda)")
    present = torch.cuda.is_available()
    if name == "cuda" and not present:
        raise NmeError("device is 'cuda', but PyTorch finds no usable GPU here (allowed here: cpu, auto)")
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS is deterministic only with this
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if present and name != "cpu" else "cpu")


def device_name(device: torch.device) -> str:
    """What does the work: the GPU's name, or ``cpu`` with its kind of vector instructions."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu ({torch.backends.cpu.get_cpu_capability()})"
