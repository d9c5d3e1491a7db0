"""Forward passes in bfloat16, images in another memory order, compiled steps: against float32, eager and in order."""

from copy import copy, deepcopy

import pytest
import torch
from dense_reference import flat, relative_error

from nme.activations import ACTIVATIONS
from nme.config.scale import Recipe
from nme.derivatives.batch import Batch
from nme.derivatives.products import batch_gradient
from nme.derivatives.single_pass import logits_of
from nme.methods import METHODS
from nme.models import MODELS
from nme.runtime.device import prepare_device
from nme.runtime.random_streams import stream
from nme.training import member
from nme.training.member import Job

NETWORKS = {
    "mlp": ((1, 8, 8), {"widths": [64, 64], "batch_norm": True}),
    "cnn": ((3, 16, 16), {"channels": [16, 32], "kernel": 3, "stride": 2}),
    "cnn-1d": ((1, 40), {"channels": [32, 32], "kernel": 5, "stride": 2}),
    "wide_resnet": ((3, 16, 16), {"depth": 10, "widen": 1}),
    "wide_resnet-1d": ((1, 40), {"depth": 10, "widen": 1}),
}
STRENGTH = 0.1


def network(name, activation="gelu", examples=64):
    shape, settings = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        kind = name.removesuffix("-1d")
        model = MODELS[kind](name=kind, **settings).build(shape, 10, ACTIVATIONS.parse(activation))
        return model, Batch(torch.randn(examples, *shape), torch.randint(10, (examples,)))


def direction(method, model, batch, compiled=False, seed=0):
    rule = copy(method)
    if compiled:
        member.compile_update(rule)
    return flat(rule.update(deepcopy(model), batch, STRENGTH, stream(seed, "noise")).direction)


@pytest.mark.parametrize("name", ["mlp", "wide_resnet", "wide_resnet-1d"])  # which have all kinds of layers
def test_directions_in_bf16_are_those_in_fp32(method, name):
    """The documented bound: a cosine of 0.99 at least."""
    model, batch = network(name)
    low = batch._replace(inputs=batch.inputs.bfloat16())
    # A drawn label may come out differently where its random number is at a boundary: the median of three.
    seeds = range(3) if method.name == "gauss_newton_trace" else range(1)
    cases = [[direction(method, model, b, seed=seed) for b in (low, batch)] for seed in seeds]
    cases.sort(key=lambda case: torch.cosine_similarity(*case, dim=0).item())
    found, expected = cases[len(cases) // 2]
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found, expected, dim=0) > 0.99
    assert 0.95 < found.norm() / expected.norm() < 1.05
    assert not torch.equal(found, expected), "it was computed in bf16"


def test_what_follows_the_forward_pass_is_in_fp32():
    model, batch = network("wide_resnet")
    low = batch._replace(inputs=batch.inputs.bfloat16())
    seen = []
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    clean = batch_gradient(model, low, keep_graph=True)
    assert seen == [torch.bfloat16]
    assert logits_of(model, low.inputs).dtype == torch.float32
    assert {t.dtype for t in (clean.loss, clean.logits, *clean.gradient, *clean.kept_gradient)} == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_images_in_another_memory_order_give_the_same_direction(method):
    model, batch = network("wide_resnet")
    expected = direction(method, model, batch)
    last = batch._replace(inputs=batch.inputs.contiguous(memory_format=torch.channels_last))
    found = direction(method, model.to(memory_format=torch.channels_last), last)
    assert relative_error(found, expected) < 1e-4


def test_a_recipe_says_which(monkeypatch):
    settings = {"dataset": "digits", "model": {"name": "wide_resnet", "depth": 10, "widen": 1}, "epochs": 1}
    recipe = Recipe(**settings, batch_size=8, learning_rate=0.1, precision="bf16", channels_last=True, compile=True)
    job = Job(recipe, "gelu", METHODS.parse("sgd"), 0.0, None, None, 10, torch.device("cpu"))
    inputs = job.prepare_inputs(torch.randn(8, 3, 8, 8))
    assert inputs.dtype == torch.bfloat16
    assert inputs.is_contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(member, "compile_update", lambda rule: setattr(rule, "update", "compiled"))
    assert job.rule.update == "compiled"
    prescribed = Job(recipe, "augmented_relu-beta=2", METHODS.parse("sgd"), 0.0, None, None, 10, None)
    assert "update" not in vars(prescribed.rule), "a compiler does not follow it"


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True), ("bf16", False)])
def test_short_products_of_float32_only_where_the_recipe_allows_them(precision, allowed):
    prepare_device("cpu", 1, precision)
    assert torch.backends.cuda.matmul.allow_tf32 == torch.backends.cudnn.allow_tf32 == allowed
    prepare_device("cpu", 1)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_compiled_steps_are_eager_ones(name):
    """The documented tolerance: 1e-4 of the direction's norm."""
    method = METHODS.parse(name)
    model, batch = network("mlp", "beta_gelu-beta=2", examples=32)
    torch.compiler.reset()
    assert relative_error(direction(method, model, batch, compiled=True), direction(method, model, batch)) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn-1d", "wide_resnet"])
def test_a_compiled_gradient_penalty_of_other_networks_is_the_eager_one(name):
    model, batch = network(name, examples=32)
    torch.compiler.reset()
    method = METHODS.parse("grad_norm")
    assert relative_error(direction(method, model, batch, compiled=True), direction(method, model, batch)) < 1e-4


def test_the_same_work_gives_the_same_bits_or_an_error():
    prepare_device("cpu", 1)
    assert torch.are_deterministic_algorithms_enabled()
    assert not torch.is_deterministic_algorithms_warn_only_enabled()
