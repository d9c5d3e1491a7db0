"""Types of the configuration's fields: registered names, numbers in canonical spelling, axes."""

import re
from collections.abc import Collection
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    WithJsonSchema,
)

from nme.errors import NmeError, unknown
from nme.methods import METHODS
from nme.registry import Registry, Thing, number

Value = TypeVar("Value")


class Closed(BaseModel):
    """A section of the configuration: unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def registered(registry: Registry[type[Thing]]) -> AfterValidator:
    """Type of a registered name with parameters, in canonical spelling."""

    def canonical(text: str) -> str:
        return str(registry.parse(text))

    return AfterValidator(as_value_error(canonical))


def templates(registry: Registry[type[Thing]]) -> AfterValidator:
    """Same as ``registered``, but a parameter may be an axis, as in ``beta_gelu-beta={beta}``."""

    def canonical(text: str) -> str:
        known = str(registry.parse(AXIS_IN_NAME.sub("1", text)))
        return text if AXIS_IN_NAME.search(text) else known

    return AfterValidator(as_value_error(canonical))


def coloured(registry: Registry[type[Thing]]) -> AfterValidator:
    """Same as ``registered``, but a required parameter may be missing: a colour for all its values."""

    def canonical(text: str) -> str:
        return text if text in registry else str(registry.parse(text))

    return AfterValidator(as_value_error(canonical))


def as_value_error(check: Any) -> Any:
    """Turn an NmeError of ``check`` into a ValueError: pydantic collects these and reports their locations."""

    def checked(value: Any) -> Any:
        try:
            return check(value)
        except NmeError as error:
            raise ValueError(str(error)) from None

    return checked


def one_of(what: str, names: Collection[str]) -> AfterValidator:
    """Type of one of these names; ``what`` is the kind of thing in the message."""

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(unknown(what, value, names))
        return value

    return AfterValidator(check)


def two_by_two(widths: list[int]) -> list[int]:
    """Check that there are two weights to vary: two inputs, and two units in the first layer."""
    if min(widths[:2]) < 2:
        raise ValueError(
            f"is {widths} (allowed: at least 2 inputs and 2 units in the first layer, to vary two weights)"
        )
    return widths


def distinct(values: list[Value]) -> list[Value]:
    """Check that no value is listed twice."""
    repeated = sorted({str(v) for v in values if values.count(v) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} is listed more than once (each value makes one cell)")
    return values


AXIS_IN_NAME = re.compile(r"\{([a-z][a-z0-9_]*)\}")


def distinct_methods(methods: Any) -> Any:
    """Check that no method has two spellings, which would silently become one key; unknown names are found later."""
    seen = []
    for name in methods if isinstance(methods, dict) else ():
        try:
            seen.append(str(METHODS.parse(name)))
        except NmeError:
            seen.append(str(name))
    distinct(seen)
    return methods


IDENTIFIER = r"^[a-z][a-z0-9_]*$"
Identifier = Annotated[str, Field(pattern=IDENTIFIER)]
# Canonical spelling: 0.1, 1e-1 and "0.10" are the same cell.
Number = Annotated[
    str,
    BeforeValidator(as_value_error(number)),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}]}),
]
Axis = Annotated[list[Number], Field(min_length=1), AfterValidator(distinct)]
Names = AfterValidator(distinct)
Operator = Literal["H", "G", "N"]
Drawn = Literal["H", "G", "N", "N_phi"]
