"""How work ends early: bad input (exit code 2), a failure or a stop on request (exit code 1)."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input or wrong usage. The message names the place, the value and the remedy."""


class WorkError(RuntimeError):
    """The work itself failed: a loss that is not a number, a full disk, a cut download."""


class Interrupted(Exception):
    """The work was stopped on request, after saving what is needed to go on."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'X'?` for the known word closest to `word`, else an empty string."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {found[0]!r}?" if found else ""
