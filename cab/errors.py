"""Errors that a user can mend: one line that names the value, says what is allowed and suggests the nearest."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from attention_zoo.errors import UnknownName

# The disk is full, over its quota, or read-only: nothing can be recorded until somebody makes room.
UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


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
    return folded(str(error)) or type(error).__name__


def folded(text: str) -> str:
    """The text on one line."""
    return " ".join(text.split())


def unknown(what: str, name: str, allowed: Iterable[str]) -> UserError:
    """The error for a name that is not among the allowed ones, with the nearest and what is allowed."""
    return UserError(str(UnknownName(what, name, allowed)))
