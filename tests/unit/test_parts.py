"""Batches in parts: the same as whole ones where examples are independent, else the mean of the parts."""

import pytest
import torch
from dense_reference import NETWORKS, Dense, central_differences, example, flat, relative_error, signs

from nme.activations import ACTIVATIONS
from nme.derivatives.batch import Batch, Division
from nme.derivatives.products import batch_gradient, hessian_product
from nme.methods import METHODS
from nme.runtime.random_streams import stream

GELU = ACTIVATIONS.parse("gelu")
STRENGTH = 0.3


def in_parts(network, activation, batch_norm, parts=3):
    """A model, and one batch of ``parts`` parts of the example's size."""
    model, batch = example(network, activation, batch_norm)
    generator = torch.Generator().manual_seed(1)
    shift = torch.randn((parts, *batch.inputs.shape), generator=generator).double() / 4
    inputs = torch.cat([batch.inputs + s for s in shift])
    labels = torch.cat([batch.labels.roll(i) for i in range(parts)])
    return model, Batch(inputs, labels, Division(len(batch.labels), 0, len(labels)))


def direction(name, model, batch):
    return flat(METHODS.parse(name).update(model, batch, STRENGTH, stream(0, "noise")).direction)


@pytest.mark.parametrize(
    ("network", "name"),
    [*((network, "gelu") for network in NETWORKS), ("mlp", "relu"), ("mlp", "augmented_relu")],
)
def test_a_batch_in_parts_is_the_batch_where_examples_are_independent(method, network, name):
    model, batch = in_parts(network, ACTIVATIONS.parse(name), batch_norm=False)
    whole = batch._replace(split=None)
    found, expected = (method.update(model, b, STRENGTH, stream(0, "noise")) for b in (batch, whole))
    assert relative_error(flat(found.direction), flat(expected.direction)) < 1e-9
    assert torch.allclose(found.output, expected.output)
    assert found.loss.item() == pytest.approx(expected.loss.item(), rel=1e-12)
    assert found.gradient_norm.item() == pytest.approx(expected.gradient_norm.item(), rel=1e-10)


class TestWithBatchNorm:
    """L is the mean of the parts' losses, each with its own statistics."""

    def loss(self, network):
        model, batch = in_parts(network, GELU, batch_norm=True)
        parts = [Dense(model, part) for part in batch.parts()]
        return model, batch, parts[0].theta, lambda t: sum(p.loss(t) for p in parts) / len(parts)

    @pytest.mark.parametrize("network", NETWORKS)
    def test_gradient_penalty_is_that_of_the_whole_batch(self, network):
        model, batch, theta, loss = self.loss(network)
        gradient = torch.func.grad(loss)
        expected = central_differences(lambda t: loss(t) + STRENGTH * gradient(t).norm(), theta)
        assert relative_error(direction("grad_norm", model, batch), expected) < 1e-6

    @pytest.mark.parametrize("network", NETWORKS)
    def test_sam_climbs_the_whole_batch(self, network):
        model, batch, theta, loss = self.loss(network)
        gradient = torch.func.grad(loss)
        g = gradient(theta)
        assert relative_error(direction("sam", model, batch), gradient(theta + STRENGTH * g / g.norm())) < 1e-9

    def test_hessian_trace_is_that_of_the_whole_batch(self):
        model, batch, theta, loss = self.loss("mlp")
        u = signs(len(theta), stream(0, "noise"))
        hessian = torch.func.grad(lambda t: torch.func.grad(loss)(t) @ u)
        expected = torch.func.grad(loss)(theta) + STRENGTH / 2 * torch.func.grad(lambda t: hessian(t) @ u)(theta)
        assert relative_error(direction("hessian_trace", model, batch), expected) < 1e-8

    def test_hessian_product_is_that_of_the_whole_batch(self):
        model, batch, theta, loss = self.loss("cnn-2d")
        clean = batch_gradient(model, batch, keep_graph=True)
        assert clean.kept_gradient is None, "no part's graph stands for all"
        generator = torch.Generator().manual_seed(0)
        v = [torch.randn(p.shape, generator=generator).double() for p in model.parameters()]
        expected = torch.func.grad(lambda t: torch.func.grad(loss)(t) @ flat(v))(theta)
        assert relative_error(flat(hessian_product(model, batch, clean, v)), expected) < 1e-8

    def test_running_statistics_take_one_step_to_the_mean_of_the_parts(self, method):
        model, batch = in_parts("cnn-1d", GELU, batch_norm=True)
        before = {name: b.clone() for name, b in model.named_buffers()}
        alone = []
        for part in batch.parts():
            reference, _ = example("cnn-1d", GELU, batch_norm=True)
            reference.load_state_dict(model.state_dict())
            reference.train()(part.inputs)
            alone.append(dict(reference.named_buffers()))
        method.update(model, batch, 1e-30, stream(0, "noise"))  # no strength to speak of: noise moves nothing
        for name, buffer in model.named_buffers():
            if name.endswith("num_batches_tracked"):
                assert buffer == before[name] + 1
            else:
                torch.testing.assert_close(buffer, sum(a[name] for a in alone) / len(alone))
                assert not torch.equal(buffer, before[name])
