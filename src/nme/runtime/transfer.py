"""Copies from the CPU to a GPU that do not wait for the GPU."""

from torch import Tensor, device


def send(tensor: Tensor, to: device) -> Tensor:
    """Copy a CPU tensor to a device, where work that is queued after this call finds it.

    An ordinary copy to a GPU waits until all work queued there is done, so that a training step would wait for the one
    before it. A copy from pinned memory is queued like other work; PyTorch reuses the memory only after it.
    """
    return tensor.pin_memory().to(to, non_blocking=True) if to.type == "cuda" else tensor.to(to)
