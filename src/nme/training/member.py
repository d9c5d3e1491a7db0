"""Training of one member, step by step.

Training loss and accuracy are means over the steps of an epoch, each computed in the step's own forward pass, before
its update (hence with augmentation, if the recipe has it). Test loss and accuracy are computed in eval mode, every
``test_epochs`` epochs and after the last one. The final accuracy is the last epoch's: the test set is never used for a
choice.

Several processes may share a training (``nme.runtime.processes``): each computes its part of every batch and of the
test set, and all hold the same network.
"""

import math
import time
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from torch.nn import functional
from torch.optim.sgd import sgd

from nme.activations import ACTIVATIONS
from nme.config.scale import Training
from nme.data.examples import Examples, Split
from nme.derivatives.batch import CROSS_ENTROPY, Batch, Division
from nme.derivatives.single_pass import logits_of
from nme.methods import Method
from nme.runtime import processes
from nme.runtime.random_streams import derived_seed, stream

EVALUATION_BATCH = 500


@dataclass(frozen=True)
class Job:
    """Settings and data that the members of one job share."""

    recipe: Training
    activation: str
    method: Method
    strength: float
    train: Split
    test: Split
    classes: int
    device: torch.device

    @property
    def steps_per_epoch(self) -> int:
        """Number of whole batches in the training data."""
        return len(self.train.labels) // self.recipe.batch_size

    @property
    def rows(self) -> range:
        """Range of this process's examples in a batch: whole parts."""
        part = self.recipe.micro_batch or self.recipe.batch_size
        mine = processes.share(self.recipe.batch_size // part)
        return range(mine.start * part, mine.stop * part)

    @property
    def split(self) -> Division | None:
        """Division of a batch into parts; None: a single part."""
        size = self.recipe.micro_batch
        return Division(size, self.rows.start, self.recipe.batch_size) if size else None

    @cached_property
    def rule(self) -> Method:
        """The method with its strength, and its update compiled if the recipe asks for it.

        Never compiled with a prescribed second derivative: the compiler cannot trace ``nme.derivatives.activate``.
        """
        rule = copy(self.method)
        rule.strength = self.strength
        if self.recipe.compile and ACTIVATIONS.parse(self.activation).genuine:
            compile_update(rule)
        return rule

    def prepare_inputs(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs in the memory order and, for ``logits_of``, the precision of the recipe."""
        if self.recipe.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs.bfloat16() if self.recipe.precision == "bf16" else inputs


def compile_update(rule: Method) -> None:
    """Compile this method's update with ``torch.compile``, gradients and products in one graph. Same up to rounding.

    What the method calls ``apart`` (random draws, and Taylor arithmetic, which replaces the layers' forward methods)
    stays uncompiled. Decorators at their definitions would import the compiler: a second and a half for every job.
    """
    torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())  # informs the compiler, too
    rule.apart = torch.compiler.disable(rule.apart)  # type: ignore[method-assign]
    # Patched only around calls of this function: a setting of PyTorch applies to the whole process.
    traced = torch._dynamo.config.patch(trace_autograd_ops=True)
    rule.update = traced(torch.compile(rule.update))  # type: ignore[method-assign]


def learning_rate(recipe: Training, progress: float) -> float:
    """Linear warm-up, then a cosine to 0 (docs/theory.md, §6.1).

    Args:
        recipe: with ``learning_rate``, ``epochs`` and ``warmup_epochs``.
        progress: finished epochs, with fractions.

    >>> recipe = Training(dataset="digits", model={"name": "mlp", "widths": [1]}, epochs=10, batch_size=1,
    ...                   learning_rate=1, warmup_epochs=2)
    >>> [round(learning_rate(recipe, e), 3) for e in (0, 1, 2, 6, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    warmup = recipe.warmup_epochs
    if progress < warmup:
        return recipe.learning_rate * progress / warmup
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (recipe.epochs - warmup)))


class Member:
    """One network in training. A checkpoint needs nothing but its state between two steps."""

    def __init__(self, job: Job, seed: int):
        self.job = job
        self.seed = seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "init"))
            model = job.recipe.model.build(job.train.shape, job.classes, ACTIVATIONS.parse(job.activation))
        self.model = model.to(job.device)
        if job.recipe.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.parameters: list[torch.Tensor] = list(self.model.parameters())
        self.momentum = [torch.zeros_like(p) for p in self.parameters]
        self.epoch = 0  # epochs finished
        self.step = 0  # steps done in the current epoch
        self.sums = self._zeros()
        self.seconds = 0.0
        self.rows: list[dict] = []
        self._examples: Iterator[Examples] | None = None  # examples of the remaining steps of the epoch

    def _zeros(self) -> torch.Tensor:
        """Sums over the epoch's steps: loss, correct answers, gradient norm. On the device: steps need not wait."""
        return torch.zeros(3, dtype=torch.float64, device=self.job.device)

    @property
    def steps(self) -> int:
        """Finished steps in total."""
        return self.epoch * self.job.steps_per_epoch + self.step

    @property
    def diverged(self) -> bool:
        """True if a loss or a gradient was not finite."""
        return bool(self.rows) and self.rows[-1]["diverged"]

    @property
    def finished(self) -> bool:
        """True if all epochs are done or the member has diverged."""
        return self.epoch == self.job.recipe.epochs or self.diverged

    def advance(self) -> dict | None:
        """Take one step; at the end of an epoch evaluate, and return the epoch's row."""
        began = time.perf_counter()
        job, recipe = self.job, self.job.recipe
        if self.step == 0:
            self.model.train()
        if self._examples is None:
            self._examples = job.train.fetch(self._rest_of_epoch())
        examples = next(self._examples)
        augment = stream(self.seed, "augment", self.epoch, self.step)
        inputs = job.train.augmented(examples, recipe.augment, augment, (recipe.batch_size, job.rows.start))
        # Learning rate at the middle of the step: it is 0 neither in the first nor in the last step.
        rate = learning_rate(recipe, self.epoch + (self.step + 0.5) / job.steps_per_epoch)
        noise = stream(self.seed, "noise", self.epoch, self.step)
        batch = Batch(job.prepare_inputs(inputs), examples.labels, job.split)
        update = job.rule.backward(self.model, CROSS_ENTROPY, batch, noise=noise)
        self._descend(rate)
        logits = cast(torch.Tensor, update.output)  # a list only from several micro-batches
        correct = processes.sum_over_processes((logits.argmax(1) == examples.labels).sum())
        self.sums += torch.stack([update.loss, correct, update.gradient_norm])
        self.step += 1
        self.seconds += time.perf_counter() - began
        return self._end_epoch(rate) if self.step == job.steps_per_epoch else None

    @torch.no_grad()
    def _descend(self, rate: float) -> None:
        """Momentum m ← μm + d + λθ and θ ← θ − ηm, in one pass over memory: less than half the time of ``foreach``.

        See docs/theory.md, §6.1. The same pass as ``torch.optim.SGD(fused=True)``, whose constructor imports the
        compiler: 1.9 s for every job.
        """
        # PyTorch's types allow for momentum that is None, but not for such gradients; after a step neither is.
        sgd(
            self.parameters,
            [p.grad for p in self.parameters],  # type: ignore[misc]
            self.momentum,  # type: ignore[arg-type]
            fused=True,
            weight_decay=self.job.recipe.weight_decay,
            momentum=self.job.recipe.momentum,
            lr=rate,
            dampening=0.0,
            nesterov=False,
            maximize=False,
        )
        for p in self.parameters:
            p.grad = None

    def _rest_of_epoch(self) -> list[torch.Tensor]:
        """Indices of this process's examples, one tensor per step, from the current step on."""
        size = self.job.recipe.batch_size
        order = self.job.train.order(stream(self.seed, "order", self.epoch))
        steps = order[: self.job.steps_per_epoch * size].split(size)[self.step :]
        return [step[self.job.rows.start : self.job.rows.stop] for step in steps]

    def _end_epoch(self, rate: float) -> dict:
        began = time.perf_counter()
        loss, correct, gradient_norm = (self.sums / self.step).tolist()
        self.epoch += 1
        tested = self.epoch % self.job.recipe.test_epochs == 0 or self.epoch == self.job.recipe.epochs
        test_loss, test_accuracy = self.evaluate() if tested else (None, None)
        diverged = not all(math.isfinite(v) for v in (loss, gradient_norm, test_loss or 0.0))
        self.step = 0
        self.sums = self._zeros()
        self._examples = None
        measured = {
            "train_loss": loss,
            "train_accuracy": correct / self.job.recipe.batch_size,
            "gradient_norm": gradient_norm,
            "test_loss": test_loss,
            "test_accuracy": test_accuracy,
        }
        row: dict[str, Any] = {"seed": self.seed, "epoch": self.epoch, "learning_rate": rate}
        row |= dict.fromkeys(measured) if diverged else measured
        row |= {"diverged": diverged, "seconds": self.seconds + time.perf_counter() - began}
        self.seconds = 0.0
        self.rows.append(row)
        return row

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Compute mean loss and accuracy on the test split, in eval mode; sums are divided once, at the end."""
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.job.device)
        share = processes.share(len(self.job.test.labels))
        for batch in self.job.test.in_order(EVALUATION_BATCH, share):
            logits = logits_of(self.model, self.job.prepare_inputs(batch.inputs))
            loss = functional.cross_entropy(logits, batch.labels, reduction="sum")
            sums += torch.stack([loss.double(), (logits.argmax(1) == batch.labels).sum().double()])
        loss, accuracy = (processes.sum_over_processes(sums) / len(self.job.test.labels)).tolist()
        return loss, accuracy

    def state(self) -> dict:
        """State that determines all further steps."""
        return {
            "seed": self.seed,
            "model": self.model.state_dict(),
            "momentum": self.momentum,
            "epoch": self.epoch,
            "step": self.step,
            "sums": self.sums,
            "seconds": self.seconds,
            "rows": self.rows,
        }

    def restore(self, state: dict) -> None:
        """Continue from a saved state of this member."""
        self.model.load_state_dict(state["model"])
        for mine, saved in zip(self.momentum, state["momentum"], strict=True):
            mine.copy_(saved)
        self.sums = state["sums"].to(self.job.device)
        self.epoch, self.step, self.seconds, self.rows = (state[k] for k in ("epoch", "step", "seconds", "rows"))
        self.model.train()
