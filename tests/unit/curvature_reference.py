"""Small float64 networks and dense H, G and N of a loss over batches, by ``torch.func``, independently of nme."""

from copy import deepcopy
from math import prod

import torch
from dense_reference import BatchStatistics
from torch import nn
from torch.func import functional_call, hessian, jacrev

from nme.derivatives.activate import Activate
from nme.derivatives.batch_norm import BatchNorm2d
from nme.models import MODELS

CLASSES = 3
SIZES = (5, 3)  # of the batches, unequal so that their weights matter

NETWORKS = {
    "mlp": ({"name": "mlp", "widths": [4, 4]}, (5,)),
    "cnn-1d": ({"name": "cnn", "channels": [2, 3], "kernel": 3, "stride": 2}, (2, 7)),
    "cnn-2d": ({"name": "cnn", "channels": [2, 2], "kernel": 3, "stride": 2}, (1, 5, 4)),
    "residual": (None, (1, 4, 3)),
}
LOSSES = {
    "cross-entropy": nn.CrossEntropyLoss(),
    "label-smoothing": nn.CrossEntropyLoss(label_smoothing=0.1),
    "mse": nn.MSELoss(),
}


class Residual(nn.Module):
    """A convolution and a residual block, both with batch norm (PyTorch's and nme's), and a linear head."""

    def __init__(self, activation):
        super().__init__()
        self.stem = nn.Conv2d(1, 3, 3, padding=1)
        self.norm0 = nn.BatchNorm2d(3)
        self.act0 = Activate(activation)
        self.conv = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.norm1 = BatchNorm2d(3)
        self.act1 = Activate(activation)
        self.head = nn.Linear(3, CLASSES)

    def forward(self, x):
        h = self.act0(self.norm0(self.stem(x)))
        h = h + self.act1(self.norm1(self.conv(h)))
        return self.head(h.mean((2, 3)))


def example(network, activation, loss="cross-entropy", sizes=SIZES, seed=0):
    """A model in train mode, with running statistics of its own, and batches."""
    settings, shape = NETWORKS[network]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        if settings is None:
            model = Residual(activation)
        else:
            model = MODELS[settings["name"]](**settings).build(shape, CLASSES, activation)
        model = model.double()
        with torch.no_grad():
            for parameter in model.parameters():  # batch norm's too, so that none is 0 or 1
                parameter += 0.3 * torch.randn_like(parameter)
            model(2 * torch.randn(20, *shape, dtype=torch.float64) + 1)
        batches = []
        for size in sizes:
            inputs = torch.randn(size, *shape, dtype=torch.float64)
            labels = torch.randint(CLASSES, (size,))
            targets = torch.randn(size, CLASSES, dtype=torch.float64)
            batches.append((inputs, targets if loss == "mse" else labels))
    return model, batches


class RunningStatistics(nn.Module):
    """Batch norm in eval mode, in elementary operations."""

    def __init__(self, original):
        super().__init__()
        self.weight, self.bias, self.eps = original.weight, original.bias, original.eps
        self.mean, self.variance = original.running_mean, original.running_var

    def forward(self, x):
        column = (-1, *(1 for _ in range(x.dim() - 2)))
        centred = (x - self.mean.view(column)) / (self.variance.view(column) + self.eps) ** 0.5
        return centred * self.weight.view(column) + self.bias.view(column)


class SecondOrder(nn.Module):
    """φ to second order around the pre-activations of the first pass.

    There its derivatives are φ, φ' and φ'' as the activation states them, with no rule of autodiff involved.
    """

    def __init__(self, activation):
        super().__init__()
        self.activation = activation
        self.at = None

    def forward(self, x):
        if self.at is None:
            self.at = x.detach().clone()
        value, first, second = (
            f(self.at) for f in (self.activation.value, self.activation.first, self.activation.second)
        )
        step = x - self.at
        return value + first * step + second * step**2 / 2


class DenseBatch:
    """Of one batch: logits as a function of one flat vector, and the matrices of a loss."""

    def __init__(self, model, inputs, labels, loss, batch_norm):
        self.model = deepcopy(model)
        norm = BatchStatistics if batch_norm == "train" else RunningStatistics
        for name, module in list(self.model.named_modules()):
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                self.model.set_submodule(name, norm(module))
            elif isinstance(module, Activate) and not module.activation.genuine:
                self.model.set_submodule(name, SecondOrder(module.activation))
        self.model.eval()
        self.shapes = {name: p.shape for name, p in model.named_parameters()}
        self.theta = torch.cat([p.detach().flatten() for p in model.parameters()])
        self.inputs, self.labels, self.loss = inputs, labels, loss
        self.z = self.logits(self.theta)

    def logits(self, theta):
        parts = theta.split([prod(shape) for shape in self.shapes.values()])
        parameters = {name: part.view(s) for part, (name, s) in zip(parts, self.shapes.items(), strict=True)}
        return functional_call(self.model, parameters, (self.inputs,))

    def mean_loss(self, theta):
        z = self.logits(theta)
        if self.loss == "mse":
            return (z - self.labels).square().sum() / z.numel()
        smoothing = 0.1 if self.loss == "label-smoothing" else 0.0
        onehot = torch.eye(z.shape[1], dtype=z.dtype)[self.labels]
        target = (1 - smoothing) * onehot + smoothing / z.shape[1]
        return (target * (z.logsumexp(1, keepdim=True) - z)).sum() / len(z)

    def gradient(self):
        return torch.func.grad(self.mean_loss)(self.theta)

    def hessian(self):
        return hessian(self.mean_loss)(self.theta)

    def gauss_newton(self):
        J = jacrev(self.logits)(self.theta)
        if self.loss == "mse":
            A = 2 / J.shape[1] * torch.eye(J.shape[1], dtype=J.dtype).expand(len(J), -1, -1)
        else:
            p = self.z.exp() / self.z.exp().sum(1, keepdim=True)
            A = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
        return torch.einsum("bcp,bcd,bdq->pq", J, A, J) / len(J)


class Dense:
    """H, G, N and the gradient of the mean loss over batches; for genuine activations H is the true Hessian."""

    def __init__(self, model, batches, loss="cross-entropy", batch_norm="eval"):
        total = sum(len(labels) for _, labels in batches)
        weighted = [(len(y) / total, DenseBatch(model, x, y, loss, batch_norm)) for x, y in batches]
        self.hessian = sum(w * batch.hessian() for w, batch in weighted)
        self.gauss_newton = sum(w * batch.gauss_newton() for w, batch in weighted)
        self.nme = self.hessian - self.gauss_newton
        self.gradient = sum(w * batch.gradient() for w, batch in weighted)
        self.matrices = {"H": self.hessian, "G": self.gauss_newton, "N": self.nme}


def relative_error(actual, expected):
    return ((actual.double() - expected).norm() / expected.norm()).item()


def vectors_of(size, count, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, count, generator=generator, dtype=torch.float64).to(dtype)
