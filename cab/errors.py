"""Errors that a user can mend: one line that names the value, says what is allowed and suggests the nearest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user got wrong; the front end prints its one line and exits with 2, without a traceback."""


@contextmanager
def blame_user() -> Iterator[None]:
    """Turns a ``ValueError`` of a stage that only reads what the user gave into a :class:`UserError`."""
    try:
        yield
    except UserError:
        raise
    except ValueError as error:
        raise UserError(one_line(error)) from error


def one_line(error: BaseException) -> str:
    """The message of an error with all white space folded; its type where it has no message."""
    return " ".join(str(error).split()) or type(error).__name__


def did_you_mean(name: str, allowed: Iterable[str]) -> str:
    """``did you mean 'x'? `` with the nearest allowed name, or nothing where none is near."""
    near = difflib.get_close_matches(name, list(allowed), n=1, cutoff=0.5)
    return f"did you mean {near[0]!r}? " if near else ""
