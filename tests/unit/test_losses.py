"""Losses against PyTorch's: value, residual and Hessian by autograd in float64, and their accuracy in float32."""

from functools import partial
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional

from nme.derivatives.any_loss import SeveralBatches
from nme.derivatives.cross_entropy import cross_entropy
from nme.derivatives.losses import AnyLoss, BinaryCrossEntropy, CrossEntropy, SquaredError, loss_of
from nme.errors import NmeError

B, C = 6, 4
WEIGHTS = torch.tensor([0.5, 1.5, 1.0, 0.7], dtype=torch.float64)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def labels(*shape):
    return torch.randint(C, shape, generator=torch.Generator().manual_seed(1))


def with_ignored(*shape):
    found = labels(*shape)
    found.view(-1)[1::3] = -100
    return found


TARGETS = {
    "labels": ((B, C), labels(B)),
    "ignored": ((B, C), with_ignored(B)),
    "probabilities": ((B, C), normal(B, C, seed=2).softmax(1)),
    "pixels": ((B, C, 2, 3), with_ignored(B, 2, 3)),
    "pixels' probabilities": ((B, C, 2, 3), normal(B, C, 2, 3, seed=2).softmax(1)),
    "tokens": ((B, C, 5), labels(B, 5)),
    "one example": ((C,), torch.tensor(2)),
}


def derivatives(value, z, v):
    """Value, gradient and Hessian times v of a function, by autograd."""
    z = z.clone().requires_grad_()
    loss = value(z)
    if not loss.requires_grad:
        return loss, torch.zeros_like(z), torch.zeros_like(z)
    (gradient,) = torch.autograd.grad(loss, z, create_graph=True)
    if not gradient.requires_grad:
        return loss, gradient, torch.zeros_like(z)
    return loss, gradient, torch.autograd.grad((gradient * v).sum(), z)[0]


def assert_is(ours, plain, z, target):
    v = normal(*z.shape, seed=3)
    expected = derivatives(lambda z: plain(z, target), z, v)
    found = derivatives(lambda z: ours.value(z, target), z, v)
    residual = derivatives(lambda z: (ours.residual(z, target) * v).sum(), z, v)[:2]  # its gradient is Hv
    closed = ours.residual(z, target), ours.hessian_product(z, target, v)
    ours.check(z, target)
    for actual, wanted in zip((*found, residual[1], *closed), (*expected, expected[2], *expected[1:]), strict=True):
        assert actual.shape == wanted.shape
        torch.testing.assert_close(actual, wanted, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("reduction", "smoothing", "weights"), list(product(("mean", "sum"), (0.0, 0.1), (None, WEIGHTS)))
)
def test_cross_entropy(target, reduction, smoothing, weights):
    options = {"reduction": reduction, "label_smoothing": smoothing, "weight": weights}
    shape, y = TARGETS[target]
    plain = nn.CrossEntropyLoss(**options)
    for given in (plain, partial(functional.cross_entropy, **options)):
        ours = loss_of(given)
        assert type(ours) is CrossEntropy
        assert_is(ours, plain, normal(*shape), y)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_entrywise_losses(reduction):
    positive = torch.tensor([1.0, 2.0, 0.3, 1.0])
    squared, binary = nn.MSELoss(reduction=reduction), nn.BCEWithLogitsLoss(reduction=reduction)
    weighted = nn.BCEWithLogitsLoss(WEIGHTS, reduction=reduction, pos_weight=positive.double())
    for plain, kind in ((squared, SquaredError), (binary, BinaryCrossEntropy), (weighted, BinaryCrossEntropy)):
        for shape in ((B, C), (B, 2, C)):
            ours = loss_of(plain)
            assert type(ours) is kind
            assert_is(ours, plain, normal(*shape), normal(*shape, seed=2).sigmoid())


class Focal(nn.CrossEntropyLoss):
    def forward(self, z, y):
        p = z.softmax(1).gather(1, y[:, None])[:, 0]
        return -((1 - p) ** 2 * p.log()).mean()


def test_any_other_callable_is_differentiated():
    patched, hooked = nn.CrossEntropyLoss(), nn.CrossEntropyLoss()
    patched.forward = lambda z, y: functional.cross_entropy(2 * z, y)
    hooked.register_forward_hook(lambda _, arguments, output: 3 * output)
    linear = lambda z, y: z.gather(1, y[:, None]).mean()  # noqa: E731
    for plain in (Focal(), nn.NLLLoss(), patched, hooked, linear):
        ours = loss_of(plain)
        assert type(ours) is AnyLoss
        assert_is(ours, plain, normal(B, C), labels(B))


def test_losses_of_batches_combine_to_that_of_the_whole():
    z, y, soft = normal(B, C), with_ignored(B), normal(B, C, seed=2).softmax(1)
    for plain, target in (
        (nn.CrossEntropyLoss(), y),
        (nn.CrossEntropyLoss(WEIGHTS, label_smoothing=0.1), y),
        (nn.CrossEntropyLoss(WEIGHTS), soft),
        (nn.MSELoss(), soft),
        (nn.BCEWithLogitsLoss(pos_weight=WEIGHTS), soft),
        (Focal(), labels(B)),
    ):
        ours = loss_of(plain)
        parts = [(ours.weight(*part), ours.value(*part)) for part in ((z[:2], target[:2]), (z[2:], target[2:]))]
        assert ours.reduction == "mean"
        combined = sum(w * value for w, value in parts) / sum(w for w, _ in parts)
        torch.testing.assert_close(combined, plain(z, target), rtol=1e-12, atol=0)
    total = loss_of(nn.CrossEntropyLoss(reduction="sum"))
    assert (total.reduction, total.weight(z, y)) == ("sum", 1)


def test_values_and_gradients_of_the_pipeline_keep_their_bits():
    z, y = normal(500, C).float(), labels(500)
    for ours in (CrossEntropy(), CrossEntropy(ignore_index=None)):
        assert torch.equal(ours.value(z, y), cross_entropy(z, y))


@pytest.mark.parametrize(
    ("loss", "target"),
    [
        (nn.CrossEntropyLoss(), torch.tensor([0])),
        (nn.CrossEntropyLoss(weight=torch.tensor([2.0, 1.0, 1.0])), torch.tensor([0])),
        (nn.CrossEntropyLoss(), torch.tensor([[1.0, 0.0, 0.0]])),
        (nn.BCEWithLogitsLoss(), torch.tensor([[1.0, 0.0, 0.0]])),
    ],
)
def test_float32_is_accurate_near_interpolation(loss, target):
    z, ours = torch.tensor([[19.0, -22.0, -21.0]]), loss_of(loss)
    exact = ours.residual(z.double(), target)
    by_autograd = derivatives(lambda z: ours.value(z, target), z, z)[1]
    for found in (ours.residual(z, target), by_autograd):
        torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=0)
    theirs = derivatives(lambda z: loss(z, target), z, z)[1]
    assert (theirs.double() - exact).norm() > 1e-3 * exact.norm()


@pytest.mark.parametrize(
    "target", [labels(B)[:, None], labels(B).to(torch.uint8), functional.one_hot(labels(B), C), labels(B).int()]
)
def test_labels_in_other_forms_mean_the_same(target):
    z, ours = normal(B, C), loss_of(nn.CrossEntropyLoss())
    ours.check(z, target)
    torch.testing.assert_close(ours.value(z, target), ours.value(z, labels(B)), rtol=1e-12, atol=0)
    torch.testing.assert_close(ours.residual(z, target), ours.residual(z, labels(B)), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(
    ("loss", "target", "message"),
    [
        (nn.CrossEntropyLoss(), torch.tensor([1]), r"target has shape \(1,\) \(allowed: \(6,\) for outputs \(6, 4\)\)"),
        (nn.CrossEntropyLoss(), labels(B) + 3, r"a label is [456] \(allowed: 0 to 3, the model has 4 outputs\)"),
        (nn.CrossEntropyLoss(), labels(B) - 9, r"a label is -9 \(allowed: 0 to 3"),
        (nn.CrossEntropyLoss(), normal(B), r"dtype torch.float64 and shape \(6,\) \(allowed: class indices"),
        (nn.CrossEntropyLoss(), torch.ones(B, C).long(), "integers are not one-hot"),
        (nn.CrossEntropyLoss(WEIGHTS[:3]), labels(B), r"has 3 class weights \(expected 4, the outputs\)"),
        (nn.MSELoss(), normal(B), r"target has shape \(6,\) \(allowed: \(6, 4\)\)"),
        (nn.BCEWithLogitsLoss(), normal(B, 1), r"target has shape \(6, 1\) \(allowed: \(6, 4\)\)"),
    ],
)
def test_targets_that_do_not_fit(loss, target, message):
    with pytest.raises(NmeError, match=message):
        loss_of(loss).check(normal(B, C), target)


def test_tokens_with_the_classes_last():
    with pytest.raises(NmeError, match=r"flatten tokens: output\.flatten\(0, -2\) and target\.flatten\(\)"):
        CrossEntropy().check(normal(2, 5, C), labels(2, 5))


def test_losses_that_are_not_numbers():
    for function, message in (
        (lambda z, y: (z - y).square(), r"the loss returns a tensor of shape \(6, 4\) \(allowed: one number"),
        (lambda z, y: float((z - y).square().mean()), "the loss returns float"),
    ):
        with pytest.raises(NmeError, match=message):
            loss_of(function).value(normal(B, C), normal(B, C))
    with pytest.raises(NmeError, match="the loss does not depend on the model's output"):
        loss_of(lambda z, y: z.detach().mean()).residual(normal(B, C), None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("classes", [2, 3, 10, 17, 100])
@pytest.mark.parametrize("size", [1, 7, 50, 128, 1000])
@pytest.mark.parametrize("transposed", [False, True])
def test_value_and_slope_have_the_bits_of_autograd(size, classes, dtype, transposed):
    """At random logits and near interpolation, to underflow of the label's 1 - p, and with the signs of zeros."""
    loss = loss_of(nn.CrossEntropyLoss())
    stream = torch.Generator().manual_seed(size * classes)
    y = torch.randint(classes, (size,), generator=stream)
    for scale, margin in ((1, 0), (10, 0), (1000, 0), (1, 8), (1, 20), (1, 40), (1, 120), (1, 800), (0, 0)):
        z = scale * torch.randn(size, classes, generator=stream, dtype=dtype)
        z = z + margin * functional.one_hot(y, classes)
        z = z.t().contiguous().t() if transposed else z
        leaf = z.clone(memory_format=torch.preserve_format).requires_grad_()
        value = loss.value(leaf, y)
        (slope,) = torch.autograd.grad(value, leaf)
        found = loss.value_and_slope(z, y)
        assert torch.equal(found[0], value)
        assert torch.equal(found[1], slope)
        assert torch.equal(found[1].signbit(), slope.signbit())
        assert found[1].stride() == slope.stride()


def test_value_and_slope_of_infinite_logits_have_the_bits_of_autograd():
    loss, y = loss_of(nn.CrossEntropyLoss()), torch.tensor([0, 1, 0])
    for column, number in product((0, 1), (torch.inf, -torch.inf, torch.nan)):
        z = torch.zeros(3, 3)
        z[:2, column] = number
        leaf = z.clone().requires_grad_()
        value = loss.value(leaf, y)
        (slope,) = torch.autograd.grad(value, leaf)
        found = loss.value_and_slope(z, y)
        torch.testing.assert_close(found, (value.detach(), slope), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("ignored", [-100, 0, 2])
def test_ignored_labels_are_left_to_autograd(ignored):
    z, y = normal(B, C), labels(B)
    loss = loss_of(nn.CrossEntropyLoss(ignore_index=ignored))
    y[2] = ignored
    assert loss.value_and_slope(z, y) is None


def test_other_settings_and_wrong_labels_are_left_to_autograd():
    z, y = normal(B, C), labels(B)
    for settings in ({"label_smoothing": 0.1}, {"reduction": "sum"}, {"weight": WEIGHTS}):
        assert loss_of(nn.CrossEntropyLoss(**settings)).value_and_slope(z, y) is None
    plain = loss_of(nn.CrossEntropyLoss())
    y[2] = C
    assert plain.value_and_slope(z, y) is None, "its value raises PyTorch's error"
    assert plain.value_and_slope(z, z.softmax(1)) is None
    assert loss_of(nn.MSELoss()).value_and_slope(z, z) is None


@pytest.mark.parametrize("classes", [1, 4])
def test_one_possible_class_has_slope_zero(classes):
    """All other logits are −∞, or there are none."""
    z = torch.randn(3, classes)
    z[0, 1:] = -torch.inf
    y = torch.zeros(3, dtype=torch.int64)
    _, slope = CrossEntropy().value_and_slope(z, y)
    plain = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(cross_entropy(plain, y), plain)
    assert slope[0, 0] == 0
    assert torch.equal(slope.nan_to_num(9), expected.nan_to_num(9))


class Centred(nn.Module):
    """A mean over examples that counts its calls in a buffer, and depends on them."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, output, target):
        self.calls += 1
        return (output - self.calls).square().mean()


def test_losses_with_buffers_are_asked_without_changing_them():
    z, y = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    mean = Centred()
    for _ in range(2):
        SeveralBatches(loss_of(mean), sure=True).add(z, y)
    assert mean.calls == 0
    weighted = nn.NLLLoss(weight=torch.tensor([1.0, 2.0, 3.0]))
    with pytest.raises(NmeError, match="not a mean over examples"):
        SeveralBatches(loss_of(weighted), sure=True).add(z, y)
