"""Types of the configuration's fields: names of a registry, numbers in one spelling, axes."""

import re
from typing import Annotated, Any, Literal

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
from nme.registry import Registry, number


class Closed(BaseModel):
    """A section of the configuration: unknown keys are mistakes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def registered(registry: Registry) -> Any:
    """A name of the registry with its parameters, in its one spelling."""

    def canonical(text: str) -> str:
        return str(registry.parse(text))

    return Annotated[str, AfterValidator(as_value_error(canonical))]


def templates(registry: Registry) -> Any:
    """As ``registered``; a parameter may be the values of an axis, as in ``beta_gelu-beta={beta}``."""

    def canonical(text: str) -> str:
        known = str(registry.parse(AXIS_IN_NAME.sub("1", text)))
        return text if AXIS_IN_NAME.search(text) else known

    return Annotated[str, AfterValidator(as_value_error(canonical))]


def coloured(registry: Registry) -> Any:
    """As ``registered``, or a name without the parameter it needs: the colour of all of that name."""

    def canonical(text: str) -> str:
        return text if text in registry else str(registry.parse(text))

    return Annotated[str, AfterValidator(as_value_error(canonical))]


def as_value_error(check: Any) -> Any:
    """Pydantic collects ValueErrors and says where they are; ours carry the message."""

    def checked(value: Any) -> Any:
        try:
            return check(value)
        except NmeError as error:
            raise ValueError(str(error)) from None

    return checked


def one_of(what: str, names: Any) -> Any:
    """One of these names; ``what`` says in the message what they name."""

    def check(value: str) -> str:
        if value not in names:
            raise ValueError(unknown(what, value, names))
        return value

    return Annotated[str, AfterValidator(check)]


def two_by_two(widths: list) -> list:
    """Check that there are two weights to vary: two inputs, and two units in the first layer."""
    if min(widths[:2]) < 2:
        raise ValueError(
            f"is {widths} (allowed: at least 2 inputs and 2 units in the first layer, to vary two weights)"
        )
    return widths


def distinct(values: list) -> list:
    """Check that no value is listed twice."""
    repeated = sorted({str(v) for v in values if values.count(v) > 1})
    if repeated:
        raise ValueError(f"{', '.join(repeated)} is listed more than once (each value makes one cell)")
    return values


AXIS_IN_NAME = re.compile(r"\{([a-z][a-z0-9_]*)\}")


def distinct_methods(methods: Any) -> Any:
    """Two spellings of one method would silently become one key; unknown ones are found afterwards."""
    seen = []
    for name in methods if isinstance(methods, dict) else ():
        try:
            seen.append(str(METHODS.parse(name)))
        except NmeError:
            seen.append(str(name))
    distinct(seen)
    return methods


Identifier = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]
# One spelling per number, so that 0.1, 1e-1 and "0.10" are one cell.
Number = Annotated[
    str,
    BeforeValidator(as_value_error(number)),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0}, {"type": "string"}]}),
]
Axis = Annotated[list[Number], Field(min_length=1), AfterValidator(distinct)]
Names = AfterValidator(distinct)
Operator = Literal["H", "G", "N"]
Drawn = Literal["H", "G", "N", "N_phi"]
