"""Random streams, the learning rate, augmentation, data and one member's steps."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from registry_examples import ACTIVATION_NUMBERS, METHOD_NUMBERS, every
from torch import nn

from nme.activations import ACTIVATIONS
from nme.config.scale import Recipe
from nme.data.augment import crop_and_flip
from nme.data.examples import Examples
from nme.data.in_memory import Data
from nme.derivatives.activate import Activate
from nme.methods import METHODS, Method
from nme.runtime.random_streams import derived_seed, stream
from nme.stages.train import COLUMNS
from nme.training.member import Job, Member, learning_rate

SETTINGS = {
    "dataset": "digits",
    "model": {"name": "cnn", "channels": [3], "kernel": 3, "stride": 2, "batch_norm": True},
    "augment": "crop_flip",
    "epochs": 3,
    "batch_size": 8,
    "learning_rate": 0.1,
    "momentum": 0.9,
    "weight_decay": 0.01,
}
CLASSES = 3
TRAINING_EXAMPLES = 27  # three whole batches, and three examples left out of each epoch


class TestStreams:
    def test_derivation_is_what_it_always_was(self):
        # The first 8 bytes of SHA-256 of the text, less the lowest bit. A change here changes every result.
        assert derived_seed(0, "init") == 1519069808562059438
        assert derived_seed(3, "noise", 2, 41) == 3601712023479824012
        assert stream(3, "noise", 2, 41).initial_seed() == 3601712023479824012

    def test_differ_by_seed_purpose_and_position(self):
        streams = {
            (seed, purpose, *position)
            for seed in (0, 1, 12)
            for purpose in ("init", "order", "augment", "noise")
            for position in ((), (0,), (1,), (12,), (1, 2), (2, 1), (0, 0))
        }
        assert len({derived_seed(*s) for s in streams}) == len(streams)
        assert len({torch.rand(2, generator=stream(*s)).sum().item() for s in streams}) == len(streams)

    def test_numbers_do_not_run_into_one_another(self):
        assert derived_seed(1, "noise", 12, 3) != derived_seed(1, "noise", 1, 23)
        assert derived_seed(1, "noise", 12, 3) != derived_seed(11, "noise", 2, 3)

    def test_same_arguments_give_the_same_numbers_every_time(self):
        first, second = (torch.rand(5, generator=stream(7, "augment", 1, 2)) for _ in range(2))
        assert torch.equal(first, second)

    def test_leave_the_global_generator_alone(self):
        before = torch.get_rng_state()
        torch.rand(5, generator=stream(7, "augment"))
        assert torch.equal(torch.get_rng_state(), before)

    def test_seeds_are_63_bit(self):
        seeds = [derived_seed(seed, "init") for seed in range(200)]
        assert all(0 <= seed < 2**63 for seed in seeds)
        assert max(seeds) > 2**62


class TestLearningRate:
    def recipe(self, **changes):
        return Recipe(**{**SETTINGS, "epochs": 10, "learning_rate": 0.4, **changes})

    def test_is_a_cosine_from_the_peak_to_0(self):
        recipe = self.recipe()
        assert learning_rate(recipe, 0) == 0.4
        assert learning_rate(recipe, 5) == pytest.approx(0.2)
        assert learning_rate(recipe, 10) == pytest.approx(0, abs=1e-15)
        for progress in np.linspace(0, 10, 23):
            assert learning_rate(recipe, progress) == pytest.approx(0.4 * math.cos(math.pi * progress / 20) ** 2)

    def test_warms_up_in_a_straight_line(self):
        recipe = self.recipe(warmup_epochs=2.5)
        for progress in np.linspace(0, 2.5, 9):
            assert learning_rate(recipe, progress) == pytest.approx(0.4 * progress / 2.5)
        for progress in np.linspace(2.5, 10, 9):
            after = math.cos(math.pi * (progress - 2.5) / 7.5 / 2) ** 2
            assert learning_rate(recipe, progress) == pytest.approx(0.4 * after)

    @pytest.mark.parametrize("warmup", [0, 0.5, 3])
    def test_has_no_jump_and_peaks_once(self, warmup):
        recipe = self.recipe(warmup_epochs=warmup)
        rates = [learning_rate(recipe, progress) for progress in np.linspace(0, 10, 2001)]
        steps = np.diff(rates)
        assert np.abs(steps).max() < 0.005
        assert max(rates) == pytest.approx(0.4, rel=1e-3)
        assert np.argmax(rates) == pytest.approx(warmup * 200, abs=1)
        assert (steps[: int(warmup * 200)] > 0).all()
        assert (steps[int(warmup * 200) :] <= 0).all()


def slow_crop_and_flip(images, generator):
    """Image by image, pixel by pixel, with the choices read in the same order: tops, lefts, then flips."""
    n, channels, height, width = images.shape
    pad = height // 8
    tops, lefts = torch.randint(2 * pad + 1, (2, n), generator=generator).tolist()
    flips = (torch.rand(n, generator=generator) < 0.5).tolist()
    result = np.zeros(images.shape, images.numpy().dtype)
    for i, c, row, column in np.ndindex(n, channels, height, width):
        from_row = row + tops[i] - pad
        from_column = (width - 1 - column if flips[i] else column) + lefts[i] - pad
        if 0 <= from_row < height and 0 <= from_column < width:
            result[i, c, row, column] = images[i, c, from_row, from_column]
    return torch.from_numpy(result)


class TestCropAndFlip:
    @pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
    @pytest.mark.parametrize(
        "shape",
        [(12, 1, 8, 8), (7, 3, 16, 16), (9, 2, 16, 11), (9, 2, 11, 16), (5, 3, 7, 7), (1, 1, 28, 28)],
        ids=str,
    )
    def test_equals_the_slow_reference(self, shape, dtype):
        images = torch.randint(1, 256, shape, generator=stream(0, "pixels")).to(dtype)
        for step in range(3):
            actual = crop_and_flip(images, stream(1, "augment", step))
            assert actual.dtype == dtype
            assert torch.equal(actual, slow_crop_and_flip(images, stream(1, "augment", step)))

    def test_makes_every_choice_about_equally_often(self):
        # One lit pixel in the middle tells where an image went, a lit left half whether it was flipped.
        images = torch.zeros(6000, 2, 8, 8, dtype=torch.uint8)
        images[:, 0, 4, 4] = 1
        images[:, 1, :, :4] = 1
        out = crop_and_flip(images, stream(0, "augment"))
        flipped = out[:, 1, 3:5, :2].sum((1, 2)) == 0
        assert flipped.double().mean().item() == pytest.approx(0.5, abs=0.03)
        places = out[:, 0].flatten(1).argmax(1)
        for mirrored in (False, True):
            counts = torch.bincount(places[flipped == mirrored], minlength=64).view(8, 8)
            hit = counts[counts > 0]
            assert len(hit) == 9  # shifts of −1, 0 and 1 pixel both ways
            assert hit.min() > 0.7 * 3000 / 9
            assert hit.max() < 1.3 * 3000 / 9

    def test_images_are_not_changed_and_small_ones_are_only_flipped(self):
        images = torch.arange(4 * 3 * 5, dtype=torch.uint8).view(1, 4, 3, 5).repeat(20, 1, 1, 1)
        before = images.clone()
        out = crop_and_flip(images, stream(0, "augment"))
        assert torch.equal(images, before)
        assert all(torch.equal(o, i) or torch.equal(o, i.flip(2)) for o, i in zip(out, images, strict=True))


def data(examples, seed=0):
    inputs = torch.randint(256, (examples, 1, 8, 8), generator=stream(seed, "pixels")).to(torch.uint8)
    labels = torch.randint(CLASSES, (examples,), generator=stream(seed, "labels"))
    mean, std = (torch.tensor(v).view(1, 1, 1) for v in (120.0, 70.0))
    return Data(inputs, labels, mean, std)


class TestData:
    @pytest.mark.parametrize(("shape", "dtype"), [((3, 4, 5), torch.uint8), ((2, 6), torch.float32)], ids=str)
    def test_is_standardised_per_channel(self, shape, dtype):
        inputs = torch.randint(256, (30, *shape), generator=stream(0, "pixels")).to(dtype)
        raw = inputs.double().numpy()
        over = (0, *range(2, raw.ndim))
        mean, std = (f(raw, axis=over, keepdims=True)[0] for f in (np.mean, np.std))
        split = Data(inputs, torch.zeros(30).long(), *(torch.from_numpy(v).float() for v in (mean, std)))
        result = split.augmented(Examples(inputs, torch.zeros(30)), "none", stream(0, "augment"))
        assert result.dtype == torch.float32
        np.testing.assert_allclose(result.numpy(), (raw - mean) / std, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(result.mean(over).numpy(), 0, atol=1e-5)
        np.testing.assert_allclose(result.std(over, correction=0).numpy(), 1, atol=1e-5)

    @pytest.mark.parametrize("size", [1, 4, 10, 500])
    def test_in_order_is_everything_once(self, size):
        split = data(10)
        batches = list(split.in_order(size))
        assert [len(b.labels) for b in batches[:-1]] == [size] * (len(batches) - 1)
        assert torch.equal(torch.cat([b.labels for b in batches]), split.labels)
        inputs = (split.inputs.numpy().astype(np.float64) - 120) / 70
        np.testing.assert_allclose(torch.cat([b.inputs for b in batches]).numpy(), inputs, rtol=1e-6, atol=1e-7)

    def test_batch_takes_the_examples_asked_for(self):
        split, indices = data(10), torch.tensor([7, 0, 3])
        batch = split.batch(indices, "none", stream(0, "augment"))
        assert torch.equal(batch.labels, split.labels[indices])
        assert torch.equal(batch.inputs, (split.inputs[indices].float() - 120) / 70)

    def test_batch_is_augmented_before_it_is_standardised(self):
        # So that the border is black, not the mean.
        split, indices = data(10), torch.arange(10)
        batch = split.batch(indices, "crop_flip", stream(2, "augment"))
        images = slow_crop_and_flip(split.inputs, stream(2, "augment"))
        assert torch.equal(batch.inputs, (images.float() - 120) / 70)
        assert torch.equal(batch.labels, split.labels)


def cell(activation="gelu", method="grad_norm", strength=0.1, **changes):
    recipe = Recipe(**{**SETTINGS, **changes})
    method = METHODS.parse(method) if isinstance(method, str) else method
    device = torch.device("cpu")
    return Job(recipe, activation, method, strength, data(TRAINING_EXAMPLES), data(11, 1), CLASSES, device)


def steps(member, n):
    return [member.advance() for _ in range(n)]


class Spy(Method):
    """Passes every step on to another method, and remembers what it was given."""

    name, label = "spy", "spy"

    def __init__(self, method="sgd"):
        super().__init__()
        self.method = METHODS.parse(method)
        self.symbol = self.method.symbol
        self.batches, self.noise, self.directions, self.training = [], [], [], []

    def update(self, model, batch, strength, noise):
        self.batches.append(batch)
        self.noise.append(torch.randn(3, generator=noise))
        self.training.append(model.training)
        update = self.method.update(model, batch, strength, noise)
        self.directions.append([d.clone() for d in update.direction])
        self.last = update
        return update


def orders(member, epochs, monkeypatch):
    """The indices of the examples of each step, as the member asks for them."""
    seen = []
    original = Data.fetch

    def fetch(self, indices):
        indices = list(indices)
        for chosen, examples in zip(indices, original(self, indices), strict=True):
            if self is member.job.train:
                seen.append(chosen)
            yield examples

    monkeypatch.setattr(Data, "fetch", fetch)
    steps(member, 3 * epochs)
    return torch.stack(seen).view(epochs, -1)


def state(member):
    return [*member.model.state_dict().values()]


def same(left, right):
    return all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


# Each activation and each method, one of them at a time.
ONE_CHANGED = [
    *((str(activation), "grad_norm") for activation in every(ACTIVATIONS, ACTIVATION_NUMBERS)),
    *(("relu", str(method)) for method in every(METHODS, METHOD_NUMBERS)),
]


class TestMember:
    @pytest.mark.parametrize(("phi", "trained"), ONE_CHANGED)
    def test_starts_the_same_whatever_the_activation_method_and_strength(self, phi, trained):
        reference = Member(cell(), 0)
        other = Member(cell(phi, trained, 0.7), 0)
        assert same(state(other), state(reference))

    def test_start_depends_on_the_seed_alone(self):
        torch.manual_seed(0)
        first = Member(cell(), 0)
        torch.manual_seed(1)
        before = torch.get_rng_state()
        second, other = Member(cell(), 0), Member(cell(), 1)
        assert torch.equal(torch.get_rng_state(), before)
        assert same(state(first), state(second))
        assert not torch.equal(state(first)[0], state(other)[0])

    def test_every_epoch_takes_whole_batches_of_a_permutation(self, monkeypatch):
        seen = orders(Member(cell(), 0), 3, monkeypatch)
        for epoch in seen:
            assert len(epoch.unique()) == len(epoch) == 24
            assert epoch.min() >= 0
            assert epoch.max() < TRAINING_EXAMPLES
        assert len({tuple(epoch.tolist()) for epoch in seen}) == 3
        # The three examples that are left out are others in each epoch, so all take part.
        assert len(seen.unique()) == TRAINING_EXAMPLES

    @pytest.mark.parametrize(("phi", "trained"), ONE_CHANGED)
    def test_order_does_not_depend_on_activation_method_and_strength(self, phi, trained, monkeypatch):
        reference = orders(Member(cell("relu", "sgd", 0.0), 0), 2, monkeypatch)
        monkeypatch.undo()
        assert torch.equal(orders(Member(cell(phi, trained, 0.3), 0), 2, monkeypatch), reference)

    def test_order_depends_on_the_seed(self, monkeypatch):
        first = orders(Member(cell(), 0), 1, monkeypatch)
        monkeypatch.undo()
        assert not torch.equal(first, orders(Member(cell(), 1), 1, monkeypatch))

    def test_augmentation_and_noise_are_other_at_each_step_and_the_same_in_each_cell(self):
        spies = [Spy("sgd"), Spy("grad_norm")]
        for spy, activation in zip(spies, ("relu", "gelu"), strict=True):
            steps(Member(cell(activation, spy), 0), 6)
        for a, b in zip(spies[0].batches, spies[1].batches, strict=True):
            assert same(a[:2], b[:2])
        assert same(spies[0].noise, spies[1].noise)
        assert len({tuple(n.tolist()) for n in spies[0].noise}) == 6

    @pytest.mark.parametrize("in_order", [True, False])
    def test_update_is_sgd_with_momentum_and_decay_outside_the_direction(self, in_order):
        class InAnotherMemoryOrder(Spy):
            def update(self, *arguments):
                update = super().update(*arguments)
                return update._replace(direction=[d.mT.contiguous().mT if d.dim() > 1 else d for d in update.direction])

        spy = Spy("grad_norm") if in_order else InAnotherMemoryOrder("grad_norm")
        member = Member(cell("gelu", spy), 0)
        theta = [p.detach().double().clone() for p in member.model.parameters()]
        velocity = [torch.zeros_like(t) for t in theta]
        for step in range(9):
            member.advance()
            # The rate at the middle of the step, of 3 epochs with 3 steps each.
            rate = 0.1 * math.cos(math.pi * (step + 0.5) / 9 / 2) ** 2
            for i, direction in enumerate(spy.directions[step]):
                velocity[i] = 0.9 * velocity[i] + direction.double() + 0.01 * theta[i]
                theta[i] = theta[i] - rate * velocity[i]
        for actual, expected in zip(member.model.parameters(), theta, strict=True):
            torch.testing.assert_close(actual.double(), expected, rtol=1e-4, atol=1e-5)

    def test_trains_in_train_mode_and_evaluates_in_eval_mode(self):
        spy = Spy()
        member = Member(cell("relu", spy), 0)
        steps(member, 7)
        assert spy.training == [True] * 7
        before = [b.clone() for b in member.model.buffers()]
        member.evaluate()
        assert not member.model.training
        assert same(member.model.buffers(), before)

    @pytest.mark.parametrize("size", [1, 4, 500])
    def test_test_loss_and_accuracy_are_means_over_all_test_examples(self, size, monkeypatch):
        monkeypatch.setattr("nme.training.member.EVALUATION_BATCH", size)
        member = Member(cell(), 0)
        steps(member, 3)
        loss, accuracy = member.evaluate()
        model, test = deepcopy(member.model).double().eval(), member.job.test
        inputs = torch.from_numpy((test.inputs.numpy().astype(np.float64) - 120) / 70)
        logits = model(inputs).detach().numpy()
        right = logits[np.arange(11), test.labels.numpy()]
        assert loss == pytest.approx((np.log(np.exp(logits).sum(1)) - right).mean(), rel=1e-5)
        assert accuracy == pytest.approx((logits.argmax(1) == test.labels.numpy()).mean(), rel=1e-12)

    def test_row_of_an_epoch_has_the_means_over_its_steps(self):
        class Recorder(Spy):
            rows = []  # noqa: RUF012

            def update(self, *arguments):
                update = super().update(*arguments)
                correct = (update.output.argmax(1) == arguments[1].labels).double().mean()
                self.rows.append((update.loss.item(), correct.item(), update.gradient_norm.item()))
                return update

        spy = Recorder("grad_norm")
        member = Member(cell("gelu", spy), 4)
        rows = steps(member, 6)
        assert [r is None for r in rows] == [True, True, False] * 2
        for epoch, row in enumerate((rows[2], rows[5])):
            loss, accuracy, norm = np.mean(spy.rows[3 * epoch : 3 * epoch + 3], axis=0)
            assert (row["seed"], row["epoch"], row["diverged"]) == (4, epoch + 1, False)
            assert row["train_loss"] == pytest.approx(loss, rel=1e-12)
            assert row["train_accuracy"] == pytest.approx(accuracy, rel=1e-12)
            assert row["gradient_norm"] == pytest.approx(norm, rel=1e-12)
            assert row["learning_rate"] == pytest.approx(0.1 * math.cos(math.pi * (epoch + 2.5 / 3) / 6) ** 2)
            assert row["seconds"] > 0
            assert set(row) == set(COLUMNS.names)
        assert (rows[5]["test_loss"], rows[5]["test_accuracy"]) == member.evaluate()
        assert member.rows == [rows[2], rows[5]]

    def test_is_tested_every_few_epochs_and_after_the_last(self):
        every, seldom = (Member(cell(epochs=5, test_epochs=epochs), 0) for epochs in (1, 2))
        rows = [[row for row in steps(member, 15) if row] for member in (every, seldom)]
        for always, sometimes in zip(*rows, strict=True):
            tested = sometimes["epoch"] in (2, 4, 5)
            for key in set(always) - {"seconds"}:
                expected = always[key] if tested or not key.startswith("test_") else None
                assert sometimes[key] == expected
            assert always["test_accuracy"] is not None

    def test_is_finished_after_its_epochs(self):
        member = Member(cell(), 0)
        finished = [member.finished for _ in range(9) if member.advance() or True]
        assert finished == [False] * 8 + [True]

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    def test_ends_without_numbers_where_it_diverges(self, bad, method):
        member = Member(cell(method=method), 0)
        with torch.no_grad():
            next(member.model.parameters()).fill_(bad)
        row = steps(member, 3)[-1]
        assert row["diverged"]
        assert member.finished
        measured = ("train_loss", "train_accuracy", "gradient_norm", "test_loss", "test_accuracy")
        assert all(row[key] is None for key in measured)

    @pytest.mark.parametrize("done", [1, 3, 5, 8])
    def test_goes_on_from_its_state_to_the_last_bit(self, done):
        straight = Member(cell(), 0)
        steps(straight, 9)
        first = Member(cell(), 0)
        steps(first, done)
        saved = deepcopy(first.state())
        again = Member(cell(), 0)
        again.restore(saved)
        steps(again, 9 - done)
        assert same(state(again), state(straight))
        assert again.finished
        for row, expected in zip(again.rows, straight.rows, strict=True):
            assert {**row, "seconds": 0} == {**expected, "seconds": 0}

    def test_learns(self, method):
        member = Member(cell("gelu", str(method), 0.001, epochs=30, augment="none"), 0)
        rows = [row for row in steps(member, 90) if row]
        assert rows[-1]["train_loss"] < 0.8 * rows[0]["train_loss"]


def test_steps_per_epoch_counts_whole_batches():
    assert [cell(batch_size=size).steps_per_epoch for size in (1, 8, 9, 27, 28)] == [27, 3, 3, 1, 0]


def test_model_is_the_one_of_the_recipe():
    model = Member(cell("beta_gelu-beta=2"), 0).model
    (conv,) = [m for m in model if isinstance(m, nn.Conv2d)]
    (activate,) = [m for m in model if isinstance(m, Activate)]
    assert (conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride) == (1, 3, (3, 3), (2, 2))
    assert str(activate.activation) == "beta_gelu-beta=2"
    assert model[-1].out_features == CLASSES
