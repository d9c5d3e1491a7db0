"""What models and losses do beside computing: methods that need several passes repeat it exactly, or refuse."""

import random
from copy import deepcopy

import numpy as np
import pytest
import torch
from dense_reference import relative_error
from torch import nn
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
from nme.models.replacement import replace_activations

SECOND_ORDER = (GradientPenalty, GradientPenaltyWithoutNme, HessianTrace, GaussNewtonTrace, GaussNewtonTraceByProbes)
CE = nn.CrossEntropyLoss()


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)
    random.seed(0)
    np.random.seed(0)


def batch():
    return torch.randn(8, 5, dtype=torch.float64), torch.randint(3, (8,))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 6).double(), nn.Linear(6, 3).double()

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def grads(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def stepped(method, model, loss=CE, data=None):
    for p in model.parameters():
        p.grad = None
    method.backward(model, loss, data or batch())
    return grads(model)


def sam_by_hand(model, strength, of_loss):
    """∇L(θ + ρ ĝ) of a loss that repeats itself."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    g = torch.autograd.grad(of_loss(), parameters)
    size = torch.cat([x.flatten() for x in g]).norm()
    with torch.no_grad():
        for p, d in zip(parameters, g, strict=True):
            p += strength * d / size
    uphill = torch.autograd.grad(of_loss(), parameters)
    with torch.no_grad():
        for p, d in zip(parameters, g, strict=True):
            p -= strength * d / size
    return torch.cat([x.flatten() for x in uphill])


# -------------------------------------------------- random numbers


class Dropping(Net):
    """Stochastic depth that draws in one of three ways."""

    def __init__(self, draw):
        super().__init__()
        self.draw = draw
        self.middle = nn.ModuleList([nn.Linear(6, 6).double() for _ in range(6)])

    def forward(self, x):
        h = torch.tanh(self.first(x))
        for layer in self.middle:
            h = h + (self.draw() < 0.5) * torch.tanh(layer(h))
        return self.second(h)


DRAWS = {"python": random.random, "numpy": np.random.random, "torch": lambda: torch.rand(()).item()}


def start(seed):
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def states():
    kind, keys, place, *_ = np.random.get_state()
    return random.getstate(), kind, keys.tolist(), place, torch.get_rng_state().tolist()


@pytest.mark.parametrize("source", DRAWS)
@pytest.mark.parametrize("seed", range(3))
def test_each_pass_draws_the_same_numbers(source, seed):
    model, (x, y) = Dropping(DRAWS[source]), batch()

    def of_loss():
        start(seed)
        return CE(model(x), y)

    expected = sam_by_hand(model, 0.5, of_loss)
    of_loss()
    after_one_pass = states()
    start(seed)
    assert relative_error(stepped(Sam(0.5), model, data=(x, y)), expected) < 1e-9
    start(seed)
    Sam(0.5).backward(model, CE, (x, y))
    assert states() == after_one_pass, "as after a single pass"


class Branching(nn.Module):
    """Of layers that Taylor arithmetic has rules for; a choice takes one of two branches."""

    def __init__(self, choose):
        super().__init__()
        self.choose = choose
        self.first = nn.Sequential(nn.Linear(5, 6), nn.ReLU()).double()
        self.branches = nn.ModuleList([nn.Linear(6, 3).double() for _ in range(2)])
        replace_activations(self, "gelu")

    def forward(self, x):
        return self.branches[self.choose()](self.first(x))


class Turns:
    """0, 1, 0, …; as a model's own counter, an attribute."""

    def __init__(self, model):
        self.model = model
        model.turn = 1

    def __call__(self):
        self.model.turn = 1 - self.model.turn
        return self.model.turn


@pytest.mark.parametrize("kind", ["torch", "counter"])
def test_the_hessian_trace_takes_the_branches_of_the_clean_pass(kind):
    """Its Taylor pass would draw, or count, again."""
    model, data = Branching(lambda: int(torch.rand(()) < 0.5)), batch()
    if kind == "counter":
        model.choose = Turns(model)
    for seed in range(6):
        start(seed)
        branch = int(torch.rand(()) < 0.5) if kind == "torch" else seed % 2
        start(seed)
        found = stepped(HessianTrace(1.0, seed=seed), model, data=data)
        twin = Branching(lambda branch=branch: branch)
        twin.load_state_dict(model.state_dict())
        assert relative_error(found, stepped(HessianTrace(1.0, seed=seed), twin, data=data)) < 1e-9


def test_numpys_second_normal_number_is_drawn_again():
    """NumPy's old generator draws two at once, and keeps one."""
    seen = []

    class Noisy(Net):
        def forward(self, x):
            seen.append(np.random.randn())
            return super().forward(x) + seen[-1]

    np.random.randn()
    Sam(0.1).backward(Noisy(), CE, batch())
    assert seen[0] == seen[1]


def noisy(output, target):
    return (functional.cross_entropy(output, target, reduction="none") * torch.rand(len(output))).mean()


class Center(nn.Module):
    """A loss that keeps a moving mean, as DINO's."""

    def __init__(self):
        super().__init__()
        self.register_buffer("center", torch.zeros(3, dtype=torch.float64))

    def forward(self, output, target):
        with torch.no_grad():
            self.center = self.center * 0.9 + output.mean(0) * 0.1
        return functional.cross_entropy(output - self.center, target)


@pytest.mark.parametrize("method", [Sam(0.1), HessianTrace(0.1), GaussNewtonTraceByProbes(0.1), UnnormalisedSam(0.1),
                                    GradientPenaltyWithoutNme(0.1)])  # fmt: skip
@pytest.mark.parametrize("loss", [noisy, Center()], ids=["draws", "buffer"])
def test_a_loss_that_differs_from_pass_to_pass_is_refused(method, loss):
    with pytest.raises(
        NmeError, match=r"the loss (draws random numbers|changes its own buffers or attributes), but the method"
    ):
        method.backward(Net().double(), loss, batch())


@pytest.mark.parametrize("method", [Sgd(), GradientPenalty(0.1), WeightNoise(0.1)])
@pytest.mark.parametrize("loss", [noisy, Center()], ids=["draws", "buffer"])
def test_methods_that_evaluate_a_loss_once_take_it(method, loss):
    method.backward(Net().double(), loss, batch())


# -------------------------------------------------- what a pass writes


class Counting(Net):
    """A recurrent state and a counter in attributes."""

    def __init__(self):
        super().__init__()
        self.state, self.count = torch.ones(6, dtype=torch.float64), 0

    def forward(self, x):
        h = torch.tanh(self.first(x)) * self.state
        self.state, self.count, self.seen = h.mean(0).detach(), self.count + 1, h
        return self.second(h)


@pytest.mark.parametrize("method", [Sam(0.3), HessianTrace(0.1)])
def test_attributes_are_set_once(method):
    model, (x, y) = Counting(), batch()
    expected = torch.tanh(model.first(x)).mean(0)
    if isinstance(method, Sam):

        def of_loss():
            model.state = torch.ones(6, dtype=torch.float64)
            return CE(model(x), y)

        direction = sam_by_hand(model, 0.3, of_loss)
        model.state, model.count = torch.ones(6, dtype=torch.float64), 0
    found = stepped(method, model, data=(x, y))
    assert model.count == 1
    torch.testing.assert_close(model.state, expected)
    assert type(model.seen) is torch.Tensor
    if isinstance(method, Sam):
        assert relative_error(found, direction) < 1e-9


@pytest.mark.parametrize("method", [GradientPenalty(0.1), HessianTrace(0.1), Sam(0.1)])
def test_attributes_stay_set_where_a_part_has_no_share(method):
    model, (x, y) = Counting(), batch()
    method.accumulate(model, CE, [(x, y), (x, torch.full_like(y, -100))])
    assert model.count == 2


def test_taylor_values_stay_in_the_pass():
    class Featured(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()

        def forward(self, x):
            self.feature = self.layers[0](x)
            return self.layers[2](self.layers[1](self.feature))

    model = Featured()
    replace_activations(model, "gelu")
    HessianTrace(0.1).backward(model, CE, batch())
    assert type(model.feature) is torch.Tensor


class InPlace(Net):
    def forward(self, x):
        x -= 0.5
        return super().forward(x)


class Teacher(Net):
    def __init__(self):
        super().__init__()
        self.teacher = nn.Linear(5, 6).double().requires_grad_(False)

    def forward(self, x):
        with torch.no_grad():
            self.teacher.weight.mul_(0.9).add_(self.first.weight, alpha=0.1)
        return self.second(torch.tanh(self.first(x)) - self.teacher(x))


class Remembering(Net):
    def __init__(self):
        super().__init__()
        self.state = torch.ones(6, dtype=torch.float64)

    def forward(self, x):
        h = torch.tanh(self.first(x)) + self.state
        self.state.copy_(h.mean(0).detach())
        return self.second(h)


WRITES = {
    "its inputs": InPlace,
    "parameter 'weight' of Linear": Teacher,
    "attribute 'state' of Remembering": Remembering,
}


@pytest.mark.parametrize("place", WRITES)
@pytest.mark.parametrize("method", [Sam(0.1), HessianTrace(0.1)])
def test_what_a_pass_writes_into_and_cannot_be_undone_is_refused(place, method):
    with pytest.raises(NmeError, match=f"the forward pass writes into {place}, but the method needs a second pass"):
        method.backward(WRITES[place](), CE, batch())


@pytest.mark.parametrize("place", WRITES)
def test_a_method_with_one_pass_takes_it(place):
    GradientPenalty(0.1).backward(WRITES[place](), CE, batch())


class OwnNorm(nn.BatchNorm1d):
    """Batch norm by a forward pass of its own, which knows no ``track_running_stats``."""

    def forward(self, x):
        return functional.batch_norm(
            x, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )


def test_a_batch_norm_of_ones_own_updates_its_statistics_once():
    model, (x, y) = nn.Sequential(nn.Linear(5, 6), OwnNorm(6), nn.Tanh(), nn.Linear(6, 3)).double(), batch()
    twin = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 3)).double()
    twin.load_state_dict(model.state_dict())
    found, expected = stepped(Sam(0.3), model, data=(x, y)), stepped(Sam(0.3), twin, data=(x, y))
    assert relative_error(found, expected) < 1e-9
    torch.testing.assert_close(model[1].running_mean, twin[1].running_mean)
    torch.testing.assert_close(model[1].running_var, twin[1].running_var)


def test_a_batch_norm_of_ones_own_may_be_checkpointed():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(5, 6), OwnNorm(6), nn.Tanh()).double()
            self.last = nn.Linear(6, 3).double()

        def forward(self, x):
            return self.last(checkpoint(self.layers, x, use_reentrant=False))

    model, data = Block(), batch()
    twin = deepcopy(model)
    twin.forward = lambda x: twin.last(twin.layers(x))
    assert relative_error(stepped(Sam(0.3), model, data=data), stepped(Sam(0.3), twin, data=data)) < 1e-9
    torch.testing.assert_close(model.layers[1].running_mean, twin.layers[1].running_mean)


class Routed(nn.Module):
    """Two experts, of which the parameters choose one."""

    def __init__(self):
        super().__init__()
        self.router, self.experts = nn.Linear(5, 2), nn.ModuleList([nn.Linear(5, 3) for _ in range(2)])

    def forward(self, x):
        p = self.router(x.mean(0)).softmax(0)
        i = int(p.argmax())
        return self.experts[i](x) * p[i]


def test_sam_keeps_gradients_of_parameters_that_are_used_uphill_alone():
    changed = 0
    for seed in range(20):
        torch.manual_seed(seed)
        model, data = Routed().double(), batch()
        step = Sam(3.0).backward(model, CE, data)
        for p, d in zip(model.parameters(), step.direction, strict=True):
            assert p.grad is not None or not d.any()
        changed += sum(p.grad is not None for p in model.parameters()) == 6
    assert changed, "some of them change the expert"


# -------------------------------------------------- derivatives that autograd does not have


class Cubed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return g * 3 * ctx.saved_tensors[0] ** 2


class Once(Net):
    def forward(self, x):
        return self.second(Cubed.apply(self.first(x)))


@pytest.mark.parametrize("method", SECOND_ORDER)
def test_functions_without_a_second_derivative_are_refused(method):
    model = Once()
    for _ in range(2):  # a refused step is no proof that the next one is right
        with pytest.raises(NmeError, match="once_differentiable"):
            method(0.1).backward(model, CE, batch())
    Sam(0.1).backward(model, CE, batch())


LAST = {
    "sigmoid": (nn.Sigmoid(), nn.BCELoss(), lambda: torch.rand(8, 3, dtype=torch.float64)),
    "tanh": (nn.Tanh(), nn.SmoothL1Loss(), lambda: torch.rand(8, 3, dtype=torch.float64)),
    "softmax": (nn.Softmax(1), lambda o, t: (o - t).square().sum(1).mean(), lambda: torch.eye(3).double()[[0, 1] * 4]),
}


@pytest.mark.parametrize("last", LAST)
def test_probed_gauss_newton_with_a_last_layer_that_keeps_its_output(last):
    layer, loss, targets = LAST[last]
    model, x, y = nn.Sequential(Net(), layer), torch.randn(8, 5, dtype=torch.float64), targets()
    parameters = dict(model.named_parameters())

    def of(values):
        return torch.func.functional_call(model, values, (x,))

    def form(values, probe):
        z, jv = torch.func.jvp(of, (values,), (probe,))
        _, curved = torch.func.jvp(torch.func.grad(lambda o: loss(o, y)), (z,), (jv,))
        return (jv * curved).sum()

    method = GaussNewtonTraceByProbes(0.5)
    from nme.derivatives.vectors import rademacher

    drawn = rademacher([*parameters.values()], torch.Generator().manual_seed(0))
    probe = dict(zip(parameters, drawn, strict=True))
    values = {name: p.detach() for name, p in parameters.items()}
    slope = torch.func.grad(lambda v: loss(of(v), y))(values)
    bend = torch.func.grad(form)(values, probe)
    expected = torch.cat([(slope[name] + 0.25 * bend[name]).flatten() for name in parameters])
    assert relative_error(stepped(method, model, loss, (x, y)), expected) < 1e-9


LINEAR = {
    "nll": lambda o, t: functional.nll_loss(o, t),
    "gather": lambda o, t: -o.gather(1, t[:, None]).mean(),
    "given": lambda o, t: o.sum() if o.dim() else o,
}


CURVED = {
    "huber, far away": lambda o, t: functional.smooth_l1_loss(o, 50.0 + t[:, None].expand_as(o)),
    "odd": lambda o, t: torch.tanh(o * (t[:, None] + 1)).mean(),
}


@pytest.mark.parametrize("loss", CURVED)
def test_gauss_newton_of_a_loss_that_is_linear_in_places_is_not(loss):
    GaussNewtonTraceByProbes(0.1).backward(Net(), CURVED[loss], batch())


def test_each_method_inspects_for_itself():
    """Only Gauss-Newton methods refuse a linear loss; a step of another method is no proof."""
    model, loss, data = Net(), nn.NLLLoss(), batch()
    GradientPenalty(0.1).backward(model, loss, data)
    with pytest.raises(NmeError, match="linear in the model's output"):
        GradientPenaltyWithoutNme(0.1).backward(model, loss, data)


def test_a_loss_made_anew_in_each_step_is_inspected():
    """Python gives the ids of freed functions again."""
    model, data = Net(), batch()
    for _ in range(5):
        Sam(0.1).backward(model, lambda o, t: functional.cross_entropy(o, t), data)
        with pytest.raises(NmeError, match="draws random numbers"):
            Sam(0.1).backward(model, lambda o, t: (torch.rand(()) * o).square().mean(), data)


@pytest.mark.parametrize("loss", LINEAR)
@pytest.mark.parametrize("method", [GradientPenaltyWithoutNme, GaussNewtonTraceByProbes])
def test_gauss_newton_of_a_linear_loss_is_refused(loss, method):
    with pytest.raises(NmeError, match="linear in the model's output"):
        method(0.1).backward(Net(), LINEAR[loss], batch())


def test_layers_without_gradient_are_constants_in_the_hessian_trace():
    class Probe(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 6)).double()
            self.head = nn.Sequential(nn.ReLU(), nn.Linear(6, 3)).double()
            replace_activations(self, "gelu")

        def forward(self, x):
            with torch.no_grad():
                z = self.body(x)
            return self.head(z)

    model, data = Probe(), batch()
    found = HessianTrace(2.0).backward(model, CE, data).direction
    model.body.requires_grad_(False)
    assert all(not d.any() for d in found[:4])
    from nme.derivatives.vectors import rademacher

    probe = rademacher([*Probe().parameters()], torch.Generator().manual_seed(0))[4:]
    z = model.body(data[0]).detach()

    def form(weight, bias):
        def of_loss(w, b):
            return CE(functional.linear(functional.gelu(z), w, b), data[1])

        _, hv = torch.func.jvp(torch.func.grad(of_loss, (0, 1)), (weight, bias), tuple(probe))
        return sum((h * u).sum() for h, u in zip(hv, probe, strict=True))

    own = tuple(p.detach() for p in model.head[1].parameters())
    bend = torch.func.grad(form, (0, 1))(*own)
    slope = torch.func.grad(lambda w, b: CE(functional.linear(functional.gelu(z), w, b), data[1]), (0, 1))(*own)
    for d, g, b in zip(found[4:], slope, bend, strict=True):
        torch.testing.assert_close(d, g + b)


@pytest.mark.parametrize("part", ["activation", "product"])
def test_parts_without_gradient_are_constants_in_the_hessian_trace(part):
    class Gated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Linear(5, 6).double(), nn.Linear(6, 3).double()
            self.act = nn.ReLU()
            replace_activations(self, "gelu")

        def forward(self, x):
            h = self.first(x)
            with torch.no_grad():
                gate = self.act(h) if part == "activation" else h * h
            return self.last(h * gate)

    class Plain(Gated):
        def forward(self, x):
            h = functional.linear(x, self.first.weight, self.first.bias)
            v = h.detach()
            gate = functional.gelu(v) if part == "activation" else v * v
            return self.last(h * gate)

    model, data = Gated(), batch()
    twin = Plain()
    twin.load_state_dict(model.state_dict())
    found, expected = (stepped(HessianTrace(2.0), net, data=data) for net in (model, twin))
    assert relative_error(found, expected) < 1e-9


def test_layer_norm_that_the_model_differentiates_is_refused_in_second_derivatives():
    class Energy(nn.Module):
        def __init__(self, norm):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(5, 6), norm, nn.Tanh(), nn.Linear(6, 1)).double()

        def forward(self, x):
            x = x.detach().requires_grad_()
            return torch.autograd.grad(self.layers(x).sum(), x, create_graph=True)[0]

    data = torch.randn(8, 5, dtype=torch.float64), torch.randn(8, 5, dtype=torch.float64)
    for method in (GradientPenalty(0.1), GradientPenaltyWithoutNme(0.1)):
        method.backward(Energy(nn.Identity()), nn.MSELoss(), data)
    with pytest.raises(NmeError, match="the model differentiates layer norm itself"):
        GradientPenalty(0.1).backward(Energy(nn.LayerNorm(6)), nn.MSELoss(), data)
    Sam(0.1).backward(Energy(nn.LayerNorm(6)), nn.MSELoss(), data)


class Normed(Net):
    def __init__(self):
        super().__init__()
        self.norm = nn.LayerNorm(6).double()

    def forward(self, x):
        return self.second(self.norm(self.first(x)))


def test_layer_norm_that_cannot_be_replaced_is_refused_in_third_derivatives():
    class Direct(Normed):
        def forward(self, x):
            y, _, _ = torch.native_layer_norm(self.first(x), [6], self.norm.weight, self.norm.bias, 1e-5)
            return self.second(y)

    HessianTrace(0.1).backward(Normed(), CE, batch())
    for method in (HessianTrace, GaussNewtonTraceByProbes):
        with pytest.raises(NmeError, match="layer norm has wrong third derivatives"):
            method(0.1).backward(Direct(), CE, batch())
        with pytest.raises(NmeError, match="scripted model"):
            method(0.1).backward(torch.jit.script(Normed()), CE, batch())


def test_parameters_that_are_not_the_models_are_refused():
    class Tempered(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones((), dtype=torch.float64))

        def forward(self, output, target):
            return functional.cross_entropy(output * self.scale, target)

    class Hidden(Net):
        def __init__(self):
            super().__init__()
            self.prompts = [nn.Parameter(torch.ones(6, dtype=torch.float64))]

        def forward(self, x):
            return self.second(torch.tanh(self.first(x)) + self.prompts[0])

    for method in (Sgd(), GradientPenalty(0.1), Sam(0.1), HessianTrace(0.1)):
        with pytest.raises(NmeError, match="not one of the model's"):
            method.backward(Net(), Tempered(), batch())
        with pytest.raises(NmeError, match=r"shape \(6,\) that is not one of the model's"):
            method.backward(Hidden(), CE, batch())


def test_numbers_that_do_not_fit_are_refused():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(3, 5, dtype=torch.complex128))

        def forward(self, x):
            return (x.to(torch.complex128) @ self.weight.T).abs()

    for method in (WeightNoise(0.1), HessianTrace(0.1), GaussNewtonTraceByProbes(0.1)):
        with pytest.raises(NmeError, match="parameters are complex"):
            method.backward(Complex(), CE, batch())
    with pytest.raises(NmeError, match="float16"):
        Sam(0.1).backward(Net().half(), CE, (torch.randn(8, 5).half(), torch.randint(3, (8,))))


@pytest.mark.parametrize("strength", [torch.tensor(0.3), np.array(0.3), torch.tensor([0.3])])
def test_a_strength_may_be_a_tensor_of_one_number(strength):
    model, data = Net(), batch()
    assert torch.equal(stepped(Sam(strength), model, data=data), stepped(Sam(float(strength)), model, data=data))


# -------------------------------------------------- several micro-batches


def masked_mean(output, target):
    labels, mask = target
    each = functional.cross_entropy(output.transpose(1, 2), labels, reduction="none")
    return (each * mask).sum() / mask.sum()


@pytest.mark.parametrize("lengths", [(6, 1, 3, 2), (4, 4, 4, 4)])
def test_means_over_tokens_combine_only_if_there_are_equally_many(lengths):
    torch.manual_seed(0)
    model, x = nn.Linear(5, 7).double(), torch.randn(4, 6, 5, dtype=torch.float64)
    labels = torch.randint(7, (4, 6))
    mask = (torch.arange(6) < torch.tensor(lengths)[:, None]).double()
    pieces = [(x[i : i + 1], (labels[i : i + 1], mask[i : i + 1])) for i in range(4)]
    if len(set(lengths)) > 1:
        with pytest.raises(NmeError, match="not a mean over examples"):
            GradientPenalty(0.1).accumulate(model, masked_mean, pieces)
        return
    GradientPenalty(0.1).accumulate(model, masked_mean, pieces)
    found = grads(model)
    assert relative_error(found, stepped(GradientPenalty(0.1), model, masked_mean, (x, (labels, mask)))) < 1e-9


def test_a_model_that_checks_for_tensors_has_a_hessian_trace():
    class Checked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3)).double()
            replace_activations(self, "gelu")

        def forward(self, x):
            assert isinstance(x, torch.Tensor)
            return self.layers(x)

    model, data = Checked(), batch()
    found = stepped(HessianTrace(1.0), model, data=data)
    assert relative_error(found, stepped(HessianTrace(1.0), model.layers, data=data)) < 1e-9


LOSSES = {
    "squeezed": (lambda o, t: functional.binary_cross_entropy_with_logits(o.squeeze(), t), 1,
                 lambda: torch.rand(4, dtype=torch.float64)),
    "class weights in the target": (
        lambda o, t: functional.cross_entropy(o, t[0], weight=t[1], reduction="none").mean(), 3,
        lambda: (torch.randint(3, (4,)), torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))),
}  # fmt: skip


@pytest.mark.parametrize("name", LOSSES)
def test_means_over_examples_combine(name):
    torch.manual_seed(0)
    loss, outputs, targets = LOSSES[name]
    model, x, y = nn.Linear(5, outputs).double(), torch.randn(4, 5, dtype=torch.float64), targets()
    pieces = [(x[i : i + 2], (y[0][i : i + 2], y[1]) if isinstance(y, tuple) else y[i : i + 2]) for i in (0, 2)]
    GradientPenalty(0.1).accumulate(model, loss, pieces)
    found = grads(model)
    assert relative_error(found, stepped(GradientPenalty(0.1), model, loss, (x, y))) < 1e-9


def test_a_batch_of_any_kind_is_only_looked_at():
    class Pair(list):
        def __init__(self, x, y):
            super().__init__([x, y])

    Sam(0.1).backward(Net(), CE, Pair(*batch()), forward=lambda model, pair: (model(pair[0]), pair[1]))


def test_embeddings_that_scale_their_rows_are_taken():
    model = nn.Sequential(nn.Embedding(4, 5, max_norm=1.0), nn.Linear(5, 3)).double()
    Sam(0.1).backward(model, CE, (torch.randint(4, (8,)), torch.randint(3, (8,))))


class Weighing(nn.Module):
    """Leaves weights of examples, or a balance with a graph, for the loss to read."""

    def __init__(self, graph):
        super().__init__()
        self.layer, self.graph = nn.Linear(4, 3), graph

    def forward(self, x):
        z = self.layer(x)
        share = z.softmax(1).square().mean()
        self.extra = share if self.graph else share.detach()
        return z


@pytest.mark.parametrize("graph", [True, False])
@pytest.mark.parametrize("name", ["sam", "usam", "hessian_trace", "grad_norm_gn"])
def test_a_loss_that_reads_what_the_forward_pass_leaves_is_refused_by_methods_of_several_passes(name, graph):
    model, batch = Weighing(graph).double(), (torch.randn(6, 4).double(), torch.randint(3, (6,)))
    with pytest.raises(NmeError, match=r"depends on parameters directly|reads an attribute that the forward pass"):
        METHODS[name](0.1).backward(model, lambda z, y: CE(z, y) * (1 + model.extra), batch)
    assert model.layer.weight.grad is None


@pytest.mark.parametrize("name", ["sgd", "weight_noise", "grad_norm"])
def test_methods_of_one_pass_take_such_a_loss(name):
    torch.manual_seed(0)
    model, batch = Weighing(True).double(), (torch.randn(6, 4).double(), torch.randint(3, (6,)))

    def within(model, batch):
        z = model(batch[0])
        return z, (batch[1], model.extra)

    found = []
    for loss, forward in (
        (lambda z, y: CE(z, y) * (1 + model.extra), None),
        (lambda z, t: CE(z, t[0]) * (1 + t[1]), within),
    ):
        model.zero_grad()
        METHODS[name](0.1).backward(model, loss, batch, forward=forward)
        found.append(model.layer.weight.grad.clone())
    assert torch.equal(*found)
