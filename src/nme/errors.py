"""Errors that a user can cause, in one style: a message names the key, the value and the allowed values."""

from collections.abc import Iterable
from difflib import get_close_matches


class NmeError(Exception):
    """A mistake in the input, not in the program: the command line prints only the message and exits with 2."""


class Interrupted(Exception):  # noqa: N818  (nothing is wrong)
    """The job was asked to stop (SIGTERM, SIGINT) and has saved its state; a second run continues it."""


def unknown(what: str, value: object, allowed: Iterable[str]) -> str:
    """Sentence for an unknown name: its kind, the name itself, the nearest allowed name, all allowed names."""
    allowed = sorted(allowed)
    near = get_close_matches(str(value), allowed, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"unknown {what} '{value}'{hint} (allowed: {', '.join(allowed) or 'none'})"
