"""Base class of all models' settings."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import BaseModel, ConfigDict, Field

if TYPE_CHECKING:
    from torch import nn

    from nme.activations import Activation

# An integer ≥ 1, and an integer in the file: `true` is a mistake, not 1.
Count = Annotated[int, Field(strict=True, gt=0)]


class ModelSettings(BaseModel):
    """Settings of a model in a recipe."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: str

    def build(self, shape: tuple[int, ...], classes: int, activation: Activation) -> nn.Module:
        """Create the module that maps (B, *shape) to logits (B, classes).

        Initialised by PyTorch's default (Kaiming uniform with a = √5, U(±1/√fan_in), weights and biases) unless the
        model's docstring differs, from PyTorch's global generator. The activation has no influence, so models that
        differ only in their activation start with equal parameters.
        """
        raise NotImplementedError
