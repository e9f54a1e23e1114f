"""The one exception for what the user can mend."""

import difflib
from collections.abc import Iterable


class NeojaxError(Exception):
    """Bad input: one line that names the thing, what was expected and what to do.

    The command line prints it as ``error: ...`` and exits with its `status`; Python callers catch it.
    """

    status = 2


class PeerError(NeojaxError):
    """Other processes of this job are missing; the same command on all hosts may find them."""

    status = 75  # EX_TEMPFAIL of sysexits.h, by which a scheduler may start a run anew


class SaveError(NeojaxError):
    """Something of a run could not be written; the checkpoints before it are whole."""


def suggest(word: str, known: Iterable[str]) -> str:
    """The clause ``"; did you mean X?"`` for the known word nearest to `word`, or the list of known words."""
    known = list(known)
    if near := nearest(word, known):
        return f"; did you mean {near}?"
    return "; known: " + ", ".join(known) if known else ""


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known word nearest to `word`, which may be a misspelling of it; None where none is near."""
    return next(iter(difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)), None)
