"""What every model's settings share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch import nn

    from nme.activations import Activation

# An integer ≥ 1, and an integer in the file: `true` is a mistake, not 1.
Count = Annotated[int, Field(strict=True, gt=0)]


class ModelSettings(BaseModel):
    """A model as a recipe describes it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def build(self, shape: tuple[int, ...], classes: int, activation: Activation) -> nn.Module:
        """The module that maps (B, *shape) to logits (B, classes).

        Initialised by PyTorch's own rule (Kaiming uniform with a = √5, U(±1/√fan_in), weights and biases) unless the
        model says otherwise, from PyTorch's global generator. Activations take no part, so models that differ only in
        it start equal.
        """
        raise NotImplementedError
