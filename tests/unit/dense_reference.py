"""Small float64 networks, and their loss, gradient and Hessian by ``torch.func``, independently of nme."""

from copy import deepcopy
from functools import cache
from itertools import count

import torch
from torch import nn
from torch.func import functional_call, vmap

from nme.derivatives.activate import Activate
from nme.derivatives.batch import Batch
from nme.models import MODELS

CLASSES = 3
NETWORKS = {
    "mlp": ({"name": "mlp", "widths": [4, 4]}, (5,)),
    "cnn-1d": ({"name": "cnn", "channels": [2, 3], "kernel": 3, "stride": [2, 1]}, (2, 7)),
    "cnn-2d": ({"name": "cnn", "channels": [2, 2], "kernel": 3, "stride": 2}, (1, 5, 4)),
}
# A network, with batch norm or without; the smallest first.
PLACES = [(network, batch_norm) for network in NETWORKS for batch_norm in (False, True)]


def example(network, activation, batch_norm=False, dtype=torch.float64):
    """A model in train mode and a batch; no pre-activation is near 0, so no small step crosses a kink."""
    settings, shape = NETWORKS[network]
    for seed in count():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = MODELS[settings["name"]](**settings, batch_norm=batch_norm)
            model = model.build(shape, CLASSES, activation).double()
            with torch.no_grad():
                for parameter in model.parameters():  # batch norm's too, so that none is 0 or 1
                    parameter += 0.3 * torch.randn_like(parameter)
            batch = Batch(torch.randn(6, *shape, dtype=torch.float64), torch.randint(CLASSES, (6,)))
        if distance_to_kinks(model, batch) > 2e-3:
            return model.to(dtype), Batch(batch.inputs.to(dtype), batch.labels)


def interpolating(network, activation):
    """A float32 network that has learnt its batch, to a loss of 10⁻⁶."""
    model, batch = _learnt(network, activation)
    return deepcopy(model), batch


@cache
def _learnt(network, activation):
    model, batch = example(network, activation)
    parameters = list(model.parameters())
    for _ in range(2000):  # by the direction of the gradient, which does not shrink with the loss
        loss = nn.functional.cross_entropy(model(batch.inputs), batch.labels)
        if loss < 1e-6:
            return model.float(), Batch(batch.inputs.float(), batch.labels)
        gradient = torch.autograd.grad(loss, parameters)
        with torch.no_grad():
            for p, g in zip(parameters, gradient, strict=True):
                p -= 0.03 * g / flat(gradient).norm()
    raise AssertionError("the network has not learnt its batch")


@torch.no_grad()
def distance_to_kinks(model, batch):
    smallest = []
    model = deepcopy(model)  # a pass in train mode changes the running statistics
    for module in model.modules():
        if isinstance(module, Activate):
            module.register_forward_pre_hook(lambda _, inputs: smallest.append(inputs[0].abs().min().item()))
    model(batch.inputs)
    return min(smallest)


def flat(tensors):
    return torch.cat([t.detach().flatten() for t in tensors])


class BatchStatistics(nn.Module):
    """Batch norm in train mode, in elementary operations.

    ``torch.func.hessian`` of PyTorch's own is silently wrong (PyTorch 2.14; by 11 % in an MLP, against finite
    differences; pytorch/pytorch#196699 is of the same kind). Its plain double backward is right.
    """

    def __init__(self, original):
        super().__init__()
        self.weight, self.bias, self.eps = original.weight, original.bias, original.eps

    def forward(self, x):
        others = [d for d in range(x.dim()) if d != 1]
        column = (-1, *(1 for _ in others[1:]))
        centred = x - x.mean(others, keepdim=True)
        scale = (centred.square().mean(others, keepdim=True) + self.eps).rsqrt()
        return centred * scale * self.weight.view(column) + self.bias.view(column)


def without_running_statistics(model):
    """A copy with ``BatchStatistics`` for batch norm; all parameters keep their names."""
    model = deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            model.set_submodule(name, BatchStatistics(module))
    return model


class Dense:
    """L, ∇L and ∇²L of a model in train mode on a batch, over one flat vector ``theta``."""

    def __init__(self, model, batch):
        self.model = without_running_statistics(model)
        self.shapes = {name: p.shape for name, p in model.named_parameters()}
        self.theta = flat(model.parameters())
        self.batch = batch

    def loss(self, theta):
        parts = theta.split([shape.numel() for shape in self.shapes.values()])
        parameters = {name: part.view(s) for part, (name, s) in zip(parts, self.shapes.items(), strict=True)}
        logits = functional_call(self.model, parameters, (self.batch.inputs,))
        right = logits.gather(1, self.batch.labels[:, None])
        return (logits.logsumexp(1, keepdim=True) - right).mean()

    def gradient(self, theta):
        return torch.func.grad(self.loss)(theta)

    def hessian(self):
        return torch.func.hessian(self.loss)(self.theta)


def central_differences(f, theta, step=1e-5):
    """The slope of ``f`` along each coordinate, in the first dimension."""
    steps = step * torch.eye(len(theta), dtype=theta.dtype)
    return (vmap(f)(theta + steps) - vmap(f)(theta - steps)) / (2 * step)


def relative_error(actual, expected):
    return ((actual - expected).norm() / expected.norm()).item()


def signs(count, generator):
    """Rademacher entries as the methods draw them: a bit each, of random octets, the highest bit first."""
    octets = torch.randint(256, ((count + 7) // 8,), generator=generator, dtype=torch.uint8).tolist()
    return torch.tensor([2.0 * (octets[i // 8] >> (7 - i % 8) & 1) - 1 for i in range(count)], dtype=torch.float64)
