"""One style for everything a user can get wrong: one message that names the key, the value and what is allowed."""

from collections.abc import Iterable
from difflib import get_close_matches


class NmeError(Exception):
    """A mistake in the input, not in the program: the command line prints its text alone and exits with 2."""


class Interrupted(Exception):  # noqa: N818  (nothing is wrong)
    """The job was asked to stop (SIGTERM, SIGINT) and has saved its state; running it again continues it."""


def unknown(what: str, value: object, allowed: Iterable[str]) -> str:
    """The sentence for a name that is not known: what it was, the nearest allowed name, all allowed names."""
    allowed = sorted(allowed)
    near = get_close_matches(str(value), allowed, n=1, cutoff=0.5)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    return f"unknown {what} '{value}'{hint} (allowed: {', '.join(allowed) or 'none'})"
