"""The four patterns as a page needs them: names, in order, without importing the zoo (and torch with it)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class PatternText:
    """A pattern's name in records, its two letters, its title, and in one line which inputs an output may see."""

    name: str
    short: str
    title: str
    meaning: str


PATTERNS = (
    PatternText("noncausal_self", "NS", "Noncausal self attention", "One sequence; every output sees all of it."),
    PatternText(
        "causal_self", "CS", "Causal self attention", "One sequence; output t sees positions up to and including t."
    ),
    PatternText(
        "noncausal_cross",
        "NC",
        "Noncausal cross attention",
        "Queries from a target, keys and values from a source; every output may see all of both.",
    ),
    PatternText(
        "causal_cross",
        "CC",
        "Causal cross attention",
        "Output t sees the whole source, and must not depend on target positions after t.",
    ),
)
