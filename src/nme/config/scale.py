"""A scale, ``config/scales/*.yaml``: its datasets, recipes, panels and axes, and the measurement of curvature."""

from itertools import product
from typing import TYPE_CHECKING, Annotated, Literal, Union

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    model_validator,
)

from nme.config.fields import Axis, Closed, Identifier, Names, one_of
from nme.datasets import DATASETS
from nme.datasets.base import Dataset
from nme.errors import unknown
from nme.models import MODELS
from nme.models.settings import Count, ModelSettings


class DatasetSettings(Closed):
    """The part of a dataset that a scale uses, and the noise of its labels."""

    source: Annotated[str, one_of("dataset", DATASETS)] | None = Field(
        None, description="Name of the underlying dataset; null: its own name."
    )
    train: Count | None = Field(None, description="Training examples, class-balanced; null: all.")
    test: Count | None = Field(None, description="Test examples, class-balanced; null: all.")
    label_noise: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="Probability that a training label is replaced by a label drawn uniformly from all classes, with a"
        " fixed seed; test labels are not changed. Datasets in memory only.",
    )
    short_side: Count | None = Field(
        None, description="Streamed datasets: shorter side of stored images, px; smaller images keep their size."
    )
    quality: Annotated[int, Field(ge=1, le=95)] | None = Field(
        None, description="Streamed datasets: quality of the stored JPEGs, 1 to 95."
    )


# One of the registered models; a type checker cannot read a union that is made from a dictionary.
if TYPE_CHECKING:
    ModelSpec = ModelSettings
else:
    ModelSpec = Annotated[Union[tuple(MODELS.values())], Field(discriminator="name")]  # noqa: UP007


class Training(Closed):
    """The training of one network: everything except the activation, the method, its strength and the seed."""

    dataset: Identifier = Field(description="A dataset of this scale.")
    model: ModelSpec = Field(description="The network and its sizes.")
    resolution: Count | None = Field(None, description="Streamed datasets: side of the network's square input, px.")
    augment: Literal["none", "crop_flip", "resized_crop_flip"] = Field(
        "none",
        description="crop_flip: random crop after padding by 1/8 of the side, and random horizontal flip."
        " resized_crop_flip (streamed datasets): 8 to 100 % of the area, resized, and random horizontal flip.",
    )
    epochs: Count = Field(description="Passes over the training data.")
    test_epochs: Count = Field(1, description="Epochs from one test to the next; the last epoch always has a test.")
    batch_size: Count = Field(
        description="Examples per step; the last incomplete batch of an epoch is left out. SAM and the penalties use"
        " the gradient over the whole batch (m = batch_size)."
    )
    micro_batch: Count | None = Field(
        None,
        description="Most examples computed at once: a gradient is the mean over parts of this size, each with its own"
        " batch-norm statistics; null: the whole batch.",
    )
    processes: Count = Field(
        1, description="Processes that share a training, each with its own GPU; they need a micro_batch."
    )
    precision: Literal["fp32", "tf32", "bf16"] = Field(
        "fp32",
        description="Precision of forward passes: tf32 is float32 with TF32 products on a GPU, bf16 is automatic mixed"
        " precision; parameters, gradients, norms and updates are float32.",
    )
    channels_last: bool = Field(False, description="Memory order of images; often faster, especially on GPUs.")
    compile: bool = Field(False, description="Compile the step (torch.compile): faster steps, slower start.")
    learning_rate: PositiveFloat = Field(description="Peak learning rate; cosine schedule to 0.")
    warmup_epochs: NonNegativeFloat = Field(0.0, description="Epochs of linear warm-up before the cosine.")
    momentum: Annotated[float, Field(ge=0, lt=1)] = Field(0.9, description="Momentum of SGD.")
    weight_decay: NonNegativeFloat = Field(0.0, description="Weight decay, acting on the update, outside the loss.")
    threads: Count = Field(1, description="CPU threads of a job; fixed here because metrics depend on it.")

    @model_validator(mode="after")
    def _parts_fit(self) -> "Training":
        part = self.micro_batch or self.batch_size
        if self.batch_size % part:
            raise ValueError(f"micro_batch is {part} (allowed: divisors of batch_size, {self.batch_size})")
        parts = self.batch_size // part
        if self.processes > parts:
            raise ValueError(
                f"processes is {self.processes} (allowed: up to {parts}, the parts of micro_batch examples)"
            )
        return self

    @model_validator(mode="after")
    def _warmup_fits(self) -> "Training":
        if self.warmup_epochs >= self.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs:g} (allowed: less than epochs, {self.epochs})")
        return self


class Recipe(Training):
    """How one network is trained, its title, and how its jobs run, which metrics do not depend on."""

    title: str = Field("", description="Title of a panel of a figure; empty: the recipe's name.")
    seeds_per_job: Count = Field(
        1, description="Number of seeds that one process trains, one after the other. Metrics do not depend on it."
    )
    memory_mb: Count = Field(2000, description="Memory to ask a cluster for, in MB; grows with each attempt.")
    runtime_minutes: Count = Field(30, description="Time limit to ask a cluster for; grows with each attempt.")

    def training(self) -> Training:
        """The settings that decide what is computed, each of them given, as in a spec."""
        return Training.model_validate(self.model_dump(include=set(Training.model_fields)))


class Measurement(Closed):
    """Settings for the measurement of curvature, the same for all figures."""

    examples: Count = Field(500, description="Training examples for the measurement, class-balanced.")
    micro_batch: Count | None = Field(
        None, description="Most examples at once, to save memory; null: all. Changes results only by rounding."
    )
    probes: Count = Field(16, description="Random probes for traces and norms.")
    spectrum_probes: Count = Field(2, description="Random start vectors for Lanczos.")
    lanczos_steps: Count = Field(30, description="Lanczos steps from each start vector.")
    update_batches: Count = Field(
        8, description="Training batches, of the recipe's size, for measuring shares of the penalty's update."
    )


class Scale(Closed):
    """The size of everything: the recipes, the number of seeds, the values on each axis."""

    seeds: Count = Field(description="Members per cell: seeds 0 to seeds − 1.")
    figure_seeds: dict[Identifier, Count] = Field(
        {}, description="Members per cell by figure, for figures that need another number than seeds."
    )
    datasets: dict[Identifier, DatasetSettings] = Field(
        description="Datasets by name, and the part of each that is used."
    )
    recipes: dict[Identifier, Recipe] = Field(min_length=1, description="Recipes by name.")
    panels: dict[Identifier, Annotated[list[str], Field(min_length=1), Names]] = Field(
        description="Lists of recipes by name; a figure names one list and shows one panel per recipe."
    )
    axes: dict[Identifier, Axis] = Field(description="Values of strengths and parameters, by name.")
    measurement: Measurement = Field(Measurement(), description="Settings for the measurement of curvature.")

    @model_validator(mode="after")
    def _datasets_are_known(self) -> "Scale":
        for name, dataset in self.datasets.items():
            if (dataset.source or name) not in DATASETS:
                raise ValueError(f"datasets.{name}: {unknown('dataset', name, DATASETS)}; or name one as its 'source'")
            streamed = self.dataset_kind(name).streamed
            for key in ("short_side", "quality"):
                value = getattr(dataset, key)
                if streamed != (value is not None):
                    allowed = "a number" if streamed else "null: it is not stored as JPEG"
                    raise ValueError(f"datasets.{name}.{key} is {value or 'null'} (allowed: {allowed})")
            if streamed and dataset.label_noise:
                allowed = f"0, where '{dataset.source or name}' is streamed"
                raise ValueError(f"datasets.{name}.label_noise is {dataset.label_noise:g} (allowed: {allowed})")
        return self

    def seeds_of(self, figure: str) -> int:
        """Members per cell of a figure."""
        return self.figure_seeds.get(figure, self.seeds)

    @model_validator(mode="after")
    def _figures_share_jobs(self) -> "Scale":
        numbers = {"seeds": self.seeds} | {f"figure_seeds.{name}": n for name, n in self.figure_seeds.items()}
        for (key, seeds), (name, recipe) in product(numbers.items(), self.recipes.items()):
            if self.figure_seeds and seeds % recipe.seeds_per_job:  # figures would train a member in different jobs
                allowed = f"with figure_seeds: multiples of recipes.{name}.seeds_per_job, {recipe.seeds_per_job}"
                raise ValueError(f"{key} is {seeds} (allowed {allowed})")
        return self

    @model_validator(mode="after")
    def _names_are_listed(self) -> "Scale":
        for name, recipe in self.recipes.items():
            if recipe.dataset not in self.datasets:
                known = unknown("dataset of this scale", recipe.dataset, self.datasets)
                raise ValueError(f"recipes.{name}.dataset: {known}")
            self._fits_its_dataset(f"recipes.{name}", recipe)
        for name, panels in self.panels.items():
            for panel in panels:
                if panel not in self.recipes:
                    raise ValueError(f"panels.{name}: {unknown('recipe of this scale', panel, self.recipes)}")
        return self

    def _fits_its_dataset(self, where: str, recipe: Recipe) -> None:
        kind, shape = self.dataset_kind(recipe.dataset), self.input_shape(recipe)
        if kind.streamed:
            wrong, data, allowed = recipe.augment == "crop_flip", "images of any size", "none, resized_crop_flip"
        elif len(kind.shape) == 3:
            wrong, data, allowed = recipe.augment == "resized_crop_flip", "images of one size", "none, crop_flip"
        else:
            wrong, data, allowed = recipe.augment != "none", f"inputs {kind.shape}, not images", "none"
        if wrong:
            raise ValueError(
                f"{where}: augment is '{recipe.augment}', but '{recipe.dataset}' has {data} (allowed: {allowed})"
            )
        if kind.streamed != (recipe.resolution is not None):
            allowed = "a number of px, as 224" if recipe.resolution is None else "null: its inputs have one size"
            found = recipe.resolution or "null"
            raise ValueError(f"{where}: resolution is {found} for '{recipe.dataset}' (allowed: {allowed})")
        size = self.datasets[recipe.dataset].train
        if size is not None and recipe.batch_size > size:
            raise ValueError(
                f"{where}: batch_size is {recipe.batch_size} (allowed: up to {size}, the training examples)"
            )
        if recipe.channels_last and len(shape) != 3:
            raise ValueError(
                f"{where}: channels_last is true, but '{recipe.dataset}' has inputs {shape} (allowed: false)"
            )

    def dataset_kind(self, name: str) -> type[Dataset]:
        """Class of one of the scale's datasets."""
        return DATASETS[self.datasets[name].source or name]

    def input_shape(self, recipe: Recipe) -> tuple[int, ...]:
        """Shape of one input of the recipe's network, channels first."""
        kind, side = self.dataset_kind(recipe.dataset), recipe.resolution
        return (*kind.shape, side, side) if kind.streamed and side else tuple(kind.shape)
