"""Forms of data, batches and losses: right, by dense matrices of plain autograd in float64, or refused."""

from collections import UserDict, namedtuple
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from small_models import Of, normal
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, Dataset

from nme.curvature import (
    NME,
    AnyLoss,
    Curvature,
    CurvatureRecorder,
    GaussNewton,
    Hessian,
    diagonal,
    extreme_eigenpairs,
    frobenius_norm,
    frobenius_norms,
    hutch_plus_plus,
    lanczos,
    nme_block_norms,
    spectral_density,
    trace,
    traces,
)
from nme.errors import NmeError
from nme.methods import GaussNewtonTraceByProbes, GradientPenalty, GradientPenaltyWithoutNme

B, C = 6, 3
CE, MSE = nn.CrossEntropyLoss(), nn.MSELoss()


X, Y, T = normal(B, 5), torch.tensor([0, 2, 1, 1, 0, 2]), normal(B, C, seed=3)
IGNORED = torch.full((2,), -100)
BINARY = (normal(B, 1, seed=4) > 0).double()
WEIGHT = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)
SEQUENCES = normal(B, 4, 2, seed=5)
PACKED = pack_padded_sequence(SEQUENCES, torch.tensor([4, 4, 3, 3, 2, 1]), batch_first=True)
MASK = torch.tril(torch.ones(B, B, dtype=torch.float64))[:, :5]
Fields = namedtuple("Fields", "x y")


class Attributes(dict):
    """A dict with attributes, as many libraries' batches."""

    __getattr__ = dict.__getitem__


class Encoding(UserDict):
    """No dict, but a mapping with attributes, as tokenizers' batches."""

    @property
    def inputs(self):
        return self.data["x"]


class Views(nn.Module):
    """Takes a list of views, and an optional scale."""

    def __init__(self):
        super().__init__()
        self.net = mlp()

    def forward(self, views, scale=None):
        z = sum(self.net(view) for view in views)
        return z if scale is None else z * scale


class Focal(nn.CrossEntropyLoss):
    """A loss per example of its own, and its mean."""

    def __init__(self):
        super().__init__(reduction="none")

    def forward(self, z, y):
        ce = super().forward(z, y)
        return ((1 - (-ce).exp()) ** 2 * ce).mean()


class Own(nn.CrossEntropyLoss):
    """A subclass, which may compute anything."""


class Items(Dataset):
    """Examples of a tuple of two inputs, of which DataLoader makes a list."""

    def __len__(self):
        return B

    def __getitem__(self, index):
        return (X[index], X[index] ** 2), Y[index]


def mlp(*first, outputs=C, middle=None):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        norm = [] if middle is None else [middle]
        return nn.Sequential(*first, nn.Linear(5, 4), *norm, nn.GELU(), nn.Linear(4, outputs)).double()


def log_mlp():
    return nn.Sequential(*mlp(), nn.LogSoftmax(1))


def sequences():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        rnn, head = nn.RNN(2, 3, batch_first=True), nn.Linear(3, C)
    return Of(lambda m, packed: m.head(m.rnn(packed)[1][-1]), rnn=rnn, head=head).double()


def summed(z, y):
    return functional.cross_entropy(z, y, reduction="sum")


def info_nce(z, y):
    z = functional.normalize(z, dim=1)
    return functional.cross_entropy(z @ z.T * 2, y.roll(1) % len(z))


def own_mean(z, y):
    return (z.exp() - functional.one_hot(y, C)).square().mean()


def by_key(model, batch):
    return model(batch["x"]), batch["y"]


class Case(NamedTuple):
    data: Any
    whole: Callable[[nn.Module], tuple[torch.Tensor, Callable]] = lambda m: (m(X), lambda z: CE(z, Y))
    loss: Any = CE
    model: Callable[[], nn.Module] = mlp
    options: dict = {}  # noqa: RUF012


def first(count, loss=CE):
    return lambda m: (m(X[:count]), lambda z: loss(z, Y[:count]))


def on_all(loss, target):
    return lambda m: (m(X), lambda z: loss(z, target))


RIGHT = {
    # ------------------------------------------------------------ batches without examples that count
    "ignored last": Case([(X[:4], Y[:4]), (X[4:], IGNORED)], first(4)),
    "ignored first": Case([(X[4:], IGNORED), (X[:4], Y[:4])], first(4)),
    "ignored last, sum": Case(
        [(X[:4], Y[:4]), (X[4:], IGNORED)], first(4, summed), nn.CrossEntropyLoss(reduction="sum")
    ),
    "ignored micro-batches": Case((X, torch.cat([Y[:2], IGNORED, IGNORED])), first(2), options={"micro_batch": 2}),
    "weight zero": Case(
        [(X[:4], Y[:4]), (X[4:], torch.zeros(2, dtype=torch.long))],
        first(4, nn.CrossEntropyLoss(WEIGHT)),
        nn.CrossEntropyLoss(WEIGHT),
    ),
    "empty last": Case([(X, Y), (X[:0], Y[:0])]),
    "empty last, forward": Case([{"x": X, "y": Y}, {"x": X[:0], "y": Y[:0]}], options={"forward": by_key}),
    "empty last, any loss": Case(
        [{"x": X, "y": Y}, {"x": X[:0], "y": Y[:0]}], on_all(own_mean, Y), own_mean, options={"forward": by_key}
    ),
    # ------------------------------------------------------------ losses
    "own mean": Case([(X[:1], Y[:1]), (X[1:], Y[1:])], on_all(own_mean, Y), own_mean),
    "own sum": Case([(X[:1], Y[:1]), (X[1:], Y[1:])], on_all(summed, Y), AnyLoss(summed, "sum")),
    "sum, one batch": Case([(X, Y)], on_all(summed, Y), summed),
    "info-NCE, one batch": Case((X, Y), on_all(info_nce, Y), info_nce),
    "info-NCE, one batch of a loader": Case(DataLoader(list(zip(X, Y, strict=True)), B), on_all(info_nce, Y), info_nce),
    "batchmean": Case(
        [(X[:4], T[:4].softmax(1)), (X[4:], T[4:].softmax(1))],
        lambda m: (m(X), lambda z: functional.kl_div(z, T.softmax(1), reduction="batchmean")),
        nn.KLDivLoss(reduction="batchmean"),
        log_mlp,
    ),
    "log-probabilities": Case(
        [(X[:4], Y[:4]), (X[4:], Y[4:])], lambda m: (m(X), lambda z: functional.nll_loss(z, Y)), nn.NLLLoss(), log_mlp
    ),
    "focal of reduction none": Case([(X[:4], Y[:4]), (X[4:], Y[4:])], on_all(Focal(), Y), Focal()),
    "weight of a function": Case(
        (X, T),
        lambda m: (m(X), lambda z: (T.exp() * (z - T) ** 2).sum() / T.exp().sum()),
        partial(functional.mse_loss, weight=T.exp()),
    ),
    "target of two parts": Case(
        [(X[:4], Fields(Y[:4], T[:4, 0])), (X[4:], Fields(Y[4:], T[4:, 0]))],
        lambda m: (m(X), lambda z: (functional.cross_entropy(z, Y, reduction="none") * T[:, 0].exp()).mean()),
        lambda z, t: (functional.cross_entropy(z, t.x, reduction="none") * t.y.exp()).mean(),
    ),
    "weights per example": Case(
        (X, BINARY),
        on_all(nn.BCEWithLogitsLoss(weight=BINARY + 0.5), BINARY),
        nn.BCEWithLogitsLoss(weight=BINARY + 0.5),
        partial(mlp, outputs=1),
    ),
    "compiled loss": Case(
        (X, Y), lambda m: (m(X), lambda z: own_mean(z, Y)), torch.compile(own_mean, backend="aot_eager")
    ),
    "compiled module": Case((X, Y), loss=torch.compile(nn.CrossEntropyLoss(), backend="aot_eager")),
    # ------------------------------------------------------------ forms of data
    "two tensors": Case(
        [X[:2], X[2:]], on_all(MSE, X), MSE, partial(mlp, outputs=5), {"forward": lambda m, b: (m(b), b)}
    ),
    "a tuple of three": Case((X, Y, T), options={"forward": lambda m, b: (m(b[0]), b[1])}),
    "named tuple": Case([Fields(X, Y)], options={"forward": lambda m, b: (m(b.x), b.y)}),
    "one named tuple": Case(Fields(X, Y), options={"forward": lambda m, b: (m(b.x), b.y)}),
    "dict with attributes": Case([Attributes(x=X, y=Y)], options={"forward": lambda m, b: (m(b.x), b.y)}),
    "encoding": Case([Encoding(x=X, y=Y)], options={"forward": lambda m, b: (m(b.inputs), b["y"])}),
    "arrays in a dict": Case({"x": X.numpy(), "y": Y.numpy()}, options={"forward": by_key}),
    "big-endian": Case((X.numpy().astype(">f8"), Y.numpy().astype(">i2"))),
    "packed": Case([(PACKED, Y)], lambda m: (m(PACKED), lambda z: CE(z, Y)), CE, sequences),
    "packed, forward": Case(
        [(PACKED, Y)],
        lambda m: (m(PACKED), lambda z: CE(z, Y)),
        CE,
        sequences,
        {"forward": lambda m, b: (m(b[0]), b[1])},
    ),
    "list of arguments": Case(
        DataLoader(Items(), 4),
        lambda m: (m.net(X + X**2), lambda z: CE(z, Y)),
        CE,
        lambda: Of(lambda m, a, b: m.net(a + b), net=mlp()),
    ),
    "list as one argument": Case(
        [([X, X.flip(0)], Y)],
        lambda m: (m([X, X.flip(0)]), lambda z: CE(z, Y)),
        CE,
        Views,
        {"forward": lambda m, b: (m(b[0]), b[1])},
    ),
    "no input, micro-batches": Case(
        [((X, None, torch.tensor(0.7, dtype=torch.float64)), Y)],
        lambda m: (0.7 * m.net(X), lambda z: CE(z, Y)),
        CE,
        lambda: Of(lambda m, x, nothing, scale: m.net(x) * scale, net=mlp()),
        {"micro_batch": 4},
    ),
    # ------------------------------------------------------------ models that write into their inputs
    "in place": Case((X, Y), lambda m: (m(X.clone()), lambda z: CE(z, Y)), CE, partial(mlp, nn.ReLU(inplace=True))),
    "clamped in place": Case(
        [(X[:4], Y[:4]), (X[4:], Y[4:])],
        lambda m: (m.net(X.clamp(-1, 1) / 2), lambda z: CE(z, Y)),
        CE,
        lambda: Of(lambda m, x: m.net(x.clamp_(-1, 1).div_(2)), net=mlp()),
    ),
}


def dense(model, whole):
    """H, G and ∇L by plain autograd, as matrices."""
    named = {name: p.detach() for name, p in model.named_parameters()}
    theta = torch.cat([p.reshape(-1) for p in named.values()])

    def output(theta):
        parts = theta.split([p.numel() for p in named.values()])
        own = {n: part.view_as(p) for part, (n, p) in zip(parts, named.items(), strict=True)}
        return functional_call(Whole(model, whole), {f"model.{name}": p for name, p in own.items()}, ())

    _, loss = whole(model)
    z = output(theta).detach()
    jacobian = torch.autograd.functional.jacobian(output, theta).reshape(z.numel(), -1)
    curved = torch.autograd.functional.hessian(loss, z).reshape(z.numel(), -1)
    hessian = torch.autograd.functional.hessian(lambda t: loss(output(t)), theta)
    gradient = torch.autograd.functional.jacobian(lambda t: loss(output(t)), theta)
    return hessian, jacobian.T @ curved @ jacobian, gradient


class Whole(nn.Module):
    def __init__(self, model, whole):
        super().__init__()
        self.model, self.whole = model, whole

    def forward(self):
        return self.whole(self.model)[0]


def close(actual, expected):
    assert (actual - expected).norm() <= 1e-10 * max(float(expected.norm()), 1e-3), (actual, expected)


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("name", RIGHT)
def test_right(name, checked):
    case = RIGHT[name]
    model, before = case.model(), X.clone()
    hessian, gauss_newton, gradient = dense(model, case.whole)
    curvature = Curvature(model, case.loss, case.data, check=checked, **case.options)
    v = normal(curvature.size, 2, seed=7)
    for _ in range(2):  # the second pass may have kept graphs of the first
        found = curvature.products(v)
        close(found.hessian, hessian @ v)
        close(found.gauss_newton, gauss_newton @ v)
        close(found.nme, (hessian - gauss_newton) @ v)
        close(curvature.gradient(), gradient)
    close(Hessian(curvature) @ v, hessian @ v)
    close(GaussNewton(curvature) @ v, gauss_newton @ v)
    forms = curvature.quadratic_forms(list(v.T))
    close(forms.hessian, torch.einsum("pk,pq,qk->k", v, hessian, v))
    if checked:
        curvature.check()
    assert torch.equal(X, before)


def nll(z, y):
    return functional.nll_loss(z, y)


def tokens(z, y):
    return functional.cross_entropy(z.flatten(0, 1), y.flatten(), ignore_index=0)


def clamped(z, y):
    """A mean over labels that count, which is 0 and not NaN if none does."""
    each = functional.cross_entropy(z, y, reduction="none", ignore_index=-100)
    return each.sum() / (y != -100).sum().clamp(min=1)


def weighted(z, y):
    return functional.cross_entropy(z, y, weight=torch.tensor([1.0, 2.0, 3.0], dtype=z.dtype))


HALVES = [(X[:4], Y[:4]), (X[4:], Y[4:])]
SOME = [(X[:4], Y[:4]), (X[4:], torch.tensor([-100, 1]))]
NO_MEAN = r"the loss is not a mean over examples.*\(give one batch"
NO_SUM = r"the loss is not a sum over examples"
REFUSED = {
    # ------------------------------------------------------------ losses that are no means
    "sum": (Case(HALVES, loss=summed), NO_MEAN),
    "sum of single examples": (Case([(X[:1], Y[:1]), (X[1:2], Y[1:2])], loss=summed), NO_MEAN),
    "no sum": (Case(HALVES, loss=AnyLoss(own_mean, "sum")), NO_SUM),
    "mean by a subclass for sums": (
        Case(HALVES, loss=type("M", (nn.MSELoss,), {"forward": lambda s, z, y: own_mean(z, y)})(reduction="sum")),
        NO_SUM,
    ),
    "ignored, NLLLoss": (Case(SOME, loss=nn.NLLLoss(), model=log_mlp), NO_MEAN),
    "weights, NLLLoss": (Case(HALVES, loss=nn.NLLLoss(weight=WEIGHT + 1), model=log_mlp), NO_MEAN),
    "ignored, function": (Case(SOME, loss=nll, model=log_mlp), NO_MEAN),
    "ignored, subclass": (Case(SOME, loss=Own()), NO_MEAN),
    "ignored in one batch of two": (Case(SOME[::-1], loss=Own()), NO_MEAN),
    "ignored alternately": (Case([(X, torch.where(torch.arange(B) % 2 == 0, Y, -100)), (X, Y)], loss=clamped), NO_MEAN),
    "class weights": (Case(HALVES, loss=weighted), NO_MEAN),
    "tokens": (
        Case(
            [(normal(2, 4, 5), torch.tensor([[0, 0, 0, 0], [1, 2, 0, 1]])), (normal(2, 4, 5), torch.ones(2, 4).long())],
            loss=tokens,
        ),
        NO_MEAN,
    ),
    "info-NCE": (Case(HALVES, loss=info_nce), NO_MEAN),
    "root": (Case([(X, T), (X, T)], loss=lambda z, y: (z - y).square().mean().sqrt()), NO_MEAN),
    "the model's own loss": (
        Case(
            [{"x": x, "y": y} for x, y in HALVES],
            loss=lambda z, y: z,
            options={"forward": lambda m, b: (CE(m(b["x"]), b["y"]), None)},
        ),
        "the model's output is one number",
    ),
    "time first": (
        Case(
            [(normal(4, 5, 5), torch.ones(4, 5).long()), (normal(4, 1, 5), torch.ones(4, 1).long())],
            loss=lambda z, y: functional.cross_entropy(z.flatten(0, 1), y.flatten()),
        ),
        r"shapes \(5, 3\) and \(1, 3\)",
    ),
    # ------------------------------------------------------------ losses that fail
    "label out of range": (Case((X, Y + 1), loss=lambda z, y: CE(z, y)), "the loss fails: Target 3 is out of bounds"),
    "shapes": (Case((X, Y), loss=lambda z, y: z @ y), "the loss fails: "),
    "arguments": (Case((X, Y), loss=lambda z: z.mean()), "the loss fails: .*takes 1 positional argument"),
    "unknown keyword": (
        Case((X, Y), loss=partial(functional.cross_entropy, foo=1)),
        "the loss fails: .*unexpected keyword.*foo",
    ),
    "in place": (Case((X, T), loss=lambda z, y: (z - y.mul_(0.9)).square().mean()), "the loss writes into the target"),
    "PyTorch's none": (Case((X, T), loss=nn.HuberLoss(reduction="none")), "reduction 'none'"),
    "wide weight": (
        Case((X, T.sigmoid()), loss=nn.BCEWithLogitsLoss(weight=torch.ones(2, B, C))),
        r"the loss has weight of shape \(2, 6, 3\) \(expected: broadcast to \(6, 3\)",
    ),
    "wrong pos_weight": (
        Case((X, BINARY), loss=nn.BCEWithLogitsLoss(pos_weight=torch.ones(B)), model=partial(mlp, outputs=1)),
        r"the loss has pos_weight of shape \(6,\)",
    ),
    **{
        f"weight per example, {size} at once": (
            Case(
                (X, BINARY),
                loss=nn.BCEWithLogitsLoss(weight=BINARY + 0.5),
                model=partial(mlp, outputs=1),
                options={"micro_batch": size},
            ),
            r"the loss has weight of shape \(6, 1\)",
        )
        for size in (1, 4)
    },
    # ------------------------------------------------------------ targets
    "target of the model": (
        Case([(X, X.flip(0))], loss=MSE, options={"forward": lambda m, b: (m(b[0]), m(b[1]))}),
        r"the target requires a gradient \(expected a constant: detach it",
    ),
    "a part of the target of the model": (
        Case(
            [(X, X.flip(0))],
            loss=lambda z, t: (z - t["other"]).square().mean(),
            options={"forward": lambda m, b: (m(b[0]), {"other": m(b[1])})},
        ),
        "the target requires a gradient",
    ),
    # ------------------------------------------------------------ micro-batches
    "statistics of the batch": (
        Case(
            (X, Y),
            model=partial(mlp, middle=nn.BatchNorm1d(4, track_running_stats=False)),
            options={"micro_batch": 3},
        ),
        "layer '1' has no running statistics",
    ),
    "shared input": (
        Case(
            [((X, MASK[:4]), Y)],
            model=lambda: Of(lambda m, x, mask: m.net(x @ (mask.T @ mask)), net=mlp()),
            options={"micro_batch": 2},
        ),
        r"an input has shape \(4, 5\), which micro_batch cannot cut into 6 examples",
    ),
    "packed": (
        Case([(PACKED, Y)], model=sequences, options={"micro_batch": 2}),
        "which micro_batch cannot cut into 6 examples",
    ),
    "half examples": (
        Case((X, Y), options={"micro_batch": 2.5}),
        r"micro_batch is 2\.5 \(allowed: 1 or more, an integer",
    ),
    # ------------------------------------------------------------ data
    "list as one argument": (
        Case([([X, X.flip(0)], Y)], model=Views),
        r"inputs are a list of 2: one argument of the model, or several\?",
    ),
    "tuple of batches, or one": (
        Case(((X, Y), (X, Y)), options={"forward": lambda m, b: (m(b[0]), b[1])}),
        "give a list of batches",
    ),
    "text": (Case((X, np.array(["a", "b"] * 3))), r"the target is ndarray \(allowed: a tensor\)"),
    "wide numbers": (Case((X.numpy().astype(np.longdouble), Y)), "an array has dtype float128|longdouble"),
    "sparse gradient": (
        Case(
            (Y[:, None], Y),
            model=lambda: Of(
                lambda m, t: m.net(functional.embedding(t, m.table.weight, sparse=True).mean(1)),
                table=nn.Embedding(3, 5, dtype=torch.float64),
                net=mlp(),
            ),
        ),
        "a parameter has a sparse gradient",
    ),
}


@pytest.mark.parametrize("checked", [True, False])
@pytest.mark.parametrize("name", REFUSED)
def test_refused(name, checked):
    case, message = REFUSED[name]
    with pytest.raises(NmeError, match=message) as raised:
        Curvature(case.model(), case.loss, case.data, check=checked, **case.options).gradient()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("size", [1, 3])
def test_examples_that_depend_on_each_other_have_no_micro_batches(size):
    def normalised(m, x):
        return m.net(functional.batch_norm(x, None, None, training=True))

    def masked(m, x, mask):
        return m.net(x * mask.mean(0))  # all examples share the mask, which has as many rows as there are examples

    square = normal(B, 5, seed=6)
    for forward, inputs in ((normalised, X), (masked, (X, square))):
        model = Of(forward, net=mlp())
        with pytest.raises(NmeError, match=r"which examples are computed together|more than 1 value per channel"):
            Curvature(model, CE, [(inputs, Y)], micro_batch=size).gradient()
    squeezed = Of(lambda m, x: m.net(x).squeeze(), net=mlp(outputs=1))
    curvature = Curvature(squeezed, nn.BCEWithLogitsLoss(), (X, BINARY[:, 0]), micro_batch=4)
    close(curvature.gradient(), Curvature(squeezed, nn.BCEWithLogitsLoss(), (X, BINARY[:, 0])).gradient())


POSITIVE = T.abs() + 0.1
SIGNS = torch.where(T > 0, 1.0, -1.0).double()
MEANS = {
    "huber": (nn.HuberLoss(delta=0.4), T),
    "absolute": (nn.L1Loss(), T),
    "poisson": (nn.PoissonNLLLoss(), POSITIVE),
    "gaussian": (lambda z, y: functional.gaussian_nll_loss(z, y, functional.softplus(z)), T),
    "labels": (nn.MultiLabelSoftMarginLoss(), (T > 0).double()),
    "signs": (nn.SoftMarginLoss(), SIGNS),
    "hinges": (nn.HingeEmbeddingLoss(), SIGNS),
    "divergence": (lambda z, y: functional.kl_div(z.log_softmax(1), y, reduction="batchmean"), T.softmax(1)),
    "probabilities": (lambda z, y: functional.binary_cross_entropy(z.sigmoid(), y), T.sigmoid()),
    "similar": (lambda z, y: (1 - functional.cosine_similarity(z, y)).mean(), T),
    "no target": (lambda z, y: z.square().logsumexp(1).mean(), None),
    "mixed": (lambda z, t: 0.3 * CE(z, t[0]) + 0.7 * CE(z, t[1]), (Y, Y.flip(0))),
}


def part_of(target, part):
    return tuple(t[part] for t in target) if isinstance(target, tuple) else None if target is None else target[part]


@pytest.mark.parametrize("name", MEANS)
def test_means_over_examples_combine(name):
    loss, target = MEANS[name]
    data = [(X[part], part_of(target, part)) for part in (slice(1), slice(1, 4), slice(4, None))]
    model = mlp()
    plain = torch.autograd.grad(loss(model(X), target), list(model.parameters()))
    close(Curvature(model, loss, data).gradient(), torch.cat([g.flatten() for g in plain]))


def test_means_over_examples_combine_near_interpolation_in_float32():
    y = torch.tensor([0, 1, 2, 0, 1, 2, 0])
    model = Of(lambda m, y: m.scale * functional.one_hot(y, 3), scale=nn.Parameter(torch.tensor([18.0, 17.0, 19.0])))
    for loss in (Focal(), lambda z, y: (1 - z.softmax(1).gather(1, y[:, None])).mean()):
        curvature = Curvature(model, loss, [(y, y), (y[1:], y[1:])], check=False)
        assert torch.isfinite(curvature.gradient()).all()


def test_logits_of_an_array_and_of_a_list():
    curvature = Curvature(mlp(), CE, (X, Y))
    torch.testing.assert_close(curvature.logits(X.numpy()), mlp()(X), rtol=1e-12, atol=0)
    with pytest.raises(NmeError, match="inputs are a list of 2"):
        Curvature(Views(), CE, (X, Y), check=False).logits([X, X])


def test_losses_that_do_not_combine_are_seen_in_the_first_pass_without_passes_of_the_model():
    calls, losses = [], []

    def loss(z, y):
        losses.append(len(z))
        return own_mean(z, y)

    model = mlp()
    model.register_forward_hook(lambda m, i, z: calls.append(len(z)))
    curvature = Curvature(model, loss, HALVES, check=False)
    curvature.gradient()
    assert calls == [4, 2]
    seen = len(losses)
    curvature.gradient()
    assert calls == [4, 2, 4, 2]
    assert len(losses) - seen < seen


def test_a_recorder_with_an_ignored_last_batch():
    found = CurvatureRecorder(mlp(), CE, [(X[:4], Y[:4]), (X[4:], IGNORED)], probes=2).record(0)
    alone = CurvatureRecorder(mlp(), CE, [(X[:4], Y[:4])], probes=2).record(0)
    assert found == pytest.approx(alone, rel=1e-12, nan_ok=True)


# ------------------------------------------------------------------ arguments


def stream():
    return torch.Generator().manual_seed(0)


CURVATURE = Curvature(mlp(), CE, (X, Y), check=False)
H = Hessian(CURVATURE)
MISPLACED = {
    "options of a Curvature": (lambda: Hessian(CURVATURE, parameters="2.*"), "a Curvature takes no further arguments"),
    "loss of a Curvature": (lambda: NME(CURVATURE, CE), "a Curvature takes no further arguments"),
    "short start": (lambda: lanczos(H, 3, torch.ones(1)), r"start vector of Lanczos has shape \(1,\) \(allowed: .*39"),
    "column": (lambda: lanczos(H, 3, torch.ones(39, 1)), r"start vector of Lanczos has shape \(39, 1\)"),
    "array": (lambda: lanczos(H, 3, np.ones(39)), "start vector of Lanczos has type ndarray"),
    "product of an array": (lambda: H @ np.ones(39), r"the vector is ndarray \(allowed: a tensor\)"),
    "no columns": (lambda: H @ torch.ones(39, 0), r"the vector has shape \(39, 0\)"),
    "seed": (lambda: traces(CURVATURE, 2, 0), r"generator is not a torch\.Generator"),
    "seed of an operator": (lambda: diagonal(H, 2, 0), r"generator is not a torch\.Generator"),
    **{
        f"operator, {function.__name__}": (
            lambda function=function: function(H, 2, stream()),
            r"curvature is Hessian \(allowed: a Curvature",
        )
        for function in (traces, frobenius_norms)
    },
    "operator, blocks": (lambda: nme_block_norms(H, {}, 2, stream()), "curvature is Hessian"),
    **{
        f"curvature, {function.__name__}": (
            lambda function=function: function(CURVATURE, 3, stream()),
            "a Curvature has three operators",
        )
        for function in (trace, hutch_plus_plus, frobenius_norm, diagonal)
    },
    "curvature, lanczos": (lambda: lanczos(CURVATURE, 3, torch.ones(39)), "a Curvature has three operators"),
    "curvature, pairs": (lambda: extreme_eigenpairs(CURVATURE, 1, 1, stream()), "a Curvature has three operators"),
    "curvature, density": (lambda: spectral_density(CURVATURE, 1, 3, stream()), "a Curvature has three operators"),
}


@pytest.mark.parametrize("name", MISPLACED)
def test_misplaced_arguments(name):
    call, message = MISPLACED[name]
    with pytest.raises(NmeError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


# ------------------------------------------------------------------ the same rules in training


class TestTraining:
    def direction(self, loss, batches, method=GradientPenalty, **options):
        model = mlp()
        method(0.1).accumulate(model, loss, batches, **options)
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    def test_own_mean_over_parts(self):
        torch.testing.assert_close(
            self.direction(own_mean, HALVES), self.direction(own_mean, [(X, Y)]), rtol=1e-10, atol=0
        )

    @pytest.mark.parametrize("loss", [summed, info_nce, weighted])
    def test_losses_that_do_not_combine(self, loss):
        with pytest.raises(NmeError, match=NO_MEAN):
            self.direction(loss, HALVES)
        assert torch.isfinite(self.direction(loss, [(X, Y)])).all()

    def test_a_loss_that_fails(self):
        with pytest.raises(NmeError, match="the loss fails"):
            self.direction(lambda z, y: z @ y, [(X, Y)])

    def test_a_target_of_the_model(self):
        def forward(model, batch):
            return model(batch[0]), model(batch[0].flip(0))

        for method in (GradientPenaltyWithoutNme, GaussNewtonTraceByProbes):
            with pytest.raises(NmeError, match="the target depends on parameters"):
                self.direction(MSE, [(X, None)], method, forward=forward)


def test_a_batch_of_a_loader_is_not_taken_apart():
    """A loader gives lists: with forward= this one might be two batches, with the same shapes and another gradient."""
    with pytest.raises(NmeError, match="list of tensors of one length: one batch or several"):
        Curvature(mlp(), nn.MSELoss(), [X, X], forward=lambda m, b: (m(b[0]), b[1]))
