"""Models, losses and data of ordinary users: H, G, N right to 1e-9 in float64, or an ``NmeError`` of a known text.

Each case is compared with plain autograd on the model's own parameters and with a directional finite difference.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from small_models import Of, labels, normal
from torch import nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset
from torchvision.models import VisionTransformer

from nme.curvature import Curvature, GaussNewton, Hessian
from nme.derivatives.running_statistics import frozen_statistics
from nme.errors import NmeError

B, C = 6, 3


def with_ignored(*shape):
    found = labels(*shape)
    found.view(-1)[::4] = -100
    return found


X, Y, IMAGES = normal(B, 5), labels(B), normal(B, 2, 6, 6)


# ------------------------------------------------------------------ models


class Block(nn.Module):
    """A block of a transformer: causal or not, by PyTorch's fused attention."""

    def __init__(self, width, causal):
        super().__init__()
        self.norm1, self.norm2, self.causal = nn.LayerNorm(width), nn.LayerNorm(width), causal
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x):
        b, t, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(b, t, 3, 2, width // 2).permute(2, 0, 3, 1, 4)
        h = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(h.transpose(1, 2).reshape(b, t, width))
        return x + self.mlp(self.norm2(x))


class Gpt(nn.Module):
    """Tokens to logits of the next token (B, T, V), with the head tied to the embedding."""

    def __init__(self, vocabulary=7, width=4, length=5):
        super().__init__()
        self.tokens, self.places = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        self.blocks = nn.ModuleList([Block(width, True) for _ in range(2)])
        self.drop = nn.Dropout(0.1)
        self.head = nn.Linear(width, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, tokens):
        x = self.drop(self.tokens(tokens) + self.places(torch.arange(tokens.shape[1], device=tokens.device)))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class Output(dict):
    """As Hugging Face's outputs: a dict with attributes."""

    __getattr__ = dict.__getitem__


class Bert(nn.Module):
    """Tokens and a mask to class logits, by PyTorch's TransformerEncoder."""

    def __init__(self, vocabulary=7, width=4):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, 2, 6, activation="gelu", batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 1), nn.Linear(width, C)

    def forward(self, input_ids, attention_mask):
        h = self.encoder(self.tokens(input_ids), src_key_padding_mask=attention_mask == 0)
        return Output(logits=self.head(h[:, 0]), hidden=h)


def mlp(activation=nn.GELU, *, norm=None):
    middle = [norm] if norm is not None else []
    return nn.Sequential(nn.Linear(5, 4), *middle, activation(), nn.Linear(4, C))


def cnn(norm=nn.BatchNorm2d):
    return nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        norm(3),
        nn.SiLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular", groups=1),
        nn.ELU(inplace=True),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, C),
    )


def recomputed():
    first = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Tanh())
    model = Of(lambda m, x: m.head(checkpoint(m.first, x, use_reentrant=False)), first=first, head=nn.Linear(4, C))
    model.plainly = lambda m, x: m.head(m.first(x))
    return model


def recurrent(kind):
    return Of(lambda m, x: m.head(m.rnn(x)[0][:, -1]), rnn=kind(2, 3, batch_first=True), head=nn.Linear(3, C))


def tied():
    return Of(lambda m, x: functional.linear(m.act(m.a(x)), m.a.weight.T), a=nn.Linear(5, 4), act=nn.Softplus())


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "in-place": lambda: mlp(lambda: nn.Hardswish(inplace=True)),
    "reused layer": lambda: Of(lambda m, x: m.b(m.s(m.a(m.s(x)))), a=nn.Linear(5, 5), s=nn.SELU(), b=nn.Linear(5, C)),
    "layer norm": lambda: mlp(norm=nn.LayerNorm(4, elementwise_affine=False)),
    "batch norm 1d": lambda: mlp(norm=nn.BatchNorm1d(4)),
    "no running statistics": lambda: mlp(norm=nn.BatchNorm1d(4, track_running_stats=False)),
    "dropout": lambda: nn.Sequential(nn.Dropout(0.5), mlp()),
    "cnn": cnn,
    "group norm": lambda: cnn(lambda n: nn.GroupNorm(1, n)),
    "instance norm": lambda: cnn(lambda n: nn.InstanceNorm2d(n, affine=True, track_running_stats=True)),
    "transposed": lambda: nn.Sequential(nn.ConvTranspose2d(2, 2, 3), nn.Mish(), nn.Conv2d(2, C, 1)),
    "checkpoint": recomputed,
    "lstm": lambda: recurrent(nn.LSTM),
    "gru": lambda: recurrent(nn.GRU),
    "spectral norm": lambda: nn.Sequential(parametrizations.spectral_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, C)),
    "orthogonal": lambda: nn.Sequential(
        parametrizations.orthogonal(nn.Linear(5, 4), orthogonal_map="cayley"), nn.Tanh(), nn.Linear(4, C)
    ),
    "tied": tied,
    "data parallel": lambda: nn.DataParallel(mlp()),
    "gpt": Gpt,
    "bert": Bert,
    "vit": lambda: VisionTransformer(
        image_size=6, patch_size=3, num_layers=1, num_heads=2, hidden_dim=4, mlp_dim=6, num_classes=C
    ),
    "bilinear": lambda: Of(lambda m, a, b: m.f(torch.tanh(a), b), f=nn.Bilinear(5, 5, C)),
    "unused": lambda: Of(lambda m, x: m.used(x), used=mlp(), unused=nn.Linear(2, 2)),
    "buffer": lambda: Counting(),
    "dict of outputs": lambda: Of(lambda m, x: {"logits": m.f(x), "other": x}, f=mlp()),
    "tuple of outputs": lambda: Of(lambda m, x: (m.f(x), x), f=mlp()),
    "one output": lambda: nn.Sequential(nn.Linear(5, 3), nn.Tanh(), nn.Linear(3, 1)),
    "pixels": lambda: nn.Sequential(nn.Conv2d(2, 3, 3), nn.Softplus(), nn.Conv2d(3, C, 1)),
    "bags": lambda: nn.Sequential(nn.EmbeddingBag(7, 4, sparse=True, mode="mean"), nn.Tanh(), nn.Linear(4, C)),
    "sparse embedding": lambda: nn.Sequential(
        nn.Embedding(7, 4, sparse=True), nn.Flatten(), nn.Tanh(), nn.Linear(12, C)
    ),
}


class Counting(nn.Module):
    """A buffer that every pass in any mode updates, and that the output uses."""

    def __init__(self):
        super().__init__()
        self.f = mlp()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls.add_(1)
        return self.f(x) * self.calls.clone()


class Focal(nn.CrossEntropyLoss):
    def forward(self, z, y):
        ce = functional.cross_entropy(z, y, reduction="none")
        return ((1 - torch.exp(-ce)) ** 2 * ce).mean()


def hinge(z, y):
    return functional.softplus(1 - z.gather(1, y[:, None]) + z).mean()


def tokens_of(model, batch):
    z = model(batch["tokens"])
    return z.flatten(0, 1), batch["next"].flatten()


def with_mask(model, batch):
    return model(input_ids=batch["ids"], attention_mask=batch["mask"]), batch["y"]


class Case(NamedTuple):
    model: str
    loss: Any = nn.CrossEntropyLoss()
    data: Any = (X, Y)
    options: dict = {}  # noqa: RUF012
    error: str = ""  # empty: right


TOKENS = torch.randint(7, (4, 5), generator=torch.Generator().manual_seed(3))
MASK = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])
TEXT = {"tokens": TOKENS, "next": TOKENS.roll(-1, 1)}
PAIRS = [(X[:4], Y[:4]), (X[4:], Y[4:])]
SOFT = normal(B, C, seed=5).softmax(1)
CE, WEIGHTS = nn.CrossEntropyLoss, normal(C, seed=6).exp()
TRAIN = {"batch_norm": "train"}

CASES = {
    **{f"{m}": Case(m) for m in ("mlp", "in-place", "reused layer", "layer norm", "batch norm 1d", "dropout")},
    **{f"{m}, train": Case(m, options=TRAIN) for m in ("mlp", "batch norm 1d", "no running statistics", "dropout")},
    **{m: Case(m) for m in ("checkpoint", "spectral norm", "orthogonal", "data parallel", "unused", "buffer")},
    **{m: Case(m, data=(IMAGES, Y)) for m in ("cnn", "group norm", "instance norm")},
    "no running statistics": Case("no running statistics"),
    "cnn, train": Case("cnn", data=(IMAGES, Y), options=TRAIN),
    "cnn, train, two batches": Case("cnn", data=[(IMAGES[:4], Y[:4]), (IMAGES[4:], Y[4:])], options=TRAIN),
    "checkpoint, train": Case("checkpoint", options=TRAIN),
    "checkpoint, two batches": Case("checkpoint", data=PAIRS),
    "lstm": Case("lstm", data=(normal(B, 4, 2), Y)),
    "gru": Case("gru", data=(normal(B, 4, 2), Y)),
    "tied": Case("tied", nn.MSELoss(), (X, normal(B, 5, seed=4))),
    "one output": Case("one output", nn.BCEWithLogitsLoss(), (X, (normal(B, 1) > 0).double())),
    "one output, pos_weight": Case(
        "one output", nn.BCEWithLogitsLoss(pos_weight=torch.tensor([3.0])), (X, (normal(B, 1) > 0).double())
    ),
    "one output, regression": Case("one output", nn.MSELoss(), (X, normal(B, 1))),
    "one output, huber": Case("one output", nn.SmoothL1Loss(beta=0.3), (X, normal(B, 1))),
    "pixels": Case("pixels", CE(), (IMAGES, with_ignored(B, 4, 4))),
    "pixels, weights": Case("pixels", CE(WEIGHTS, label_smoothing=0.1), (IMAGES, with_ignored(B, 4, 4))),
    "pixels, probabilities": Case("pixels", CE(), (IMAGES, normal(B, C, 4, 4, seed=8).softmax(1))),
    "pixels, regression": Case("transposed", nn.MSELoss(), (IMAGES, normal(B, C, 8, 8, seed=9))),
    "pixels, binary": Case("transposed", nn.BCEWithLogitsLoss(), (IMAGES, normal(B, C, 8, 8, seed=9).sigmoid())),
    "pixels, two batches": Case(
        "pixels", CE(WEIGHTS), [(IMAGES[:2], with_ignored(2, 4, 4)), (IMAGES[2:], labels(4, 4, 4))]
    ),
    "gpt": Case("gpt", data=TEXT, options={"forward": tokens_of}),
    "gpt, ignored": Case(
        "gpt", data=[TEXT, {**TEXT, "next": TOKENS.masked_fill(TOKENS > 3, -100)}], options={"forward": tokens_of}
    ),
    "gpt, label smoothing": Case("gpt", CE(label_smoothing=0.2), TEXT, {"forward": tokens_of}),
    "bert": Case("bert", data={"ids": TOKENS, "mask": MASK, "y": labels(4)}, options={"forward": with_mask}),
    "bert, dict inputs": Case("bert", data=[({"input_ids": TOKENS, "attention_mask": MASK}, labels(4))]),
    "vit": Case("vit", data=(normal(B, 3, 6, 6), Y)),
    "vit, focal": Case("vit", Focal(), (normal(B, 3, 6, 6), Y)),
    "bilinear": Case("bilinear", data=[((X, X.flip(0)), Y)]),
    "bilinear, micro-batches": Case("bilinear", data=[((X, X.flip(0)), Y)], options={"micro_batch": 4}),
    "dict of outputs": Case("dict of outputs"),
    "dict, chosen": Case("dict of outputs", options={"forward": lambda m, b: (m(b[0])["logits"], b[1])}),
    "sparse embedding": Case("sparse embedding", data=(TOKENS[:, :3], labels(4))),
    "bags": Case("bags", data=(TOKENS, labels(4)), error="an operation of the model or loss has no second derivative"),
    "focal": Case("mlp", Focal()),
    "hinge": Case("mlp", hinge),
    "nll": Case("mlp", lambda z, y: functional.nll_loss(z.log_softmax(1), y)),
    "functional": Case("mlp", functional.cross_entropy),
    "sum": Case("mlp", CE(reduction="sum"), PAIRS),
    "any sum": Case("mlp", nn.NLLLoss(reduction="sum"), PAIRS),
    "weights": Case("mlp", CE(WEIGHTS), PAIRS),
    "weights, micro-batches": Case("mlp", CE(WEIGHTS, label_smoothing=0.1), (X, Y), {"micro_batch": 2}),
    "ignored": Case("mlp", CE(), (X, with_ignored(B))),
    "ignored, batches": Case("mlp", CE(), [(X[:2], with_ignored(2)), (X[2:], with_ignored(4))]),
    "ignored class": Case("mlp", CE(ignore_index=1), PAIRS),
    "mixup": Case("mlp", CE(), (X, SOFT)),
    "mixup, smoothing": Case("mlp", CE(WEIGHTS, label_smoothing=0.1), [(X[:4], SOFT[:4]), (X[4:], SOFT[4:])]),
    "one-hot": Case("mlp", CE(), (X, functional.one_hot(Y, C))),
    "one-hot, mse": Case("mlp", nn.MSELoss(), (X, functional.one_hot(Y, C))),
    "uint8": Case("mlp", CE(), (X, Y.to(torch.uint8))),
    "columns": Case("mlp", CE(), (X, Y[:, None])),
    "arrays": Case("mlp", CE(), (X.numpy(), Y.numpy())),
    "loader": Case("mlp", CE(), DataLoader(TensorDataset(X, Y), batch_size=4)),
    "shuffled loader": Case("mlp", CE(), DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True)),
    # ------------------------------------------------------------ refused
    "dataset": Case("mlp", data=TensorDataset(X, Y), error="Dataset of single examples"),
    "inputs alone": Case("mlp", data=X, error="data is Tensor"),
    "triples": Case("mlp", data=[(X, Y, Y)], error=r"batch 0 is a tuple of 3 \(allowed: a pair"),
    "dict without forward": Case("mlp", data=[{"x": X}], error=r"batch 0 is a dict .*forward="),
    "one label for all": Case("mlp", data=(X, Y[:1]), error=r"target has shape \(1,\) \(allowed: \(6,\)"),
    "label too large": Case("mlp", data=(X, Y + 1), error="a label is 3"),
    "float labels": Case("mlp", data=(X, Y.double()), error="dtype torch.float64"),
    "broadcast target": Case("one output", nn.MSELoss(), (X, normal(B)), error=r"target has shape \(6,\)"),
    "all ignored": Case("mlp", data=(X, torch.full((B,), -100)), error="no labels that count"),
    "tuple of outputs": Case("tuple of outputs", error="output is tuple .*forward="),
    "nan": Case("mlp", data=(X.clone().fill_(torch.nan), Y), error="the loss is nan"),
    "tokens with classes last": Case("gpt", data=(TOKENS, TOKENS), error="flatten tokens"),
    "loss that is not a number": Case(
        "mlp", lambda z, y: z.exp(), error=r"the loss returns a tensor of shape \(6, 3\)"
    ),
    "loss without derivative": Case(
        "mlp", lambda z, y: z.detach().sum(), error="does not depend on the model's output"
    ),
    "no second derivative": Case("mlp", nn.MultiMarginLoss(p=2), error="loss cannot be differentiated"),
    "micro-batches of any loss": Case("mlp", Focal(), options={"micro_batch": 2}, error="losses with a closed form"),
    "forward without a pair": Case("mlp", options={"forward": lambda m, b: m(b[0])}, error="forward returns Tensor"),
    "shapes": Case("mlp", data=(X[:, :4], Y), error="forward pass fails: .*cannot be multiplied"),
}


def built(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS[name]()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.2 * torch.randn_like(parameter)
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._NormBase) and module.track_running_stats:
                    module.running_mean.normal_()
                    module.running_var.uniform_(0.5, 2)
    return model.double()


def as_torch(loss, z, y):
    """The user's loss, with targets in the form that PyTorch takes."""
    if isinstance(loss, nn.CrossEntropyLoss | nn.MSELoss) and not y.is_floating_point():
        if isinstance(loss, nn.MSELoss) or y.shape == z.shape:
            y = y.double()
        else:
            y = (y.squeeze(1) if y.dim() == z.dim() and y.shape[1] == 1 else y).long()
    loss = loss.double() if isinstance(loss, nn.Module) else loss
    return loss(z, y)


def plainly(model, case, create_graph=True):
    """Outputs, targets and their weights, and ∇L with its graph, on the model's own parameters."""
    data = case.data
    single = isinstance(data, dict) or (isinstance(data, tuple) and isinstance(data[0], torch.Tensor | np.ndarray))
    batches = [data] if single else list(data)
    model.eval()
    if case.options.get("batch_norm") == "train":
        for module in model.modules():
            module.train(isinstance(module, nn.modules.batchnorm._BatchNorm))
    total, pooled, parts = 0, 0, []
    for batch in batches:
        before = {name: b.clone() for name, b in model.named_buffers()}
        with sdpa_kernel(SDPBackend.MATH), frozen_statistics(model):
            if "forward" in case.options:
                z, y = case.options["forward"](model, batch)
            else:
                x, y = batch
                x, y = (torch.as_tensor(t) if isinstance(t, np.ndarray) else t for t in (x, y))
                z = model(**x) if isinstance(x, dict) else model(*x) if isinstance(x, tuple) else model(x)
        z = z["logits"] if isinstance(z, dict) else z
        for name, buffer in model.named_buffers():
            buffer.data = before[name]
        loss, added = as_torch(case.loss, z, y), getattr(case.loss, "reduction", "mean") == "sum"
        weight = 1.0 if added else weight_of(case.loss, z, y)
        total, pooled = total + weight * loss, pooled + weight
        parts.append((z, y, weight))
    pooled = 1.0 if added else pooled
    return total / pooled, [(z, y, w / pooled) for z, y, w in parts]


def weight_of(loss, z, y):
    if type(loss) is nn.CrossEntropyLoss and not y.is_floating_point() and y.shape != z.shape:
        counted = y.flatten()[y.flatten() != loss.ignore_index].long()
        return float(len(counted) if loss.weight is None else loss.weight.double()[counted].sum())
    return len(z) * (z[0, 0].numel() if z.dim() > 2 else 1)


def flat(tensors):
    return torch.cat([t.reshape(-1) for t in tensors])


def reference(model, case, v):
    """Hv, Gv and the gradient by plain autograd, and Hv by finite differences of it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    parts = [part.view_as(p) for part, p in zip(v.split([p.numel() for p in parameters]), parameters, strict=True)]
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = False
    if hasattr(model, "plainly"):
        model._forward = model.plainly  # without checkpoints, which compute again in whatever mode there is
    loss, outputs = plainly(model, case)
    options = {"allow_unused": True, "materialize_grads": True}
    gradient = torch.autograd.grad(loss, parameters, create_graph=True, **options)
    hv = flat(torch.autograd.grad(flat(gradient) @ v, parameters, **options))
    gv = torch.zeros_like(v)
    loss, outputs = plainly(model, case)
    for z, y, weight in outputs:
        cotangent = torch.zeros_like(z, requires_grad=True)
        pulled = torch.autograd.grad(z, parameters, cotangent, create_graph=True, **options)
        (jv,) = torch.autograd.grad(flat(pulled) @ v, cotangent, retain_graph=True)
        at = z.detach().requires_grad_()
        (r,) = torch.autograd.grad(as_torch(case.loss, at, y), at, create_graph=True)
        (curved,) = torch.autograd.grad(r, at, jv) if r.requires_grad else (torch.zeros_like(z),)
        gv += weight * flat(torch.autograd.grad(z, parameters, curved, **options))
    ends, step = [], 1e-6
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, parts, strict=True):
                p += sign * step * d
        ends.append(flat(torch.autograd.grad(plainly(model, case)[0], parameters, **options)))
        with torch.no_grad():
            for p, d in zip(parameters, parts, strict=True):
                p -= sign * step * d
    return hv, gv, flat(gradient).detach(), (ends[0] - ends[1]) / (2 * step)


@pytest.fixture(autouse=True)
def _no_fused_kernels():
    with torch.backends.mkldnn.flags(enabled=False):
        yield


def close(actual, expected, tolerance):
    assert (actual - expected).norm() <= tolerance * max(expected.norm(), 1e-3), (actual, expected)


@pytest.mark.parametrize("name", CASES)
def test_right_or_refused(name):
    case = CASES[name]
    model = built(case.model)
    before = {n: t.clone() for n, t in model.state_dict().items()}
    loss = case.loss.double() if isinstance(case.loss, nn.Module) else case.loss
    if case.error:
        with pytest.raises(NmeError, match=case.error) as raised:
            Curvature(model, loss, case.data, **case.options).products(
                torch.zeros(sum(p.numel() for p in model.parameters()))
            )
        assert "\n" not in str(raised.value)
        return
    curvature = Curvature(model, loss, case.data, **case.options)
    v = normal(curvature.size, seed=7)
    found = curvature.products(v)
    alone = Hessian(curvature) @ v, GaussNewton(curvature) @ v
    gradient = curvature.gradient()
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    hv, gv, g, difference = reference(model, case, v)
    close(found.hessian, hv, 1e-9)
    close(found.gauss_newton, gv, 1e-9)
    close(found.nme, hv - gv, 1e-9)
    close(alone[0], hv, 1e-9)
    close(alone[1], gv, 1e-9)
    close(gradient, g, 1e-9)
    close(found.hessian, difference, 1e-5)
    curvature.check()


def test_there_are_enough_cases():
    assert len(CASES) >= 60
