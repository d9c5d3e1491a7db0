"""Each kind of fault planted anew, ambient state, random trees of modules, and size."""

import copy
import subprocess
import sys
from collections import Counter
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_models import Of, normal, seeded
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, Dataset, TensorDataset

from nme.curvature import (
    NME,
    Curvature,
    Hessian,
    frobenius_norm,
    lanczos,
    layers,
    nme_block_norms,
    spectral_density,
    traces,
)
from nme.errors import NmeError

CE = nn.CrossEntropyLoss()


X, Y = normal(8, 5), torch.randint(3, (8,), generator=torch.Generator().manual_seed(2))


def mlp(*middle):
    return seeded(lambda: nn.Sequential(nn.Linear(5, 4), *middle, nn.GELU(), nn.Linear(4, 3)))


def refused(model, message, data=(X, Y), loss=CE, **options):
    with pytest.raises(NmeError, match=message) as raised:
        Curvature(model, loss, data, **options).gradient()
    assert "\n" not in str(raised.value)


class TestWhatIsDifferentiated:
    """Kind 1."""

    def test_weights_in_a_partial(self):
        model = mlp()
        model.register_forward_hook(partial(lambda weight, m, i, z: z @ weight[:3, :3], model[2].weight))
        refused(model, r"the model uses parameter '2\.weight' outside its place in the module")

    def test_a_tensor_that_is_no_parameter(self):
        scale = torch.ones(3, dtype=torch.float64, requires_grad=True)
        model = mlp()
        model.register_forward_hook(lambda m, i, z: z * scale)
        refused(model, r"a tensor of shape \(3,\) that is not a parameter of the model")

    def test_a_cached_copy_of_the_weights(self):
        model = mlp()

        class Cached(nn.Module):
            def __init__(self):
                super().__init__()
                self.net = model
                self.seen = {}

            def forward(self, x):
                weight = self.seen.setdefault("w", self.net[0].weight)  # that of the first pass for ever
                return self.net[2](torch.tanh(functional.linear(x, weight)))

        cached = Cached()
        Curvature(cached, CE, (X, Y)).check()  # the cache is empty before each pass
        cached(X)
        refused(cached, r"net\.0\.weight|a tensor of shape \(4, 5\)")

    def test_a_subclass_of_binary_cross_entropy(self):
        class Scaled(nn.BCEWithLogitsLoss):
            def forward(self, z, y):
                return super().forward(z, y) + z.square().mean()

        model, y = mlp(), functional.one_hot(Y, 3).double()
        ours = Curvature(model, Scaled(), (X, y)).gradient()
        plain = torch.autograd.grad(Scaled()(model(X), y), list(model.parameters()))
        torch.testing.assert_close(ours, torch.cat([g.flatten() for g in plain]), rtol=1e-12, atol=1e-15)


class Noisy(Dataset):
    """Augmentation: other inputs each time."""

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return X[index] + 0.1 * torch.randn(5, dtype=torch.float64), Y[index]


class TestOneFixedOperator:
    """Kind 2."""

    @pytest.mark.parametrize(
        ("model", "data", "options"),
        [
            (mlp(), DataLoader(Noisy(), batch_size=4), {}),
            (mlp(), DataLoader(TensorDataset(X, Y), batch_size=3, shuffle=True, drop_last=True), {}),
            (
                mlp(nn.BatchNorm1d(4)),
                DataLoader(TensorDataset(X, Y), batch_size=4, shuffle=True),
                {"batch_norm": "train"},
            ),
            (Of(lambda m, x: m.net(functional.feature_alpha_dropout(x, 0.5, True)), net=mlp()), (X, Y), {}),
            (Of(lambda m, x: m.net(x + torch.rand_like(x)), net=mlp()), [(X, Y), (X, Y)], {}),
        ],
        ids=["augmentation", "drop_last", "train", "alpha dropout", "noise"],
    )
    def test_changes(self, model, data, options):
        torch.manual_seed(0)
        refused(model, "the operator is not fixed|draw random numbers", data, **options)
        unchecked = Curvature(model, CE, data, check=False, **options)
        unchecked.gradient()  # may be switched off

    def test_state_outside_of_buffers(self):
        count = []

        def forward(m, x):
            count.append(1)
            return m.net(x) * len(count)

        refused(Of(forward, net=mlp()), "its gradient|the operator is not fixed")

    def test_each_batch_is_loaded_once_a_product(self):
        loads = Counter()

        class Watched(Dataset):
            def __len__(self):
                return 8

            def __getitem__(self, index):
                loads[index] += 1
                return X[index], Y[index]

        curvature = Curvature(mlp(), CE, DataLoader(Watched(), batch_size=3), check=False)
        for product in range(1, 4):
            curvature.products(normal(curvature.size))
            assert set(loads.values()) == {product}
        loads.clear()
        checked = Curvature(mlp(), CE, DataLoader(Watched(), batch_size=3))
        checked.products(normal(checked.size))
        assert set(loads.values()) == {3}  # two for the check
        nme_block_norms(checked, layers(checked.network.model), 4, torch.Generator())
        assert set(loads.values()) == {4}
        spectral_density(Hessian(checked), 3, 5, torch.Generator())
        assert set(loads.values()) == {9}


class TwiceWrong(torch.autograd.Function):
    """x³ with the right derivative, whose own derivative is wrong by a factor, but symmetric."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, y):
        (x,) = ctx.saved_tensors
        return y * 3 * (x.detach() * x)


class OnceOnly(TwiceWrong):
    """Whose derivative is computed from detached values."""

    @staticmethod
    def backward(ctx, y):
        (x,) = ctx.saved_tensors
        return y * 3 * x.detach() ** 2


class TestWrongSecondDerivatives:
    """Kind 3."""

    @pytest.mark.parametrize("function", [TwiceWrong, OnceOnly])
    def test_of_a_custom_function(self, function):
        model = Of(lambda m, x: m.b(function.apply(m.a(x))), a=nn.Linear(5, 4), b=nn.Linear(4, 3)).double()
        curvature = Curvature(model, CE, (X, Y))
        curvature.gradient()  # symmetric: only finite differences see it
        with pytest.raises(NmeError, match=r"Hv differs from finite differences .*second derivatives.*Linear"):
            curvature.check()

    @pytest.mark.parametrize("parametrized", [True, False])
    def test_of_weight_norm(self, parametrized):
        norm = nn.utils.parametrizations.weight_norm if parametrized else nn.utils.weight_norm
        model = seeded(lambda: nn.Sequential(norm(nn.Linear(5, 4)), nn.Tanh(), norm(nn.Linear(4, 3))))
        refused(model, "[HN] is not symmetric.*second derivatives of an operation are wrong")

    def test_kinks_are_no_false_alarm(self):
        model = seeded(
            lambda: nn.Sequential(nn.Linear(5, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 3))
        )
        Curvature(model, CE, (X, Y)).check()
        Curvature(copy.deepcopy(model).float(), CE, (X, Y)).check()


def ambient(name):
    return {
        "autocast": lambda: torch.autocast("cpu", torch.bfloat16),
        "inference": torch.inference_mode,
        "no_grad": torch.no_grad,
        "device": lambda: torch.device("meta"),
    }[name]()


class TestAmbientState:
    """Kind 5."""

    @pytest.mark.parametrize("state", ["autocast", "inference", "no_grad", "device"])
    @pytest.mark.parametrize("batches", [1, 2])
    def test_changes_nothing(self, state, batches):
        model = mlp(nn.LayerNorm(4)).float()
        data = [(X.float(), Y)] * batches
        plain = Curvature(model, CE, data)
        u = torch.randn(plain.size)
        expected = [*plain.products(u), Hessian(plain) @ u, plain.gradient()]
        before = Curvature(model, CE, data)
        before.gradient()
        with ambient(state):
            inside = Curvature(model, CE, data)
            for curvature in (inside, before):  # before: its graph was made outside
                found = [*curvature.products(u), Hessian(curvature) @ u, curvature.gradient()]
                assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
            estimate = traces(inside, 2, torch.Generator("cpu").manual_seed(0))["H"].value
            lanczos(NME(inside), 3, u)
        assert estimate == traces(plain, 2, torch.Generator().manual_seed(0))["H"].value

    def test_precision_of_matrix_products(self):
        model, data = mlp().float(), (X.float(), Y)
        u = torch.randn(Curvature(model, CE, data).size)
        expected = Curvature(model, CE, data).products(u)
        before = torch.get_float32_matmul_precision()
        try:
            torch.set_float32_matmul_precision("medium")
            own = torch.backends.mkldnn.matmul.fp32_precision
            found = Curvature(model, CE, data).products(u)
            assert torch.backends.mkldnn.matmul.fp32_precision == own
        finally:
            torch.set_float32_matmul_precision(before)
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))

    @pytest.mark.parametrize("mode", ["eval", "train"])
    def test_checkpoints_leave_running_statistics_and_modes(self, mode):
        norm = nn.BatchNorm1d(4)
        body = nn.Sequential(nn.Linear(5, 4), norm, nn.Dropout(0.5), nn.Tanh())
        model = Of(lambda m, x: m.b(checkpoint(m.a, x, use_reentrant=False)), a=body, b=nn.Linear(4, 3)).double()
        plain = nn.Sequential(*body, model.b)
        before = {name: t.clone() for name, t in model.state_dict().items()}
        curvature = Curvature(model, CE, (X, Y), batch_norm=mode)
        u = normal(curvature.size)
        torch.testing.assert_close(
            curvature.products(u).hessian, Curvature(plain, CE, (X, Y), batch_norm=mode).products(u).hessian
        )
        assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
        assert all(module.training for module in model.modules())

    def test_attributes_that_a_pass_writes_are_restored(self):
        def forward(m, x):
            m.seen = m.net(x)
            return m.seen

        model = Of(forward, net=mlp())
        model.seen = torch.zeros(1)
        Curvature(model, CE, (X, Y)).gradient()
        assert torch.equal(model.seen, torch.zeros(1))


class TestOrdinaryData:
    """Kind 6; forms of data are in test_curvature_cases."""

    def test_parameters_by_tensor_and_module(self):
        model = mlp()
        assert Curvature(model, CE, (X, Y), parameters=model[2]).names == ["2.weight", "2.bias"]
        assert Curvature(model, CE, (X, Y), parameters=[model[2].bias, "0.*"]).names == ["0.weight", "0.bias", "2.bias"]
        refused(
            model, r"a Parameter of shape \(2, 2\) is given as parameters", parameters=nn.Parameter(torch.ones(2, 2))
        )
        refused(model, "parameters has a int", parameters=[3])

    def test_infinite_inputs(self):
        infinite = torch.where(torch.arange(8)[:, None] == 3, torch.inf, X)
        for data in ((infinite, Y), [(X, Y), (infinite, Y)]):
            refused(mlp(), r"the loss is nan", data)
            unchecked = Curvature(mlp(), CE, data, check=False)
            start, stream = normal(unchecked.size), torch.Generator()
            with pytest.raises(NmeError, match="not finite"):
                traces(unchecked, 2, stream)
            with pytest.raises(NmeError, match="not finite"):
                frobenius_norm(NME(unchecked), 2, stream)
            with pytest.raises(NmeError, match="not finite"):
                lanczos(Hessian(unchecked), 3, start)

    def test_norms_of_chosen_blocks(self):
        model = mlp()
        curvature = Curvature(model, CE, [(X[:3], Y[:3]), (X[3:], Y[3:])])
        all_blocks = nme_block_norms(curvature, layers(model), 9, torch.Generator().manual_seed(0))
        one = nme_block_norms(curvature, {"mine": ["0.weight", "0.bias"]}, 9, torch.Generator().manual_seed(0))
        assert one["mine"].value == pytest.approx(all_blocks["0"].value, rel=1e-12)
        with pytest.raises(NmeError, match=r"block 'a': unknown parameter '0\.wieght'"):
            nme_block_norms(curvature, {"a": ["0.wieght"]}, 1, torch.Generator())
        with pytest.raises(NmeError, match="blocks overlap"):
            nme_block_norms(curvature, {"a": ["0.bias"], "b": ["0.bias"]}, 1, torch.Generator())

    def test_compiled_models(self):
        model = mlp()
        compiled = nn.Sequential(torch.compile(model, backend="eager"))
        u = normal(Curvature(model, CE, (X, Y)).size)
        assert torch.equal(
            Curvature(compiled, CE, (X, Y)).products(u).hessian, Curvature(model, CE, (X, Y)).products(u).hessian
        )


# ------------------------------------------------------------------ trees

WIDTH = 4
LAYERS = {
    "linear": lambda: nn.Linear(WIDTH, WIDTH),
    "bilinear-like": lambda: Of(lambda m, x: m.a(x) * m.b(x), a=nn.Linear(WIDTH, WIDTH), b=nn.Linear(WIDTH, WIDTH)),
    "conv": lambda: Of(lambda m, x: m.c(x[:, None])[:, 0], c=nn.Conv1d(1, 1, 3, padding=1)),
    "transposed": lambda: Of(lambda m, x: m.c(x[:, None])[:, 0], c=nn.ConvTranspose1d(1, 1, 3, padding=1)),
    "batch norm": lambda: nn.BatchNorm1d(WIDTH),
    "layer norm": lambda: nn.LayerNorm(WIDTH),
    "group norm": lambda: nn.GroupNorm(1, WIDTH),
    "rms norm": lambda: nn.RMSNorm(WIDTH),
    "attention": lambda: Of(
        lambda m, x: m.a(x[:, None], x[:, None], x[:, None])[0][:, 0], a=nn.MultiheadAttention(4, 2)
    ),
    "gru": lambda: Of(lambda m, x: m.r(x[:, None])[0][:, 0], r=nn.GRU(WIDTH, WIDTH, batch_first=True)),
    "lstm": lambda: Of(lambda m, x: m.r(x[:, None])[0][:, 0], r=nn.LSTM(WIDTH, WIDTH, batch_first=True)),
    "prelu": lambda: nn.PReLU(),
    "dropout": lambda: nn.Dropout(0.5),
    "identity": nn.Identity,
    "softmax": lambda: nn.Softmax(1),
    "gelu": nn.GELU,
    "gelu tanh": lambda: nn.GELU("tanh"),
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
    "softsign": nn.Softsign,
    "mish in place": lambda: nn.Mish(inplace=True),
    "silu in place": lambda: nn.SiLU(inplace=True),
    "elu in place": lambda: nn.ELU(inplace=True),
    "celu in place": lambda: nn.CELU(inplace=True),
    "selu in place": lambda: nn.SELU(inplace=True),
    "relu in place": lambda: nn.ReLU(inplace=True),
    "leaky relu in place": lambda: nn.LeakyReLU(0.1, inplace=True),
    "hardswish in place": lambda: nn.Hardswish(inplace=True),
    "log sigmoid": nn.LogSigmoid,
    "tanhshrink": nn.Tanhshrink,
}


class Residual(nn.Module):
    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return x + self.inner(x.clone())


class Reused(Residual):
    def forward(self, x):
        return self.inner(0.5 * self.inner(x.clone()))


LEAVES = st.sampled_from(sorted(LAYERS))
TREES = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(tuple), st.tuples(st.sampled_from([Residual, Reused]), inner)
    ),
    max_leaves=4,
)


def grown(tree):
    if isinstance(tree, str):
        return LAYERS[tree]()
    if isinstance(tree[0], type):
        return tree[0](grown(tree[1]))
    return nn.Sequential(*map(grown, tree))


def plain_hessian_product(model, u, mode):
    """Hv on the model's own parameters by double backward; None if PyTorch cannot."""
    model.eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d) and mode == "train":
            module.train()
    parameters, options = list(model.parameters()), {"allow_unused": True, "materialize_grads": True}
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            gradient = torch.autograd.grad(CE(model(X), Y), parameters, create_graph=True, **options)
            found = torch.autograd.grad(torch.cat([g.reshape(-1) for g in gradient]) @ u, parameters, **options)
    except RuntimeError:  # in-place layers one after the other
        return None
    return torch.cat([e.reshape(-1) for e in found])


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(tree=TREES, mode=st.sampled_from(["eval", "train"]))
def test_random_trees_of_modules(tree, mode):
    with torch.random.fork_rng(devices=[]), torch.backends.mkldnn.flags(enabled=False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(5, WIDTH), grown(tree), nn.Linear(WIDTH, 3)).double()
        curvature = Curvature(model, CE, (X, Y), batch_norm=mode)
        u = normal(curvature.size)
        expected = plain_hessian_product(copy.deepcopy(model), u, mode)
        if expected is None:
            with pytest.raises(NmeError, match=r"cannot be differentiated|no second derivative"):
                curvature.products(u)
            return
        found = curvature.products(u)
        assert (found.hessian - expected).norm() <= 1e-9 * max(expected.norm(), 1e-3)
        curvature.check()


def test_trees_have_enough_layers():
    assert len(LAYERS) >= 25


# ------------------------------------------------------------------ size

LARGE = """
import resource, torch
from torch import nn
from nme.curvature import Curvature
torch.set_num_threads(1)
model = nn.Sequential(nn.Linear(1000, 7000), nn.GELU(), nn.Linear(7000, 6000), nn.GELU(), nn.Linear(6000, 10))
curvature = Curvature(model, nn.CrossEntropyLoss(), (torch.randn(4, 1000), torch.randint(10, (4,))))
assert curvature.size > 49e6
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
v = torch.randn(curvature.size)
h, g, n = curvature.products(v)
assert torch.equal(h, g + n) and h.norm() > 0
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 4 / curvature.size)
"""


@pytest.mark.slow
def test_a_model_of_50_million_parameters():
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, check=True, timeout=600)
    assert float(done.stdout) < 20, done.stdout  # vectors of the size of the parameters, the check included
