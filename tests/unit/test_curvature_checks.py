"""Checks of ``Curvature``: what they find, converged models that are no fault, and the returned size of an error."""

import pytest
import torch
from small_models import Of, labels, normal, seeded
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from nme.curvature import Curvature, rounding
from nme.errors import NmeError

CE = nn.CrossEntropyLoss()


X, Y = normal(6, 5), labels(6)


def mlp(*middle, activation=nn.Tanh):
    return seeded(lambda: nn.Sequential(nn.Linear(5, 4), *middle, activation(), nn.Linear(4, 3)))


def refused(message, model, loss=CE, data=(X, Y), **options):
    with pytest.raises(NmeError, match=message) as raised:
        Curvature(model, loss, data, **options).check()
    assert "\n" not in str(raised.value)


# ------------------------------------------------------------------ the loss


class TestALossThatReadsParameters:
    """H would lack the term: silently, where its gradient is small or 0."""

    @pytest.mark.parametrize("strength", [1.0, 1e-12])
    def test_weight_decay(self, strength):
        model = mlp()

        def decay(z, y):
            return functional.cross_entropy(z, y) + strength * sum(p.square().sum() for p in model.parameters())

        refused(r"the loss reads parameter '\d\.\w+' of the model", model, decay)

    def test_at_the_centre_of_the_penalty(self):
        model = mlp().float()
        start = model[2].weight.detach().clone()

        def pull(z, y):
            return functional.cross_entropy(z, y) + (model[2].weight - start).square().sum()

        refused(r"the loss reads parameter '2\.weight' of the model", model, pull, (X.float(), Y))

    def test_in_a_module_that_has_the_model(self):
        model = mlp()
        loss = Of(lambda m, z, y: functional.cross_entropy(z, y) + m.model[0].bias.norm(), model=model)
        refused(r"the loss reads parameter '0\.bias' of the model", model, loss)

    def test_parameters_of_its_own_or_not_chosen(self):
        model, scale = mlp(), nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
        for loss, chosen in (
            (lambda z, y: functional.cross_entropy(scale * z, y), "*"),
            (lambda z, y: functional.cross_entropy(z + model[2].bias, y), "0.*"),
        ):
            parameters = [p for n, p in model.named_parameters() if chosen == "*" or n.startswith("0.")]
            plain = torch.autograd.grad(loss(model(X), Y), parameters)
            found = Curvature(model, loss, (X, Y), parameters=chosen)
            torch.testing.assert_close(found.gradient(), torch.cat([g.flatten() for g in plain]))
            found.check()

    def test_costs_one_evaluation_of_the_loss(self):
        count = []

        def loss(z, y):
            count.append(1)
            return functional.cross_entropy(z, y)

        Curvature(mlp(), loss, (X, Y), check=False).gradient()
        assert len(count) == 1
        count.clear()
        Curvature(mlp(), loss, (X, Y)).gradient()
        assert len(count) == 8  # residual, product and value in two passes; plain differentiation; and this one


# ------------------------------------------------------------------ converged models


def least_squares(dtype):
    """A linear model at its optimum, with gradient 0 up to rounding."""
    x, y = normal(40, 5), normal(40, 2, seed=3)
    solution = torch.linalg.lstsq(torch.cat([x, torch.ones(40, 1, dtype=torch.float64)], 1), y).solution
    model = nn.Linear(5, 2, dtype=dtype)
    with torch.no_grad():
        model.weight.copy_(solution[:5].T)
        model.bias.copy_(solution[5])
    return model, x.to(dtype), y.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shuffled", [False, True])
def test_a_model_at_its_optimum(dtype, shuffled):
    model, x, y = least_squares(dtype)
    data = DataLoader(TensorDataset(x, y), 8, shuffle=True) if shuffled else (x, y)
    curvature = Curvature(model, nn.MSELoss(), data)
    assert curvature.gradient().norm() < 1e3 * torch.finfo(dtype).eps
    found = curvature.products(torch.eye(12, dtype=dtype)).hessian
    inputs = torch.cat([x.double(), torch.ones(40, 1, dtype=torch.float64)], 1)
    trace = 2 * float(inputs.square().sum()) / 40  # of the mean over 40·2 entries, for 2 outputs
    assert float(found.trace()) == pytest.approx(trace, rel=1e-6)
    assert curvature.check() == 1e-4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_interpolating_model(dtype):
    """Its residual is rounding of the output, here of 10⁶, and other in batches of another size."""
    model = seeded(lambda: nn.Sequential(nn.Linear(5, 60), nn.Tanh(), nn.Linear(60, 2)))
    x, y = normal(40, 5), normal(40, 2, seed=3)
    with torch.no_grad():
        features = torch.cat([model[:2](x), torch.ones(40, 1, dtype=torch.float64)], 1)
        solution = torch.linalg.lstsq(features, y, driver="gelsd").solution
        model[2].weight.copy_(1e6 * solution[:60].T)
        model[2].bias.copy_(1e6 * solution[60])
    model, x = model.to(dtype), x.to(dtype)
    y = model(x).detach()  # to the last bit, for batches of 40
    data = DataLoader(TensorDataset(x, y), 7, shuffle=True)
    assert Curvature(model, nn.MSELoss(), data).check() <= (2e-3 if dtype == torch.float32 else 1e-4)


def test_masked_logits():
    """Logits of −∞ must not switch off a comparison."""
    mask = torch.tensor([0.0, 0.0, 0.0, -torch.inf], dtype=torch.float64)
    model = Of(lambda m, x: m.net(x) + mask, net=seeded(lambda: nn.Linear(5, 4)))
    assert Curvature(model, CE, (X, Y)).check() == 1e-4
    model.net.weight.register_hook(lambda g: 2 * g)
    refused("a hook of the parameter", model)


def test_a_logistic_regression_at_its_optimum():
    x, y = normal(256, 5).float(), labels(256)
    model = seeded(lambda: nn.Linear(5, 3)).float()
    steps = torch.optim.LBFGS(model.parameters(), max_iter=300, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def closure():
        steps.zero_grad()
        loss = CE(model(x), y)
        loss.backward()
        return loss

    steps.step(closure)
    assert model.weight.grad.norm() < 1e-5
    Curvature(model, CE, DataLoader(TensorDataset(x, y), 16, shuffle=True)).check()


def deep(layers):
    """A deep network at initialisation, which makes rounding errors larger by a factor with every batch norm."""
    block = lambda: (nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16))  # noqa: E731
    return seeded(lambda: nn.Sequential(nn.Linear(5, 16), *[part for _ in range(layers) for part in block()])).float()


class TestRounding:
    """Networks in float32 that turn rounding errors of 10⁻⁷ into per cent."""

    DATA = normal(8, 5).float(), labels(8, classes=16)

    @pytest.mark.parametrize("layers", [35, 50])
    def test_is_no_fault_of_a_right_model(self, layers):
        assert Curvature(deep(layers), CE, self.DATA, dtype=torch.float64, batch_norm="train").check() == 1e-4

    def test_beyond_measure_is_refused(self):
        """No digit of a gradient or product in float32 is right."""
        refused("rounding errors of float32 change", deep(60), data=self.DATA, batch_norm="train")

    def test_of_a_product(self):
        double = normal(50)
        other = normal(50, seed=3)
        other *= double.norm() / other.norm()
        assert rounding.of_products(double + 0.01 * other, double) == pytest.approx(0.01)
        assert rounding.of_products(1e-20 * other, 1e-20 * double) < 1e-6, "underflow is no rounding"
        with pytest.raises(NmeError, match=r"change Hv by 6\.0% of its norm"):
            rounding.of_products(double + 0.06 * other, double)

    def test_of_a_gradient(self):
        double = normal(50)
        rounding.of_gradient(1.01 * double, double, lambda: (0.0, 0.0))
        rounding.of_gradient(1e-6 * double, 0 * double, lambda: (1.0, 0.0))
        with pytest.raises(NmeError, match=r"change the gradient by 6\.0% of its norm"):
            rounding.of_gradient(1.06 * double, double, lambda: (0.0, 0.0))

    def test_of_each_parameter(self):
        """Errors of float32 are rounding only where float64 is repeatable."""
        double, calls = [normal(3), normal(4)], []

        def recomputed(dtype):
            calls.append(dtype)
            if dtype == torch.float32:
                return [(1.01 * part).float() for part in double]
            return [double[0], double[1] * (1 + 0.01 * len(calls))]

        left = rounding.not_explained({0: 0.02, 1: 0.02}, double, ["a", "b"], recomputed)
        assert left == {1: 0.02}
        with pytest.raises(NmeError, match=r"change the gradient of parameter 'a' by \d+\.\d%"):
            rounding.not_explained({0: 0.05 * float(double[0].norm()) + 1e-3}, double, ["a", "b"], recomputed)
        assert rounding.not_explained({0: 1.0}, double, ["a", "b"], lambda dtype: None) == {0: 1.0}

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_fault_is_none_of_rounding(self, dtype):
        model = deep(35)
        model[0].weight.register_hook(lambda g: 1.5 * g)
        refused(
            r"parameter '0\.weight'.*a hook of|rounding errors of float32 change the gradient of parameter '0\.weight'",
            model,
            data=self.DATA,
            dtype=dtype,
            batch_norm="train",
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_faults_of_a_model_at_its_optimum_are_found(dtype):
    model, x, y = least_squares(dtype)
    scale = [1.0]

    def drifting(m, inputs):
        scale[0] *= 1 + 1e-3
        return m.net(inputs) * scale[0]

    refused("its gradient|the operator is not fixed", Of(drifting, net=model), nn.MSELoss(), (x, y))
    hidden = Of(
        lambda m, inputs: functional.linear(inputs, m.weights[0], m.net.bias), net=model, weights=[model.weight]
    )
    refused(r"the model uses parameter 'net\.weight' outside its place", hidden, nn.MSELoss(), (x, y))
    dropped = DataLoader(TensorDataset(x, y), 7, shuffle=True, drop_last=True)
    refused("the operator is not fixed", model, nn.MSELoss(), dropped)


# ------------------------------------------------------------------ finite differences


class Cubic(torch.autograd.Function):
    """x³ with the right derivative, whose own derivative is wrong, but symmetric."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx, y):
        (x,) = ctx.saved_tensors
        return y * 3 * (x.detach() * x)


class RootMeanSquare(nn.Module):
    """Normalisation in float32, whatever the model's dtype."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))

    def forward(self, x):
        wide = x.float()
        wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-6)
        return self.weight * wide.to(x.dtype)


def in_float32(inner=None):
    """Models that compute in float32, wholly or in parts."""
    constant = torch.eye(5)
    inner = inner or mlp()
    return {
        "norm": nn.Sequential(nn.Linear(5, 4), RootMeanSquare(), inner[1], inner[2]).float(),
        "softmax": Of(lambda m, x: m.net[2](m.net[:2](x).softmax(-1, torch.float32).to(x)), net=inner).float(),
        "output": Of(lambda m, x: m.net(x).float(), net=inner).float(),
        "constant": Of(lambda m, x: m.net(x @ constant), net=inner).float(),
        "cast": Of(lambda m, x: m.net(x.float()), net=inner).float(),
        "waves": Of(lambda m, x: m.net[1:]((30 * m.net[0](x).float()).sin().to(x)), net=inner).float(),
    }


@pytest.mark.parametrize("name", in_float32())
def test_float32_in_a_model_is_no_false_alarm(name):
    model = in_float32()[name]
    assert Curvature(model, CE, (X, Y)).check() < 0.05
    if name not in ("constant", "cast"):
        assert Curvature(model.double(), CE, (X, Y)).check() < 0.05


@pytest.mark.parametrize("name", in_float32())
def test_wrong_second_derivatives_are_found_in_spite_of_float32(name):
    cubic = Of(lambda m, x: Cubic.apply(x))
    inner = seeded(lambda: nn.Sequential(nn.Linear(5, 4), cubic, nn.Linear(4, 3)))
    refused("Hv differs from finite differences", in_float32(inner)[name])


def test_kinks_and_float32_together_are_undecided():
    net = seeded(lambda: nn.Sequential(nn.Linear(5, 300), nn.ReLU(), nn.Linear(300, 300), nn.ReLU(), nn.Linear(300, 3)))
    model = Of(lambda m, x: m.net(x.float()), net=net.float())
    assert Curvature(model, CE, (normal(50, 5), labels(50))).check() > 1e-3  # what it returns shows that


@pytest.mark.parametrize("loss", [nn.NLLLoss(torch.ones(3)), lambda z, y: functional.nll_loss(z, y, torch.ones(3))])
def test_a_loss_with_constants_in_float32(loss):
    model = nn.Sequential(*mlp(), nn.LogSoftmax(1)).float()
    assert Curvature(model, loss, (X, Y)).check() < 0.05


def test_embeddings():
    tokens = labels(4, 5, classes=7)
    tokens[0, 0] = 0

    def build(**options):
        return seeded(
            lambda: Of(lambda m, t: m.out(m.e(t).mean(1).tanh()), e=nn.Embedding(7, 4, **options), out=nn.Linear(4, 3))
        )

    assert Curvature(build(padding_idx=0), CE, (tokens, labels(4))).check() == 1e-4
    model = build(max_norm=1.0)
    before = model.e.weight.clone()
    refused(r"changes parameter 'e\.weight' \(max_norm\?\)", model, data=(tokens, labels(4)))
    assert torch.equal(model.e.weight, before)


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, y):
        return -y


@pytest.mark.parametrize(
    "function", [lambda h: h + (h.round() - h).detach(), lambda h: h * h.detach(), lambda h: Reversed.apply(h.tanh())]
)
def test_gradients_that_are_not_the_loss_s_by_design(function):
    net = mlp()
    refused(
        r"in torch\.float64.*\.detach\(\), straight-through, gradient reversal",
        Of(lambda m, x: m.net[2](function(m.net[0](x))), net=net),
    )


# ------------------------------------------------------------------ names, modes, messages


def test_a_name_with_brackets():
    model = Of(lambda m, x: x @ m.d["w[0]"], d=nn.ParameterDict({"w[0]": normal(5, 3), "w0": normal(5, 3)}))
    curvature = Curvature(model, CE, (X, Y), parameters="d.w[0]")
    assert curvature.names == ["d.w[0]"]
    curvature.check()


class Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    @once_differentiable
    def backward(ctx, y):
        return y * ctx.saved_tensors[0].cos()


def under_autocast(m, x):
    with torch.autocast("cpu", torch.bfloat16):
        return m.net(x)


def made_in_inference_mode():
    with torch.inference_mode():
        return mlp()


def hooked():
    model = mlp()
    model[0].weight.register_hook(lambda g: 2 * g)
    return model


class UsedUp(IterableDataset):
    def __init__(self):
        self.examples = iter([(X[k], Y[k]) for k in range(6)])

    def __iter__(self):
        return self.examples


@pytest.mark.parametrize(
    ("message", "model", "loss", "data"),
    [
        ("Function of the model is once_differentiable", Of(lambda m, x: Once.apply(m.net(x)), net=mlp()), CE, (X, Y)),
        ("Function of the loss is once_differentiable", mlp(), lambda z, y: Once.apply(z).square().mean(), (X, Y)),
        ("computes in torch.bfloat16: autocast", Of(under_autocast, net=mlp().float()), CE, (X.float(), Y)),
        (r"'0\.weight' of the model was made in inference mode", made_in_inference_mode(), CE, (X, Y)),
        (r"\(no_grad or inference_mode", Of(torch.no_grad()(lambda m, x: m.net(x)), net=mlp()), CE, (X, Y)),
        (r"\(no_grad or inference_mode", Of(torch.inference_mode()(lambda m, x: m.net(x)), net=mlp()), CE, (X, Y)),
        ("a hook of the parameter changes its gradient", hooked(), CE, (X, Y)),
        ("do model or loss draw random numbers", mlp(), lambda z, y: CE(functional.dropout(z, 0.5), y), (X, Y)),
        (r"data has no examples \(an iterator that is used up\?\)", mlp(), CE, DataLoader(UsedUp(), 3)),
    ],
)  # fmt: skip
def test_messages(message, model, loss, data):
    refused(message, model, loss, data)


class Centred(nn.Module):
    def forward(self, x):
        return x - x.mean(0)


def test_every_batch_that_is_cut_is_checked():
    model = nn.Sequential(nn.Linear(5, 4), Centred(), nn.Tanh(), nn.Linear(4, 3)).double()
    batches = [(X[:3], Y[:3]), (normal(8, 5), labels(8))]  # only the second is cut
    with pytest.raises(NmeError, match="depend on which examples are computed together"):
        Curvature(model, CE, batches, micro_batch=4).gradient()


def test_who_opts_out_of_checks_computes_after_a_failed_one():
    model = nn.utils.weight_norm(nn.Linear(5, 3)).double()
    curvature = Curvature(model, CE, (X, Y), check=False)
    with pytest.raises(NmeError):
        curvature.check()
    assert curvature.gradient().isfinite().all()


def test_parameters_keep_their_gradient_nodes():
    """``DistributedDataParallel`` hangs its hooks on them, and PyTorch makes new ones with another dtype."""
    model = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3))
    nodes = [p.view_as(p).grad_fn.next_functions[0][0] for p in model.parameters()]
    Curvature(model, CE, (X.float(), Y), dtype=torch.float64).check()
    assert [p.view_as(p).grad_fn.next_functions[0][0] for p in model.parameters()] == nodes
