"""What a model and a loss keep between calls: it is restored, and has no effect on curvature; compilers have none."""

import copy
from collections import deque
from functools import partial

import pytest
import torch
from small_models import Of, seeded
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from nme.curvature import Curvature
from nme.errors import NmeError

CE = nn.CrossEntropyLoss()
SEQUENCES = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
X, Y = SEQUENCES[:, 0], torch.randint(3, (6,), generator=torch.Generator().manual_seed(2))


def mlp():
    return seeded(lambda: nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)))


def hessian(model, loss, x=X, y=Y):
    """Gradient and dense Hessian of one fresh copy of a model by double backward, in float64."""
    model = copy.deepcopy(model).double()
    parameters = list(model.parameters())
    gradient = torch.autograd.grad(loss(model(x), y), parameters, create_graph=True)
    gradient = torch.cat([g.reshape(-1) for g in gradient])
    rows = [torch.autograd.grad(g, parameters, retain_graph=True) for g in gradient]
    return gradient.detach(), torch.stack([torch.cat([part.reshape(-1) for part in row]) for row in rows])


def is_right(model, loss=CE, x=X, reference=None):
    """Compare with plain autograd of a copy that is used once."""
    gradient, dense = hessian(model, reference or loss, x)
    curvature = Curvature(model, loss, (x, Y))
    found = curvature.products(torch.eye(curvature.size, dtype=curvature.dtype))
    torch.testing.assert_close(curvature.gradient(), gradient, rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(found.hessian, dense, rtol=1e-9, atol=1e-12)
    assert curvature.check() == 1e-4
    return found


def everything(module):
    """All attributes by module, with copies of tensors and entries of containers."""

    def kept(value):
        if isinstance(value, torch.Tensor):
            return id(value), value.dtype, value.detach().clone().flatten().tolist()
        if isinstance(value, dict):
            return {key: kept(one) for key, one in value.items()}
        return [kept(one) for one in value] if isinstance(value, list | tuple | set | deque) else value

    return {name: {key: kept(value) for key, value in vars(m).items()} for name, m in module.named_modules()}


class Averaging(nn.Module):
    """Buffers that are assigned anew in each pass, and used."""

    def __init__(self):
        super().__init__()
        self.net = mlp()
        self.register_buffer("mean", torch.ones(3, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        self.mean = 0.5 * self.mean + 0.5 * x[:, :3].mean(0)
        self.count += 1
        return self.net(x) * self.mean


def recurrent(kind):
    def forward(m, x):
        out, state = m.r(x, m.state)
        m.state = tuple(s.detach() for s in state) if isinstance(state, tuple) else state.detach()
        return m.head(out[:, -1])

    return seeded(lambda: Of(forward, r=kind(5, 3, batch_first=True), head=nn.Linear(3, 3), state=None))


def counted(m, x):
    m.calls += 1
    m.log.append(m.calls)
    m.last.append(x)
    m.shapes.add(tuple(x.shape))
    m.by_name["x"] = x
    return m.net(x)


def with_map(m, x):
    m.map = m.a(x).softmax(1)
    return m.b(m.map)


def with_cache(m, x):
    if "eye" not in m.cache:
        m.cache["eye"] = torch.linspace(0.5, 1, 5)  # in the default dtype
    return m.net(x @ torch.diag(m.cache["eye"]).to(x))


def lazily(m, x):
    if m.product is None:
        m.product = m.a.weight.T @ m.a.weight
    return m.b((x @ m.product).tanh())


def grown(m, x):
    m.scale = nn.Parameter(torch.ones((), dtype=x.dtype), requires_grad=False)
    m.more = nn.Identity()
    return m.more(m.net(x)) * m.scale


STATEFUL = {
    "buffers assigned": (Averaging, X),
    "lstm": (lambda: recurrent(nn.LSTM), SEQUENCES),
    "gru": (lambda: recurrent(nn.GRU), SEQUENCES),
    "counters": (lambda: Of(counted, net=mlp(), calls=0, log=[], last=deque(maxlen=1), shapes=set(), by_name={}), X),
    "attention map": (lambda: Of(with_map, a=mlp(), b=nn.Linear(3, 3).double(), map=None), X),
    "cache": (lambda: Of(with_cache, net=mlp(), cache={}), X),
    "lazy tensor": (
        lambda: seeded(lambda: Of(lazily, a=nn.Linear(5, 5, bias=False), b=nn.Linear(5, 3), product=None)),
        X,
    ),
    "parts made in the pass": (lambda: Of(grown, net=mlp()), X),
}


@pytest.mark.parametrize("name", STATEFUL)
def test_a_stateful_model_starts_each_pass_from_its_own_state(name):
    build, x = STATEFUL[name]
    model = build()
    before = everything(model)
    with torch.backends.mkldnn.flags(enabled=False):
        is_right(model, x=x)
    assert everything(model) == before


def test_a_cache_filled_in_float64_does_not_break_a_float32_model():
    model = Of(lambda m, x: m.net(x @ torch.diag(m.cache.setdefault("scale", torch.ones(5)))), net=mlp().float())
    model.cache = {}
    Curvature(model, CE, (X.float(), Y), dtype=torch.float64).gradient()
    assert model.cache == {}
    model(X.float())


def test_an_error_restores_the_model():
    def fails(m, x):
        m.calls.append(1)
        raise ValueError("no")

    model = Of(fails, net=mlp(), calls=[])
    with pytest.raises(NmeError, match="forward pass fails: no"):
        Curvature(model, CE, (X, Y)).gradient()
    assert model.calls == []


class Normalising(nn.Module):
    """A loss with batch norm in train mode and a moving centre."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(3).double()
        self.register_buffer("centre", torch.zeros(3, dtype=torch.float64))
        self.calls = 0

    def forward(self, z, y):
        self.calls += 1
        value = functional.cross_entropy(self.norm(z) - self.centre, y)
        self.centre.mul_(0.9).add_(z.detach().mean(0))
        return value


def through(function):
    """A decorated function, with a variable that has no value."""
    if function is None:
        unknown = 0

    def called(z, y):
        return function(z, y) if function is not None else unknown

    return called


@pytest.mark.parametrize(
    "around",
    [
        lambda module: module,
        lambda module: lambda z, y: 2 * module(z, y),
        lambda module: partial(lambda own, z, y: own(z, y), module),
        lambda module: module.forward,
        lambda module: through(lambda z, y: sum(module(z, y) for _ in range(1))),
    ],
    ids=["module", "lambda", "partial", "method", "functions in functions"],
)
def test_a_loss_module_is_restored(around):
    module = Normalising()
    before = everything(module)
    is_right(mlp(), around(module), reference=around(copy.deepcopy(module)))
    assert everything(module) == before


def doubled(z, y):
    return 2 * functional.cross_entropy(z, y)


class TestCompilers:
    """``aot_eager`` has no second derivatives, as inductor; compiled losses had G = 0."""

    @pytest.mark.parametrize("form", ["function", "module"])
    def test_compiled_loss(self, form):
        plain = doubled if form == "function" else nn.HuberLoss(delta=0.3)
        y = Y if form == "function" else X[:, :3]
        model = mlp()
        data, u = (X, y), torch.randn(39, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
        found = Curvature(model, torch.compile(plain, backend="aot_eager"), data).products(u)
        expected = Curvature(model, plain, data).products(u)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
        assert found.gauss_newton.norm() > 0
        is_compiled_again = torch.compile(lambda x: x.sin(), backend="aot_eager")
        assert torch.equal(is_compiled_again(X), X.sin())

    def test_compiled_functions_and_methods_of_a_model(self):
        model = mlp()
        _, dense = hessian(nn.Sequential(model, nn.Sigmoid()), CE)
        body = torch.compile(lambda x: model(x).sigmoid(), backend="aot_eager")
        by_function = Of(lambda m, x: body(x), net=model)
        by_method = nn.Sequential(copy.deepcopy(model), nn.Sigmoid())
        by_method[0].forward = torch.compile(by_method[0].forward, backend="aot_eager")
        for compiled in (by_function, by_method):
            curvature = Curvature(compiled, CE, (X, Y))
            eye = torch.eye(curvature.size, dtype=torch.float64)
            torch.testing.assert_close(curvature.products(eye).hessian, dense, rtol=1e-10, atol=1e-13)


class TestLeavesMadeInAPass:
    """A model may differentiate in tensors of its own; weights that it hides are another thing."""

    def test_a_hamiltonian_network(self):
        def forward(m, x):
            x = x.detach().requires_grad_()
            return torch.autograd.grad(m.net(x).square().sum(), x, create_graph=True)[0]

        y = X.flip(0)
        model = Of(forward, net=mlp())
        gradient, dense = hessian(model, nn.MSELoss(), X, y)
        curvature = Curvature(model, nn.MSELoss(), (X, y))
        torch.testing.assert_close(curvature.gradient(), gradient, rtol=1e-10, atol=1e-13)
        found = curvature.products(torch.eye(curvature.size, dtype=torch.float64)).hessian
        torch.testing.assert_close(found, dense, rtol=1e-9, atol=1e-12)
        curvature.check()

    def test_a_leaf_that_opens_a_graph(self):
        is_right(Of(lambda m, x: m.net(x + torch.zeros(1, dtype=x.dtype, requires_grad=True)), net=mlp()))

    def test_a_lasting_leaf_and_copied_weights_are_hidden(self):
        leaf = torch.zeros(1, dtype=torch.float64, requires_grad=True)
        for forward in (lambda m, x: m.net(x + leaf), lambda m, x: copy.deepcopy(m.net)(x)):
            with pytest.raises(NmeError, match=r"a tensor of shape .* that is not a parameter of the model"):
                Curvature(Of(forward, net=mlp()), CE, (X, Y)).gradient()

    def test_chosen_parameters_beside_hidden_ones(self):
        head = nn.Linear(3, 3).double()
        model = Of(lambda m, x: m.heads[0](m.net(x)), net=mlp(), heads=[head])
        gradient, _ = hessian(model, CE)
        found = Curvature(model, CE, (X, Y), parameters="net.*").gradient()
        torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-13)
        with pytest.raises(NmeError, match=r"a tensor of shape \(3(, 3)?,?\) that is not a parameter"):
            Curvature(model, CE, (X, Y)).gradient()

    def test_a_reentrant_checkpoint_is_named(self):
        for grad in (True, False):  # of the input: its weights are missed, or PyTorch refuses
            model = Of(
                lambda m, x, grad=grad: m.b(
                    checkpoint(m.a, x.requires_grad_() if grad else m.c(x), use_reentrant=True)
                ),
                a=nn.Sequential(nn.Linear(5, 5), nn.Tanh()),
                b=nn.Linear(5, 3),
                c=nn.Linear(5, 5),
            ).double()
            with pytest.raises(NmeError, match=r"reentrant.*use_reentrant=False"):
                Curvature(model, CE, (X, Y)).gradient()


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_scripted_models_keep_their_mode():
    model = torch.jit.script(nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)).double())
    Curvature(model, nn.CrossEntropyLoss(), (X, Y)).gradient()
    assert all(module.training for module in model.modules())
