"""Train stage: the members of one cell, one after the other, and their metrics per epoch.

Training loss and accuracy are means over the steps of an epoch, each taken in the step's own forward pass, before its
update (so with augmentation, if the recipe has it). Test loss and accuracy are taken in eval mode, after every
``test_epochs`` epochs and after the last one. A final accuracy is that of the last epoch: the test set chooses nothing.

Several processes may share a training (``nme.processes``): each takes its part of every batch and of the test set, all
have the same network, and the first one keeps the records.
"""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pyarrow as pa
import torch
from torch import nn
from torch.nn import functional
from torch.optim.sgd import sgd

from nme import batches, grid, parquet, processes, products, taylor
from nme.activations import ACTIVATIONS
from nme.checkpoint import Checkpoint, Snapshots, StopRequest
from nme.config import Recipe, check
from nme.device import device_name
from nme.errors import Interrupted, NmeError
from nme.methods import METHODS, Method, Update
from nme.products import Batch, Split, logits_of
from nme.provenance import provenance, spec_hash
from nme.streams import derived_seed, stream

EVALUATION_BATCH = 500

COLUMNS = pa.schema(
    {
        "seed": pa.int64(),
        "epoch": pa.int64(),
        "learning_rate": pa.float64(),
        "train_loss": pa.float64(),
        "train_accuracy": pa.float64(),
        "gradient_norm": pa.float64(),
        "test_loss": pa.float64(),
        "test_accuracy": pa.float64(),
        "diverged": pa.bool_(),
        "seconds": pa.float64(),
    }
)

Report = Callable[[dict], None]


@dataclass(frozen=True)
class Job:
    """What the members of one job share."""

    recipe: Recipe
    activation: str
    method: Method
    strength: float
    train: batches.Data
    test: batches.Data
    classes: int
    device: torch.device

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches of the training data."""
        return len(self.train.labels) // self.recipe.batch_size

    @property
    def rows(self) -> range:
        """Which examples of a batch are this process's: whole parts."""
        part = self.recipe.micro_batch or self.recipe.batch_size
        mine = processes.share(self.recipe.batch_size // part)
        return range(mine.start * part, mine.stop * part)

    @property
    def split(self) -> Split | None:
        """How a batch is cut into parts; None: it is one."""
        size = self.recipe.micro_batch
        return Split(size, self.rows.start, self.recipe.batch_size) if size else None

    @cached_property
    def update(self) -> Callable[[nn.Module, Batch, float, torch.Generator], Update]:
        """The method's update, compiled if the recipe asks for it.

        Not with a prescribed second derivative: a compiler does not follow ``nme.prescribed``.
        """
        compiles = self.recipe.compile and ACTIVATIONS.parse(self.activation).genuine
        return compiled(self.method.update) if compiles else self.method.update

    def as_computed(self, inputs: torch.Tensor) -> torch.Tensor:
        """Inputs in the memory order and, for ``logits_of``, the precision of the recipe."""
        if self.recipe.channels_last:
            inputs = inputs.contiguous(memory_format=torch.channels_last)
        return inputs.bfloat16() if self.recipe.precision == "bf16" else inputs


def compiled(update: Callable) -> Callable:
    """``update`` by ``torch.compile``, with its gradients and products in one graph. Same results up to rounding.

    Drawing of random numbers, and Taylor arithmetic, which exchanges what layers do, stay as they are. (Not by
    decorators where they are written: those import the compiler, a second and a half for every job.)
    """
    torch.use_deterministic_algorithms(torch.are_deterministic_algorithms_enabled())  # tells the compiler, too
    drawing = [(products, name) for name in ("rademacher", "normal", "uniform")]
    for module, name in [*drawing, (taylor, "quadratic_form")]:
        setattr(module, name, torch.compiler.disable(getattr(module, name)))
    # Of the calls of this function only: a setting of PyTorch is the whole process's.
    return torch._dynamo.config.patch(trace_autograd_ops=True)(torch.compile(update))


def learning_rate(recipe: Recipe, progress: float) -> float:
    """Linear warm-up, then a cosine to 0.

    Args:
        recipe: with ``learning_rate``, ``epochs`` and ``warmup_epochs``.
        progress: epochs done, with fractions.

    >>> recipe = Recipe(dataset="digits", title="", model={"name": "mlp", "widths": [1]}, epochs=10, batch_size=1,
    ...                 learning_rate=1, warmup_epochs=2)
    >>> [round(learning_rate(recipe, e), 3) for e in (0, 1, 2, 6, 10)]
    [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    warmup = recipe.warmup_epochs
    if progress < warmup:
        return recipe.learning_rate * progress / warmup
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (progress - warmup) / (recipe.epochs - warmup)))


class Member:
    """One network in training. Its state between two steps is all that a checkpoint needs."""

    def __init__(self, job: Job, seed: int):
        self.job = job
        self.seed = seed
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(seed, "init"))
            model = job.recipe.model.build(job.train.shape, job.classes, ACTIVATIONS.parse(job.activation))
        self.model = model.to(job.device)
        if job.recipe.channels_last:
            self.model = self.model.to(memory_format=torch.channels_last)
        self.parameters = list(self.model.parameters())
        self.momentum = [torch.zeros_like(p) for p in self.parameters]
        self.epoch = 0  # epochs finished
        self.step = 0  # steps done in the current epoch
        self.sums = self._zeros()
        self.seconds = 0.0
        self.rows: list[dict] = []
        self._examples: Iterator[batches.Examples] | None = None  # those of the rest of the epoch

    def _zeros(self) -> torch.Tensor:
        """Sums over the epoch's steps of: loss, correct answers, gradient norm. On the device: steps need not wait."""
        return torch.zeros(3, dtype=torch.float64, device=self.job.device)

    @property
    def steps(self) -> int:
        """Steps done in all."""
        return self.epoch * self.job.steps_per_epoch + self.step

    @property
    def diverged(self) -> bool:
        """A loss or a gradient was not finite."""
        return bool(self.rows) and self.rows[-1]["diverged"]

    @property
    def finished(self) -> bool:
        """All epochs are done, or the member has diverged."""
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
        # At the middle of the step, so that neither the first nor the last one stands still.
        rate = learning_rate(recipe, self.epoch + (self.step + 0.5) / job.steps_per_epoch)
        noise = stream(self.seed, "noise", self.epoch, self.step)
        batch = Batch(job.as_computed(inputs), examples.labels, job.split)
        update = job.update(self.model, batch, job.strength, noise)
        self._descend(update.direction, rate)
        correct = processes.summed((update.logits.argmax(1) == examples.labels).sum())
        self.sums += torch.stack([update.loss, correct, update.gradient_norm])
        self.step += 1
        self.seconds += time.perf_counter() - began
        return self._end_epoch(rate) if self.step == job.steps_per_epoch else None

    @torch.no_grad()
    def _descend(self, direction: list[torch.Tensor], rate: float) -> None:
        """Momentum m ← μm + d + λθ and θ ← θ − ηm, in one pass over memory: less than half the time of ``foreach``."""
        # That pass goes by memory order, whatever the strides say.
        pairs = zip(self.parameters, direction, strict=True)
        direction = [d if d.stride() == p.stride() else torch.empty_like(p).copy_(d) for p, d in pairs]
        options = {"weight_decay": self.job.recipe.weight_decay, "momentum": self.job.recipe.momentum, "lr": rate}
        options |= {"dampening": 0.0, "nesterov": False, "maximize": False, "fused": True}
        sgd(self.parameters, direction, self.momentum, **options)

    def _rest_of_epoch(self) -> list[torch.Tensor]:
        """Indices of this process's examples, a tensor a step, from the current step on."""
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
        row = {"seed": self.seed, "epoch": self.epoch, "learning_rate": rate}
        row |= dict.fromkeys(measured) if diverged else measured
        row |= {"diverged": diverged, "seconds": self.seconds + time.perf_counter() - began}
        self.seconds = 0.0
        self.rows.append(row)
        return row

    @torch.no_grad()
    def evaluate(self) -> tuple[float, float]:
        """Mean loss and accuracy on the test split, in eval mode; sums are divided once, at the end."""
        self.model.eval()
        sums = torch.zeros(2, dtype=torch.float64, device=self.job.device)
        share = processes.share(len(self.job.test.labels))
        for batch in self.job.test.in_order(EVALUATION_BATCH, share):
            logits = logits_of(self.model, self.job.as_computed(batch.inputs))
            loss = functional.cross_entropy(logits, batch.labels, reduction="sum")
            sums += torch.stack([loss.double(), (logits.argmax(1) == batch.labels).sum().double()])
        loss, accuracy = (processes.summed(sums) / len(self.job.test.labels)).tolist()
        return loss, accuracy

    def state(self) -> dict:
        """Everything that the next step depends on."""
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
        """Go on from a state of this member."""
        self.model.load_state_dict(state["model"])
        for mine, saved in zip(self.momentum, state["momentum"], strict=True):
            mine.copy_(saved)
        self.sums = state["sums"].to(self.job.device)
        self.epoch, self.step, self.seconds, self.rows = (state[k] for k in ("epoch", "step", "seconds", "rows"))
        self.model.train()


def train(
    spec: dict,
    manifest: Path,
    output: Path,
    device: torch.device,
    checkpoint_seconds: float = 60,
    report: Report = lambda row: None,
    log: Callable[[str], None] = print,
) -> None:
    """Train every member of ``spec`` and write their metrics, one row a member and epoch (``COLUMNS``).

    Args:
        spec: ``grid.train_spec``.
        manifest: of the prepared dataset.
        output: the parquet file; ``resume.pt`` beside it keeps the state of a stopped job, and the folder
            ``snapshots`` the networks at the fractions ``spec["snapshots"]`` of the training.
        device: where to train.
        checkpoint_seconds: how often the state is saved.
        report: called with each finished epoch's row.
        log: called with a sentence for the log.

    Raises:
        NmeError: a setting or an input file is not usable.
        Interrupted: SIGTERM or SIGINT came; the state is saved.
    """
    began = time.monotonic()
    recipe = check(Recipe, spec["recipe"], "recipe")
    cell = grid.Cell.of("recipe", spec["activation"], spec["method"], spec["strength"])
    data, test, described = batches.load(manifest, device, recipe.resolution, recipe.threads)
    if described["spec"]["dataset"] != recipe.dataset:
        raise NmeError(f"{manifest}: is of '{described['spec']['dataset']}', the recipe wants '{recipe.dataset}'")
    method, strength, classes = METHODS.parse(cell.method), float(cell.strength), len(described["classes"])
    job = Job(recipe, cell.activation, method, strength, data, test, classes, device)
    if job.steps_per_epoch == 0:
        raise NmeError(f"batch_size is {recipe.batch_size} (allowed: up to {len(data.labels)}, the training examples)")
    identity = {
        "settings": spec_hash(spec),
        "data": spec_hash(described["splits"]),
        "device": device.type,
        "version of PyTorch": str(torch.__version__),
    }
    first = processes.rank() == 0  # who keeps the records
    checkpoint = Checkpoint(output.with_name("resume.pt"), identity, checkpoint_seconds, reader=not first)
    state, sentence = checkpoint.load()
    processes.meet()  # nobody changes files that others are still to read
    if sentence:
        log(sentence)
    rows, earlier, devices = (state["rows"], state["seconds"], state["devices"]) if state else ([], 0.0, [])
    devices = list(dict.fromkeys([*devices, device_name(device)]))  # a job may go on elsewhere
    steps = recipe.epochs * job.steps_per_epoch
    snapshots = Snapshots(output.with_name("snapshots"), spec["snapshots"], steps, state is None) if first else None
    done = {row["seed"] for row in rows}
    with StopRequest() as stop:
        for seed in spec["seeds"]:
            if seed in done:
                continue
            member = Member(job, seed)
            if state and state["member"] and state["member"]["seed"] == seed:
                member.restore(state["member"])
            while not member.finished:
                if first:
                    snapshots.take(seed, member.steps, member.model)
                row = member.advance()
                if row:
                    report(row)
                # All stop after the same step, or those left would wait for ever.
                stopped_by = processes.any_of(bool(stop.received), device) and (stop.received or "another process")
                if first and (stopped_by or checkpoint.due()):
                    seconds = earlier + time.monotonic() - began
                    checkpoint.save({"rows": rows, "member": member.state(), "seconds": seconds, "devices": devices})
                if stopped_by:
                    raise Interrupted(f"stopped by {stopped_by}; run it again to continue from {checkpoint.path}")
            if first and not member.diverged:  # else this may be the step of a snapshot, by chance
                snapshots.take(seed, member.steps, member.model)
            rows = rows + member.rows
    processes.meet()
    if not first:
        return
    record = provenance(
        spec,
        earlier + time.monotonic() - began,
        torch=str(torch.__version__),
        device=", then ".join(devices),
        data=described["splits"],
    )
    parquet.write(pa.Table.from_pylist(rows, schema=COLUMNS), output, record)
    checkpoint.remove()
    # Last: what a job that goes on takes over is there as long as its checkpoint.
    snapshots.finish()
