"""The methods in anyone's training loop: ``.backward`` against float64 references that know nothing of nme."""

from copy import deepcopy

import pytest
import torch
from dense_reference import BatchStatistics, central_differences, flat, relative_error, signs
from torch import nn
from torch.func import functional_call
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from nme.errors import NmeError
from nme.methods import (
    METHODS,
    GaussNewtonTrace,
    GaussNewtonTraceByProbes,
    GradientPenalty,
    GradientPenaltyWithoutNme,
    HessianTrace,
    Sam,
    Sgd,
    UnnormalisedSam,
    WeightNoise,
)

STRENGTH = 0.2
PENALTIES = [GradientPenalty, GradientPenaltyWithoutNme, Sam, UnnormalisedSam, WeightNoise]
PENALTIES += [HessianTrace, GaussNewtonTrace, GaussNewtonTraceByProbes]


def pseudo_huber(output, target):
    """A convex loss that nme does not know."""
    return ((1 + (output - target).square()).sqrt() - 1).sum(1).mean()


LOSSES = {
    "cross-entropy": nn.CrossEntropyLoss(),
    "ignored": nn.CrossEntropyLoss(),
    "smoothed": nn.CrossEntropyLoss(label_smoothing=0.1, reduction="sum"),
    "mse": nn.MSELoss(),
    "custom": pseudo_huber,
}
CLASSES = ("cross-entropy", "ignored", "smoothed")


class Net(nn.Module):
    """An MLP with a frozen layer, a parameter that is not used, and tied weights."""

    def __init__(self):
        super().__init__()
        self.first, self.frozen, self.last = nn.Linear(4, 5), nn.Linear(5, 5), nn.Linear(5, 3)
        self.unused = nn.Parameter(torch.ones(2))
        self.tied = self.last
        self.frozen.requires_grad_(False)

    def forward(self, x):
        return self.tied(torch.tanh(self.frozen(functional.gelu(self.first(x)))))


def net(make=Net, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return make().double()


def batch_for(loss, size=6, seed=1):
    stream = torch.Generator().manual_seed(seed)
    x = torch.randn(size, 4, generator=stream, dtype=torch.float64)
    if loss not in CLASSES:
        return x, torch.randn(size, 3, generator=stream, dtype=torch.float64)
    y = torch.randint(3, (size,), generator=stream)
    if loss == "ignored":
        y[::3] = -100
    return x, y


class Reference:
    """L and its derivatives over one flat vector of the parameters with ``requires_grad``, by ``torch.func``."""

    def __init__(self, model, loss, batches):
        self.original, self.model, self.own_loss, self.batches = model, elementary(model), loss, batches
        if isinstance(loss, nn.MSELoss):  # PyTorch's own cannot be differentiated forward twice
            self.own_loss = lambda z, y: (z - y).square().mean()
        self.names = [n for n, p in model.named_parameters() if p.requires_grad]
        parameters = dict(self.model.named_parameters())
        self.shapes = [parameters[n].shape for n in self.names]
        self.theta = flat(parameters[n] for n in self.names)

    def outputs(self, theta, x):
        parts = theta.split([s.numel() for s in self.shapes])
        state = {n: part.view(s) for n, part, s in zip(self.names, parts, self.shapes, strict=True)}
        return functional_call(self.model, state, (x,))

    def loss(self, theta):
        values = [self.own_loss(self.outputs(theta, x), y) for x, y in self.batches]
        counts = [len(y) if y.is_floating_point() else int((y != -100).sum()) for _, y in self.batches]
        return sum(v * c for v, c in zip(values, counts, strict=True)) / sum(counts)

    def gradient(self, theta):
        return torch.func.grad(self.loss)(theta)

    def product(self, v):
        return torch.func.jvp(self.gradient, (self.theta,), (v,))[1]

    def gauss_newton(self, theta, v):
        """Gv for one batch, by the dense Hessian of the loss in the output."""
        ((x, y),) = self.batches
        z, jv = torch.func.jvp(lambda t: self.outputs(t, x), (theta,), (v,))
        bent = torch.func.jvp(torch.func.grad(lambda at: self.own_loss(at, y)), (z,), (jv,))[1]
        return torch.func.vjp(lambda t: self.outputs(t, x), theta)[1](bent)[0]

    def drawn(self, uniforms):
        """The reference with labels from the model's distribution function."""
        batches, first = [], 0
        for x, y in self.batches:
            p = self.outputs(self.theta, x).softmax(1).reshape(len(x), 3).cumsum(1)
            u = uniforms[first : first + len(x)]
            first += len(x)
            labels = (p <= u[:, None]).sum(1)
            ignored = y == -100 if not y.is_floating_point() else torch.zeros(len(x), dtype=torch.bool)
            batches.append((x, torch.where(ignored, -100, labels)))
        plain = nn.CrossEntropyLoss(reduction=self.own_loss.reduction)
        count = sum(int((y != -100).sum()) for _, y in batches)
        return Reference(self.original, plain, batches), 1 if plain.reduction == "sum" else count

    def direction(self, kind, rho, seed=0):
        """What the method adds, from its formula (docs/theory.md, §6). ``rho`` may have an entry per parameter."""
        theta, g = self.theta, self.gradient(self.theta)
        rho = torch.as_tensor(rho, dtype=torch.float64).expand_as(theta)
        stream = torch.Generator().manual_seed(seed)
        if kind in (GradientPenalty, GradientPenaltyWithoutNme):
            v = rho**2 * g / (rho * g).norm()
            return g + (self.product(v) if kind is GradientPenalty else self.gauss_newton(theta, v))
        if kind is Sam:
            return self.gradient(theta + rho * g / g.norm())
        if kind is UnnormalisedSam:
            return self.gradient(theta + rho * g)
        if kind is WeightNoise:
            return self.gradient(theta + rho.sqrt() * torch.randn(len(theta), generator=stream))
        if kind is GaussNewtonTrace:
            uniforms = torch.rand(sum(len(x) for x, _ in self.batches), generator=stream, dtype=torch.float64)
            labelled, size = self.drawn(uniforms)
            return g + size * labelled.product(rho * labelled.gradient(theta))
        u = signs(len(theta), stream) * rho.sqrt()
        if kind is HessianTrace:
            slope = torch.func.grad(lambda t: torch.func.jvp(self.gradient, (t,), (u,))[1] @ u)(theta)
        else:
            slope = central_differences(lambda t: self.gauss_newton(t, u) @ u, theta)
        return g + slope / 2


def elementary(model):
    """A copy without the layers whose derivatives by PyTorch are wrong at third order or in ``torch.func``."""
    model = deepcopy(model)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
            model.set_submodule(name, BatchStatistics(module))
        if isinstance(module, nn.LayerNorm):
            model.set_submodule(name, LayerStatistics(module))
    return model


class LayerStatistics(nn.Module):
    """Layer norm over the last dimension, in elementary operations."""

    def __init__(self, original):
        super().__init__()
        self.weight, self.bias, self.eps = original.weight, original.bias, original.eps

    def forward(self, x):
        centred = x - x.mean(-1, keepdim=True)
        return centred * (centred.square().mean(-1, keepdim=True) + self.eps).rsqrt() * self.weight + self.bias


def grads(model):
    return flat(torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters() if p.requires_grad)


def allowed(kind, loss):
    return kind is not GaussNewtonTrace or loss in CLASSES


CASES = [(kind, loss) for kind in PENALTIES for loss in LOSSES if allowed(kind, loss)]


@pytest.mark.parametrize(("kind", "loss"), CASES)
def test_grad_is_the_direction_of_the_reference(kind, loss):
    model, batch = net(), batch_for(loss)
    expected = Reference(model, LOSSES[loss], [batch]).direction(kind, STRENGTH)
    step = kind(STRENGTH).backward(model, LOSSES[loss], batch)
    assert relative_error(grads(model), expected) < 1e-6
    assert model.unused.grad is None, "as loss.backward() leaves it, so that an optimizer skips it"
    assert all(p.grad is None for p in model.frozen.parameters())
    if kind.has_clean_pass:
        assert step.loss.item() == pytest.approx(LOSSES[loss](model(batch[0]), batch[1]).item(), rel=1e-12)
        torch.testing.assert_close(step.output, model(batch[0]).detach())


@pytest.mark.parametrize(("kind", "loss"), [case for case in CASES if case[1] in ("ignored", "custom")])
def test_groups_of_parameters_have_a_strength_each(kind, loss):
    model, batch = net(), batch_for(loss)
    groups = [
        {"params": list(model.first.parameters()), "strength": 0.3},
        {"params": [*model.last.parameters(), model.unused], "strength": 0.1},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1)
    of = {id(p): group["strength"] for group in groups for p in group["params"]}
    trained = [p for p in model.parameters() if p.requires_grad]
    rho = torch.cat([torch.full((p.numel(),), of[id(p)]).double() for p in trained])
    expected = Reference(model, LOSSES[loss], [batch]).direction(kind, rho)
    kind(optimizer.param_groups).backward(model, LOSSES[loss], batch)
    assert relative_error(grads(model), expected) < 1e-6
    for group in groups:
        group["strength"] = STRENGTH
    model.zero_grad()
    other = net()
    kind(groups).backward(model, LOSSES[loss], batch)
    kind(STRENGTH).backward(other, LOSSES[loss], batch)
    assert torch.equal(grads(model), grads(other)), "equal strengths are one strength"


def split(batch, sizes):
    return list(zip(*(t.split(sizes) for t in batch), strict=True))


@pytest.mark.parametrize(("kind", "loss"), CASES)
def test_micro_batches_have_the_direction_of_the_whole_batch(kind, loss):
    batch = batch_for(loss, size=7)
    whole, cut = net(), net()
    one = kind(STRENGTH).backward(whole, LOSSES[loss], batch)
    other = kind(STRENGTH).accumulate(cut, LOSSES[loss], split(batch, [1, 2, 4]))
    assert relative_error(grads(cut), grads(whole)) < 1e-9
    assert other.loss.item() == pytest.approx(one.loss.item(), rel=1e-12)
    assert other.gradient_norm.item() == pytest.approx(one.gradient_norm.item(), rel=1e-10)
    torch.testing.assert_close(torch.cat(other.output), one.output)


def test_adds_to_grad():
    model, batch = net(), batch_for("mse")
    for _ in range(2):
        GradientPenalty(STRENGTH).backward(model, nn.MSELoss(), batch)
    twice = grads(model)
    model.zero_grad()
    GradientPenalty(STRENGTH).backward(model, nn.MSELoss(), batch)
    assert relative_error(twice, 2 * grads(model)) < 1e-14


def test_strength_may_change_between_steps():
    batch = batch_for("mse")
    penalty = Sam(0.5)
    penalty.strength = 0
    model, plain = net(), net()
    penalty.backward(model, nn.MSELoss(), batch)
    nn.MSELoss()(plain(batch[0]), batch[1]).backward()
    assert relative_error(grads(model), grads(plain)) < 1e-12


class Dropped(nn.Module):
    """Dropout as a module and as a function."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.drop = nn.Linear(4, 20), nn.Linear(20, 3), nn.Dropout(0.5)

    def forward(self, x):
        return self.last(functional.dropout(self.drop(torch.tanh(self.first(x))), 0.3))


class Masked(Dropped):
    """The same network with the masks of a generator's seed."""

    def forward(self, x):
        h = torch.tanh(self.first(x))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(7)
            ones = torch.ones_like(h)
            mask = functional.dropout(functional.dropout(ones, 0.5), 0.3)
        return self.last(h * mask)


@pytest.mark.parametrize("kind", PENALTIES)
def test_dropout_has_one_mask_in_a_step(kind):
    batch = batch_for("cross-entropy")
    model, masked = net(Dropped), net(Masked)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        kind(STRENGTH).backward(model, nn.CrossEntropyLoss(), batch)
        drawn = torch.rand(1)
        torch.manual_seed(7)
        model(batch[0])
        assert torch.equal(drawn, torch.rand(1)), "a step draws as often as one pass"
    kind(STRENGTH).backward(masked, nn.CrossEntropyLoss(), batch)
    assert relative_error(grads(model), grads(masked)) < 1e-9


class Counting(nn.Module):
    """Batch norm of PyTorch's own, spectral norm, and a buffer that counts passes and scales the output."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Linear(6, 3)
        self.last = nn.utils.parametrizations.spectral_norm(self.last)
        self.register_buffer("passes", torch.ones(()))

    def forward(self, x):
        self.passes.add_(1)
        return self.last(torch.tanh(self.norm(self.first(x)))) * float(self.passes)


@pytest.mark.parametrize("kind", PENALTIES)
def test_buffers_are_updated_once_and_passes_repeat_exactly(kind):
    batch = batch_for("cross-entropy")
    model = net(Counting)
    once = deepcopy(model)
    with torch.no_grad():
        once(batch[0])
    strength = STRENGTH if kind.has_clean_pass else 0.0
    kind(strength).backward(model, nn.CrossEntropyLoss(), batch)
    for (name, found), (_, expected) in zip(model.named_buffers(), once.named_buffers(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)


@pytest.mark.parametrize("kind", PENALTIES)
def test_stock_batch_norm_is_right(kind):
    def make():
        return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.GELU(), nn.Linear(5, 3))

    model, batch = net(make), batch_for("cross-entropy")
    expected = Reference(model, nn.CrossEntropyLoss(), [batch]).direction(kind, STRENGTH)
    kind(STRENGTH).backward(model, nn.CrossEntropyLoss(), batch)
    assert relative_error(grads(model), expected) < 1e-6


@pytest.mark.parametrize("kind", [Sgd, *PENALTIES])
def test_autocast_is_near_float32(kind):
    batch = tuple(t.float() if t.is_floating_point() else t for t in batch_for("cross-entropy", 32))
    low, full = net().float(), net().float()
    with torch.autocast("cpu", torch.bfloat16):
        step = kind(0.01).backward(low, nn.CrossEntropyLoss(), batch)
    kind(0.01).backward(full, nn.CrossEntropyLoss(), batch)
    assert step.output.dtype == torch.float32
    assert 0 < relative_error(grads(low), grads(full)) < 0.05
    assert all(p.grad is None or p.grad.dtype == torch.float32 for p in low.parameters())


def test_autocast_does_not_take_the_parameters_of_another_pass():
    """Autocast's cache would give SAM's second pass the weights of the first."""
    batch = tuple(t.float() if t.is_floating_point() else t for t in batch_for("cross-entropy", 32))
    model = net().float()
    plain = deepcopy(model)
    with torch.autocast("cpu", torch.bfloat16):
        model(batch[0])  # fills the cache
        Sam(1.0).backward(model, nn.CrossEntropyLoss(), batch)
    Sam(1.0).backward(plain, nn.CrossEntropyLoss(), batch)
    assert relative_error(grads(model), grads(plain)) < 0.05


def test_any_model_by_forward():
    model, (x, y) = net(), batch_for("mse")
    expected = Reference(model, nn.MSELoss(), [(x, y)]).direction(GradientPenalty, STRENGTH)
    batch = {"image": x, "wanted": y}
    GradientPenalty(STRENGTH).backward(model, nn.MSELoss(), batch, forward=lambda m, b: (m(b["image"]), b["wanted"]))
    assert relative_error(grads(model), expected) < 1e-6


def test_a_compiled_model_is_run_by_first_order_methods():
    model, batch = net(), batch_for("mse")
    compiled = torch.compile(model, backend="eager")
    Sam(STRENGTH).backward(compiled, nn.MSELoss(), batch)
    found = grads(model)
    model.zero_grad()
    Sam(STRENGTH).backward(model, nn.MSELoss(), batch)
    assert relative_error(found, grads(model)) < 1e-12
    with pytest.raises(NmeError, match="a compiled model has no second derivative"):
        GradientPenalty(STRENGTH).backward(compiled, nn.MSELoss(), batch)


def wrong(model=None, loss=None, batch=None, method=None, **options):
    x, y = batch_for("mse")
    method = method or GradientPenalty(STRENGTH)
    method.backward(model or net(), loss or nn.MSELoss(), (x, y) if batch is None else batch, **options)


def direct(model):
    return lambda z, y: (z - y).square().mean() + model.first.weight.square().sum()


def with_direct_loss():
    model = net()
    wrong(model, direct(model), method=GradientPenaltyWithoutNme(STRENGTH))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: wrong(method=GradientPenalty()), "strength of GradientPenalty is not given"),
        (lambda: wrong(method=Sam(-1)), "strength is -1"),
        (lambda: wrong(method=Sam(float("nan"))), "strength is nan"),
        (lambda: wrong(method=Sam([{"params": []}])), "a parameter group has no 'strength'"),
        (lambda: wrong(method=Sam([{"params": [], "strength": 1}])), "parameters with requires_grad are in no group"),
        (lambda: GradientPenalty(1, p=3), "p is 3"),
        (lambda: GradientPenalty(1, q=3), "unknown parameter of GradientPenalty 'q'"),
        (lambda: wrong(batch=torch.ones(3)), r"batch is Tensor \(expected a pair"),
        (lambda: wrong(loss=nn.MSELoss(reduction="none")), "reduction 'none'"),
        (lambda: wrong(net().requires_grad_(False)), "the model has no parameter with requires_grad"),
        (lambda: wrong(loss=lambda z, y: y.sum()), "the loss does not depend on"),
        (lambda: wrong(nn.DataParallel(net())), "DataParallel is not supported"),
        (lambda: wrong(forward=lambda m, b: m(b[0])), "forward returns Tensor"),
        (lambda: wrong(forward=lambda m, b: ((m(b[0]),), b[1])), "the model's output is tuple"),
        (lambda: wrong(method=GaussNewtonTrace(1)), "use GaussNewtonTraceByProbes"),
        (lambda: GradientPenalty(1).accumulate(net(), nn.MSELoss(), []), "there are no micro-batches"),
        (with_direct_loss, "the loss depends on parameters directly"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(call, message):
    with pytest.raises(NmeError, match=message) as found:
        call()
    assert "\n" not in str(found.value)


def test_a_layer_without_third_derivative_is_one_sentence():
    model = nn.Sequential(
        nn.Linear(4, 3), nn.Unflatten(1, (1, 3)), nn.InstanceNorm1d(1), nn.Flatten(), nn.Tanh()
    ).double()
    for method in (HessianTrace(0.1), GaussNewtonTraceByProbes(0.1)):
        with pytest.raises(NmeError, match="no derivative of order 3"):
            method.backward(model, nn.MSELoss(), batch_for("mse"))
    GradientPenalty(0.1).backward(model, nn.MSELoss(), batch_for("mse"))


def test_half_precision_autocast_is_refused():
    with torch.autocast("cpu", torch.float16), pytest.raises(NmeError, match="float16"):
        wrong()


def test_every_registered_method_is_tested_here():
    assert {*PENALTIES, Sgd} == set(METHODS.values())


def of_weight_norm(old):
    layer = nn.Linear(3, 4)
    return nn.utils.weight_norm(layer) if old else nn.utils.parametrizations.weight_norm(layer)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
@pytest.mark.parametrize("old", [True, False])
def test_weight_norm_is_refused_where_it_is_differentiated_twice(old):
    batch = torch.randn(5, 3), torch.randint(4, (5,))
    with pytest.raises(NmeError, match="weight_norm"):
        METHODS["grad_norm"](0.1).backward(of_weight_norm(old), nn.CrossEntropyLoss(), batch)
    METHODS["sam"](0.1).backward(of_weight_norm(old), nn.CrossEntropyLoss(), batch)


@pytest.mark.parametrize("name", ["grad_norm_gn", "gauss_newton_trace_probe"])
def test_a_loss_without_curvature_is_refused_by_gauss_newton_methods(name):
    model, batch = nn.Sequential(nn.Linear(3, 4), nn.LogSoftmax(1)), (torch.randn(5, 3), torch.randint(4, (5,)))
    with pytest.raises(NmeError, match="linear in the model's output"):
        METHODS[name](0.1).backward(model, nn.NLLLoss(), batch)
    METHODS["grad_norm"](0.1).backward(model, nn.NLLLoss(), batch)


@pytest.mark.parametrize("name", ["sgd", "sam", "weight_noise"])
def test_gradients_of_parameters_that_are_added_are_separate(name):
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.randn(4, 3))

        def forward(self, x):
            return functional.linear(x, self.a + self.b)

    torch.manual_seed(0)
    model, batch = Sum(), (torch.randn(5, 3), torch.randint(4, (5,)))
    METHODS[name](0.1).backward(model, nn.CrossEntropyLoss(), batch)
    before = model.b.grad.clone()
    model.a.grad.mul_(2)
    assert torch.equal(model.b.grad, before)


def test_targets_that_depend_on_parameters_are_refused():
    model, batch = nn.Linear(3, 4), (torch.randn(5, 3), None)
    with pytest.raises(NmeError, match="target depends on parameters"):
        METHODS["sgd"]().backward(
            model, nn.CrossEntropyLoss(), batch, forward=lambda m, b: (m(b[0]), m(b[0]).flip(0).softmax(1))
        )


class Averaging(nn.Module):
    """A running scale that is used in the pass that updates it, in place or by a new tensor."""

    def __init__(self, in_place):
        super().__init__()
        self.first, self.last, self.in_place = nn.Linear(4, 6), nn.Linear(6, 3), in_place
        self.register_buffer("scale", torch.ones(()))

    def forward(self, x):
        h = self.first(x)
        mean = h.detach().abs().mean()
        if self.in_place:
            self.scale.mul_(0.5).add_(0.5 * mean)
        else:
            self.scale = 0.5 * self.scale + 0.5 * mean
        return self.last(torch.tanh(h / self.scale))


@pytest.mark.parametrize("in_place", [True, False])
def test_sam_with_a_running_scale_starts_both_passes_from_the_same_one(in_place):
    batch = batch_for("cross-entropy")
    model = net(lambda: Averaging(in_place))
    clean, uphill = deepcopy(model), deepcopy(model)
    nn.functional.cross_entropy(clean(batch[0]), batch[1]).backward()
    size = grads(clean).norm()
    with torch.no_grad():
        for p, q in zip(uphill.parameters(), clean.parameters(), strict=True):
            p.add_(STRENGTH * q.grad / size)
    nn.functional.cross_entropy(uphill(batch[0]), batch[1]).backward()
    Sam(STRENGTH).backward(model, nn.CrossEntropyLoss(), batch)
    assert relative_error(grads(model), grads(uphill)) < 1e-9
    torch.testing.assert_close(model.scale, clean.scale)


@pytest.mark.parametrize("kind", PENALTIES)
def test_parameters_of_two_dtypes(kind):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(4, 6).float(), nn.Linear(6, 3).double()

        def forward(self, x):
            return self.last(torch.tanh(self.first(x.float())).double())

    torch.manual_seed(0)
    model, batch = Mixed(), batch_for("cross-entropy")
    wide = deepcopy(model).double()
    wide.forward = lambda x: wide.last(torch.tanh(wide.first(x)))
    for one in (model, wide):
        kind(STRENGTH).backward(one, nn.CrossEntropyLoss(), batch)
    assert relative_error(torch.cat([p.grad.double().flatten() for p in model.parameters()]), grads(wide)) < 1e-5


@pytest.mark.parametrize("k", [1, 3])
def test_stock_batch_norm_takes_one_more_pass_for_the_gauss_newton_form(k):
    """J is made a second time, in elementary operations, for all probes together."""
    model = net(lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.GELU(), nn.Linear(5, 3)))
    passes = []
    model[0].register_forward_hook(lambda *_: passes.append(1))
    GaussNewtonTraceByProbes(STRENGTH, k=k).backward(model, nn.CrossEntropyLoss(), batch_for("cross-entropy"))
    assert len(passes) == 2


def test_sam_takes_no_memory_of_the_users():
    """The step uphill is made in the memory of its direction: a gradient that is a user's tensor stays as it is."""
    constant = torch.randn(3, 4, dtype=torch.float64)

    class Constant(torch.autograd.Function):
        @staticmethod
        def forward(ctx, weight):
            return (weight * constant).sum()

        @staticmethod
        def backward(ctx, gradient):
            return constant

    model, before = nn.Linear(4, 3).double(), constant.clone()
    weight = model.weight.detach().clone()
    Sam(STRENGTH).backward(model, lambda z, y: z, (None, None), forward=lambda m, _: (Constant.apply(m.weight), None))
    assert torch.equal(constant, before)
    assert torch.equal(model.weight, weight)


def test_buffers_made_in_inference_mode():
    with torch.inference_mode():
        buffer = torch.zeros(3)
    model = nn.Linear(3, 2)
    model.register_buffer("centre", buffer)
    with pytest.raises(NmeError, match="buffer 'centre' was made in inference mode"):
        GradientPenalty(0.1).backward(
            model, nn.CrossEntropyLoss(), (torch.ones(4, 3), torch.zeros(4, dtype=torch.long))
        )


@pytest.mark.parametrize("name", sorted(METHODS))
def test_what_cannot_be_trained_is_one_sentence(name):
    method, loss = METHODS[name](0.1), nn.CrossEntropyLoss()
    model, x, y = nn.Linear(3, 4), torch.randn(5, 3), torch.tensor([0, 1, 2, 3, 4])
    with pytest.raises(NmeError, match=r"a label is 4 \(allowed: 0 to 3"):
        method.backward(model, loss, (x, y))
    with pytest.raises(NmeError, match=r"a label is -1 \(allowed: 0 to 3"):
        method.backward(model, loss, (x, y - 1))
    with pytest.raises(NmeError, match="lazy layer has no parameters yet"):
        method.backward(nn.LazyLinear(4), loss, (x, y.clamp(max=3)))
    with torch.inference_mode(), pytest.raises(NmeError, match="inference_mode"):
        method.backward(model, loss, (x, y.clamp(max=3)))
    assert all(p.grad is None for p in model.parameters())


class Reentrant(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.last(checkpoint(self.first, x, use_reentrant=True))


@pytest.mark.parametrize("name", sorted(METHODS))
def test_reentrant_checkpoints_are_refused(name):
    """Autograd passes over a first block whose inputs need a gradient: its parameters would get none."""
    batch = torch.randn(5, 3, requires_grad=True), torch.randint(4, (5,))
    with pytest.raises(NmeError, match="reentrant checkpoint hides its parameters"):
        METHODS[name](0.1).backward(Reentrant(), nn.CrossEntropyLoss(), batch)


def test_cached_parametrisations_are_refused():
    """A cache would keep the weights while SAM displaces the parameters."""
    model, batch = nn.Linear(3, 4), (torch.randn(5, 3), torch.randint(4, (5,)))
    with nn.utils.parametrize.cached(), pytest.raises(NmeError, match="cached"):
        METHODS["sam"](0.1).backward(model, nn.CrossEntropyLoss(), batch)


def test_unknown_arguments_name_the_known_ones():
    with pytest.raises(NmeError, match=r"'rho' \(allowed: seed, strength"):
        METHODS["sam"](rho=0.1)
