"""The one error that means "what you gave cannot be used", and the sentence that offers the nearest name."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


class InputError(ValueError):
    """What the user gave cannot be used.

    The message is one line and says what was given, what is allowed and what to do. The command line prints it
    without a traceback and exits with status 2; any other exception is a defect of the program.
    """


def unknown(what: str, given: str, allowed: Iterable[str]) -> InputError:
    """An error for a name that does not exist, offering the nearest one that does.

    >>> unknown("recipe", "vea", ["gan", "vae"])
    InputError("unknown recipe 'vea'; did you mean 'vae'? (known: gan, vae)")
    """
    names = sorted(allowed)
    near = get_close_matches(given, names, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    return InputError(f"unknown {what} {given!r}{hint} (known: {', '.join(names)})")
