"""The numbers of papers under ``results/published``, as rows."""

from __future__ import annotations

import csv
import functools
from collections.abc import Mapping
from importlib import resources


@functools.cache
def published_rows(file: str) -> tuple[Mapping[str, str], ...]:
    """The rows of a CSV file of ``results/published``, every value as text; not to be changed."""
    text = (resources.files("cab.published") / file).read_text(encoding="utf-8")
    return tuple(csv.DictReader(text.splitlines()))
