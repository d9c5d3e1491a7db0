"""Networks of others in their own loops: a ResNet under SAM wrappers' rule, a ViT and a GPT under every method."""

from copy import deepcopy

import pytest
import torch
from dense_reference import flat, relative_error
from test_own_loops import PENALTIES, Reference, grads
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from nme.methods import GaussNewtonTrace, Sam

RHO = 0.05


class Block(nn.Module):
    """A residual block with batch norm of PyTorch's own."""

    def __init__(self, channels):
        super().__init__()
        self.first, self.second = (nn.Conv2d(channels, channels, 3, padding=1, bias=False) for _ in range(2))
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for _ in range(2))

    def forward(self, x):
        h = self.norms[0](self.first(x)).relu()
        return (x + self.norms[1](self.second(h))).relu()


def resnet():
    head = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 3)]
    return nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), Block(6), Block(6), *head)


def wrapper_rule(model, loss, batch, optimizer, rho):
    """The two steps of the SAM optimizers (davda54/sam, pytorch_optimizer), whose second pass is the user's closure.

    The user freezes the running statistics in the second pass; neither wrapper does.
    """
    x, y = batch
    optimizer.zero_grad()
    loss(model(x), y).backward()
    parameters = list(model.parameters())
    size = torch.stack([p.grad.norm() for p in parameters]).norm() + 1e-12
    moves = [p.grad * (rho / size) for p in parameters]
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for p, move in zip(parameters, moves, strict=True):
            p.add_(move)
    optimizer.zero_grad()
    momenta = [m.momentum for m in norms]
    for m in norms:
        m.momentum = 0
    loss(model(x), y).backward()
    for m, momentum in zip(norms, momenta, strict=True):
        m.momentum = momentum
        m.num_batches_tracked -= 1
    with torch.no_grad():
        for p, move in zip(parameters, moves, strict=True):
            p.sub_(move)
    optimizer.step()


def test_200_steps_of_sam_are_those_of_the_wrappers():
    """In float64: both take the same function's gradients, so they part only by rounding."""
    torch.manual_seed(0)
    ours = resnet().double()
    theirs = deepcopy(ours)
    steps, loss, start = [], nn.CrossEntropyLoss(), flat(ours.parameters())
    options = {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}
    optimizers = [torch.optim.SGD(m.parameters(), **options) for m in (ours, theirs)]
    sam = Sam(RHO)
    stream = torch.Generator().manual_seed(0)
    for _ in range(200):
        y = torch.randint(3, (8,), generator=stream)
        x = torch.randn(8, 1, 5, 5, generator=stream, dtype=torch.float64) + y[:, None, None, None]
        optimizers[0].zero_grad()
        steps.append(sam.backward(ours, loss, (x, y)).loss.item())
        optimizers[0].step()
        wrapper_rule(theirs, loss, (x, y), optimizers[1], RHO)
    assert relative_error(flat(ours.parameters()), flat(theirs.parameters())) < 1e-6
    for found, expected in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert sum(steps[-20:]) < sum(steps[:20]) / 2
    assert relative_error(flat(ours.parameters()), start) > 0.1


class Gpt(nn.Module):
    """Two layers of causal attention, with fused attention and a head tied to the embedding."""

    def __init__(self, tokens=7, width=8, length=5):
        super().__init__()
        self.embedding, self.position = nn.Embedding(tokens, width), nn.Embedding(length, width)
        self.attend = nn.ModuleList(nn.Linear(width, 3 * width) for _ in range(2))
        self.out = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.up, self.down = (nn.ModuleList(nn.Linear(a, b) for _ in range(2)) for a, b in ((width, 16), (16, width)))
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(5))
        self.head = nn.Linear(width, tokens, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        h = self.embedding(x) + self.position.weight
        for i in range(2):
            parts = self.attend[i](self.norms[2 * i](h)).chunk(3, -1)
            q, k, v = (t.unflatten(-1, (2, 4)).transpose(1, 2) for t in parts)
            mixed = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            h = h + self.out[i](mixed.transpose(1, 2).flatten(2))
            h = h + self.down[i](functional.gelu(self.up[i](self.norms[2 * i + 1](h))))
        return self.head(self.norms[4](h)).flatten(0, 1)


def tokens(size=4):
    stream = torch.Generator().manual_seed(3)
    x = torch.randint(7, (size, 5), generator=stream)
    y = x.roll(-1, 1)
    y[:, -1] = -100
    return x, y.flatten()


def vit():
    models = pytest.importorskip("torchvision.models")
    sizes = {"image_size": 8, "patch_size": 4, "num_layers": 2, "num_heads": 2, "hidden_dim": 8, "mlp_dim": 16}
    model = models.VisionTransformer(**sizes, num_classes=3)
    nn.init.normal_(model.heads.head.weight, std=0.3)  # zeros as initialised
    return model


def images(size=4):
    stream = torch.Generator().manual_seed(3)
    return torch.randn(size, 3, 8, 8, generator=stream), torch.randint(3, (size,), generator=stream)


NETWORKS = {"gpt": (Gpt, tokens), "vit": (vit, images)}


def reference(model, batch, kind, strength, seed):
    """The direction in float64; the drawn labels of tokens take flat logits (B·T, C)."""
    exact = deepcopy(model).double()
    x, y = batch
    x = x.double() if x.is_floating_point() else x
    if kind is not GaussNewtonTrace:
        return Reference(exact, nn.CrossEntropyLoss(), [(x, y)]).direction(kind, strength, seed)
    plain = Reference(exact, nn.CrossEntropyLoss(), [(x, y)])
    p = exact(x).softmax(1).cumsum(1)
    u = torch.rand(len(p), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    labels = torch.where(y == -100, -100, (p <= u[:, None] * p[:, -1:]).sum(1))
    drawn = Reference(exact, nn.CrossEntropyLoss(), [(x, labels)])
    penalty = drawn.product(drawn.gradient(drawn.theta))
    return plain.gradient(plain.theta) + strength * int((y != -100).sum()) * penalty


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("kind", PENALTIES)
def test_transformers_train_with_the_right_grad(kind, network):
    make, batch_of = NETWORKS[network]
    torch.manual_seed(0)
    model, batch = make(), batch_of()
    method = kind(0.02 if kind.symbol == "ρ" else 1e-4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for step in range(20):
        optimizer.zero_grad()
        before = deepcopy(model) if step in (0, 19) else None
        method.generator.manual_seed(step)
        losses.append(method.backward(model, nn.CrossEntropyLoss(), batch).loss.item())
        if before is not None:
            with sdpa_kernel(SDPBackend.MATH):  # the reference differentiates forward
                expected = reference(before, batch, kind, method.strength, step)
            assert relative_error(grads(model).double(), expected) < 2e-5
        optimizer.step()
    assert losses[-1] < losses[0]
