"""What a user of the zoo can get wrong by name."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UnknownName(ValueError):
    """A name that is not among the allowed ones; the message lists the nearest and what is allowed."""

    def __init__(self, what: str, name: str, allowed: Iterable[str]) -> None:
        self.name, self.allowed = name, sorted(map(str, allowed))
        near = difflib.get_close_matches(name, self.allowed, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}? " if near else ""
        super().__init__(f"unknown {what} {name!r}: {hint}allowed: {', '.join(self.allowed) or 'none'}")
