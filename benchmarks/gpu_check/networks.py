"""Networks and batches of the check, and the one place where it calls the training methods."""

from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor, nn

from nme.activations import ACTIVATIONS
from nme.config.scale import Recipe
from nme.data.in_memory import Data
from nme.derivatives.batch import Batch
from nme.methods import METHODS, Update
from nme.models import MODELS
from nme.runtime.random_streams import stream
from nme.training.member import Job, Member

STRENGTH = 0.05
SMALL_STRENGTH = 1e-4  # for times: all numbers stay ordinary ones


class Network(NamedTuple):
    """Settings of a model, shape of its inputs, size of a batch; the same with tiny sizes for a rehearsal."""

    model: dict
    shape: tuple[int, ...]
    batch: int
    classes: int = 10


MLP = {"name": "mlp", "widths": [256, 256]}
CNN_1D = {"name": "cnn", "channels": [32, 32, 32], "kernel": 5, "stride": 2}
CNN_2D = {"name": "cnn", "channels": [16, 32], "kernel": 3, "stride": 2}
TINY_WRN = Network({"name": "wide_resnet", "depth": 10, "widen": 1}, (3, 8, 8), 8)

NETWORKS = {
    "MLP": Network(MLP, (1, 28, 28), 128),
    "CNN, 1-d": Network(CNN_1D, (1, 40), 100),
    "CNN, 2-d": Network(CNN_2D, (3, 32, 32), 50),
    "WideResNet-16-4": Network({"name": "wide_resnet", "depth": 16, "widen": 4}, (3, 32, 32), 8),
    "WideResNet-28-10": Network({"name": "wide_resnet", "depth": 28, "widen": 10}, (3, 32, 32), 128),
    "ResNet-50, 64 px": Network({"name": "resnet50"}, (3, 64, 64), 8),
    "ResNet-50": Network({"name": "resnet50"}, (3, 224, 224), 128, 1000),
}
QUICK = {
    "MLP": Network({"name": "mlp", "widths": [16, 16]}, (1, 8, 8), 16),
    "CNN, 1-d": Network({"name": "cnn", "channels": [4, 4], "kernel": 5, "stride": 2}, (1, 40), 16),
    "CNN, 2-d": Network({"name": "cnn", "channels": [4, 4], "kernel": 3, "stride": 2}, (3, 8, 8), 16),
    "WideResNet-16-4": TINY_WRN,
    "WideResNet-28-10": TINY_WRN,
    "ResNet-50, 64 px": Network({"name": "resnet50"}, (3, 32, 32), 4),
    "ResNet-50": TINY_WRN._replace(classes=20),
}


def network(name: str, quick: bool) -> Network:
    """A network by name."""
    return (QUICK if quick else NETWORKS)[name]


def model_of(net: Network, activation: str = "gelu") -> nn.Module:
    """The model on the CPU, in float32, always with the same parameters."""
    settings = dict(net.model)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MODELS[settings["name"]](**settings).build(net.shape, net.classes, ACTIVATIONS.parse(activation))


def batch_of(net: Network) -> tuple[Tensor, Tensor]:
    """Random inputs (B, *shape), float32, and labels (B,), on the CPU."""
    generator = stream(0, "gpu check")
    inputs = torch.randn(net.batch, *net.shape, generator=generator)
    return inputs, torch.randint(net.classes, (net.batch,), generator=generator)


def update_of(method: str, model: nn.Module, inputs: Tensor, labels: Tensor, strength: float = STRENGTH) -> Update:
    """One update of a method, with the same random numbers on every device."""
    return METHODS.parse(method).update(model, Batch(inputs, labels), strength, stream(0, "noise"))


def direction(method: str, model: nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """Direction of one step of a method, flat."""
    return torch.cat([part.detach().reshape(-1) for part in update_of(method, model, inputs, labels).direction])


def recipe_of(net: Network, **settings: object) -> Recipe:
    """A recipe for the network; its dataset is the random one of ``data_of``."""
    fixed = {"dataset": "random", "model": net.model, "batch_size": net.batch, "epochs": 1000, "learning_rate": 1e-4}
    return Recipe(**{**fixed, "weight_decay": 5e-4, **settings})


def data_of(net: Network, batches: int, device: torch.device) -> Data:
    """Random images as bytes, or signals, on the device."""
    generator, examples = stream(1, "gpu check"), batches * net.batch
    if len(net.shape) == 3:
        inputs = torch.randint(256, (examples, *net.shape), generator=generator, dtype=torch.uint8)
    else:
        inputs = torch.randn(examples, *net.shape, generator=generator)
    labels = torch.randint(net.classes, (examples,), generator=generator)
    mean, std = (127.5, 73.6) if inputs.dtype == torch.uint8 else (0.0, 1.0)
    column = (net.shape[0], *(1 for _ in net.shape[1:]))
    constants = (torch.full(column, value, device=device) for value in (mean, std))
    return Data(inputs.to(device), labels.to(device), *constants)


def member_of(
    recipe: Recipe,
    data: Data,
    classes: int,
    method: str = "sgd",
    strength: float = STRENGTH,
    activation: str = "gelu",
    test: Data | None = None,
    seed: int = 0,
) -> Member:
    """A network in training, as ``nme train`` trains it; without test data, it is tested on the training data."""
    device = data.labels.device
    job = Job(recipe, activation, METHODS.parse(method), strength, data, test or data, classes, device)
    return Member(job, seed)


def endless(member: Member, method: str) -> Callable[[], None]:
    """A step of a method, as ``nme train`` does it; epochs begin anew without an evaluation."""
    job = replace(member.job, method=METHODS.parse(method), strength=SMALL_STRENGTH)

    def step() -> None:
        member.job = job
        if member.step == job.steps_per_epoch - 1:
            member.step, member._examples = 0, None
        member.advance()

    return step
