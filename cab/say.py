"""What a person at the terminal is told while work goes on."""

from __future__ import annotations

import sys


def say(line: str) -> None:
    """On stderr at once: stdout belongs to results."""
    print(line, file=sys.stderr, flush=True)
