"""Copies to a GPU, as far as a CPU can tell: what they ask PyTorch for, and that nothing else of a step differs."""

import numpy as np
import torch

from nme.derivatives.vectors import uniform, unpacked
from nme.runtime.random_streams import stream
from nme.runtime.transfer import send


class Recorder:
    """Stands in for a tensor of the CPU, and writes down what is called."""

    def __init__(self):
        self.calls = []

    def pin_memory(self):
        self.calls.append("pin_memory")
        return self

    def to(self, device, non_blocking=False):
        self.calls.append((str(device), non_blocking))
        return self


def test_a_copy_to_a_gpu_is_queued_from_pinned_memory():
    tensor = Recorder()
    send(tensor, torch.device("cuda", 1))
    assert tensor.calls == ["pin_memory", ("cuda:1", True)]


def test_on_the_cpu_nothing_is_copied():
    tensor = torch.arange(3)
    assert send(tensor, torch.device("cpu")) is tensor


def test_bits_unpacked_on_a_device_are_those_of_numpy():
    octets = torch.arange(256, dtype=torch.uint8)
    found = unpacked(octets)
    assert found.dtype == torch.uint8
    assert np.array_equal(found.numpy(), np.unpackbits(octets.numpy()))


def test_uniform_numbers_need_no_gpu():
    found = uniform((2, 3), stream(0, "noise"))
    assert not found.is_pinned()
    assert torch.equal(found, torch.rand(2, 3, generator=stream(0, "noise"), dtype=torch.float64))
