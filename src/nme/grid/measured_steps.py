"""Step times that ``benchmarks/gpu.py`` measured on GPUs; planning uses them in place of counted operations."""

import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import TypedDict

from nme.config.scale import Recipe
from nme.methods import METHODS

TABLE = Path(__file__).with_name("gpu_steps.json")  # empty until a card has been measured


class Row(TypedDict):
    """Seconds of one training step: on which card, of which network, how, and by which method."""

    card: str
    model: dict[str, object]
    input_shape: list[int]
    precision: str
    channels_last: bool
    batch_size: int
    method: str
    seconds: float


class MeasuredSteps:
    """The step times of one card: the first one in the table.

    Attributes:
        card: name of the card; None: the table is empty.
    """

    def __init__(self, rows: Iterable[Row]):
        rows = list(rows)
        self.card = rows[0]["card"] if rows else None
        self._rows = [row for row in rows if row["card"] == self.card]

    def seconds(self, recipe: Recipe, shape: tuple[int, ...], method: str) -> float | None:
        """Seconds of a step of the whole batch on one GPU; None: no step of this network was measured.

        A method that was not measured costs its number of gradients in steps of SGD. Steps are taken to be
        proportional to the batch.

        Args:
            recipe: network, precision, memory order and batch size; all but the last must be those measured.
            shape: shape of one input.
            method: method by name, with its parameters.
        """
        wanted = (list(shape), recipe.precision, recipe.channels_last)
        found = {
            row["method"]: row["seconds"] / row["batch_size"]
            for row in self._rows
            if (row["input_shape"], row["precision"], row["channels_last"]) == wanted
            and row["model"]["name"] == recipe.model.name
            and type(recipe.model).model_validate(row["model"]) == recipe.model
        }
        if method in found:
            return found[method] * recipe.batch_size
        if "sgd" not in found:
            return None
        return found["sgd"] * METHODS.parse(method).gradients * recipe.batch_size


@cache
def measured_steps() -> MeasuredSteps:
    """The step times of the table in the package."""
    return MeasuredSteps(json.loads(TABLE.read_text(encoding="utf-8")))
