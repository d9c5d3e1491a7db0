"""Registries of named things with parameters, and the one spelling of each name.

A name has the same spelling in the configuration, in a path and on a figure's axis:
``gelu``, ``beta_gelu-beta=2``, ``grad_norm-p=2``. Nothing here imports torch, so that a machine without torch
can plan a grid and check a configuration.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, TypeVar

from nme.errors import NmeError, unknown


def number(value: float | str) -> str:
    """The canonical decimal form of a finite number ≥ 0, as used in paths: no exponent, no trailing zeros.

    >>> number(0.10), number("1e-3"), number(2.0), number(0)
    ('0.1', '0.001', '2', '0')

    Raises:
        NmeError: not a number, negative, not finite, or outside 1e-12 … 1e12.
    """
    try:
        if isinstance(value, bool):
            raise ValueError
        real = float(value)
    except (TypeError, ValueError, OverflowError):
        raise NmeError(f"'{value}' is not a number (allowed: 0 or a number from 1e-12 to 1e12)") from None
    if not math.isfinite(real) or real < 0 or (real > 0 and not 1e-12 <= real <= 1e12):
        raise NmeError(f"{value} is out of range (allowed: 0 or a number from 1e-12 to 1e12)")
    text = format(Decimal(repr(real)), "f")
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return text.lstrip("-") or "0"


@dataclass(frozen=True)
class Parameter:
    """A number in a name. ``default`` None: required. ``choices`` None: any number > 0; if ``whole``, integers only."""

    default: float | None = None
    choices: tuple[float, ...] | None = None
    whole: bool = False
    symbol: str = ""


class Named:
    """Base class of registered things: class attributes describe the thing, an instance holds its parameter values.

    Attributes:
        name: spelling in configurations and paths.
        label: text on figures.
        parameters: numbers that the name takes.
    """

    name: str
    label: str
    parameters: dict[str, Parameter] = {}  # noqa: RUF012  (a description, never changed)

    def __init__(self, **values: float):
        for key, value in values.items():
            setattr(self, key, value)
        self.values = values

    def __str__(self) -> str:
        given = [(k, v) for k, v in self.values.items() if v != self.parameters[k].default]
        return self.name + "".join(f"-{key}={number(value)}" for key, value in given)

    @property
    def full_label(self) -> str:
        """The label with the parameters that differ from their defaults: ``β-GELU (β = 2)``."""
        given = [(k, v) for k, v in self.values.items() if v != self.parameters[k].default]
        inside = ", ".join(f"{self.parameters[k].symbol or k} = {number(v)}" for k, v in given)
        return f"{self.label} ({inside})" if inside else self.label


Entry = TypeVar("Entry", bound=Callable[..., Any])
Thing = TypeVar("Thing", bound=Named)


class Registry(dict[str, Entry]):
    """Classes and functions by name, the only way to register anything.

    In a registry of ``Named`` classes, ``registry.parse('beta_gelu-beta=2')`` creates an instance.
    """

    def __init__(self, what: str):
        super().__init__()
        self.what = what

    def add(self, thing: Entry) -> Entry:
        """Decorator: register a class under its attribute ``name``, a function under its ``__name__``."""
        self[getattr(thing, "name", "") or thing.__name__] = thing
        return thing

    def parse(self: Registry[type[Thing]], text: str) -> Thing:
        """Create the instance that ``text`` names.

        Raises:
            NmeError: unknown name or parameter, a parameter missing, given twice or not allowed.
        """
        name, *settings = re.split(r"-(?=[a-z_]+=)", str(text))
        if name not in self:
            raise NmeError(unknown(self.what, name, self))
        known = self[name].parameters
        given: dict[str, float] = {}
        for setting in settings:
            key, _, spelling = setting.partition("=")
            if key not in known:
                raise NmeError(unknown(f"parameter of {self.what} '{name}'", key, known))
            if key in given:
                raise NmeError(f"{self.what} '{text}': parameter '{key}' is given twice")
            given[key] = self.value_of(text, key, spelling, known[key])
        values: dict[str, float] = {}
        for key, parameter in known.items():
            value = given.get(key, parameter.default)
            if value is None:
                raise NmeError(f"{self.what} '{text}' needs a value for '{key}', as in '{name}-{key}=1'")
            values[key] = value
        return self[name](**values)

    def value_of(self, text: str, key: str, value: float | str, parameter: Parameter) -> float:
        """The value of a parameter, checked.

        Raises:
            NmeError: not allowed.
        """
        try:
            real = float(number(value))
        except NmeError as error:
            raise NmeError(f"{self.what} '{text}': {key}: {error}") from None
        if parameter.choices and real not in parameter.choices:
            allowed = ", ".join(number(c) for c in parameter.choices)
            raise NmeError(f"{self.what} '{text}': {key} is {value} (allowed: {allowed})")
        if real == 0:
            raise NmeError(f"{self.what} '{text}': {key} must be greater than 0")
        if parameter.whole and not real.is_integer():
            raise NmeError(f"{self.what} '{text}': {key} is {value} (allowed: whole numbers from 1)")
        return int(real) if real.is_integer() else real
